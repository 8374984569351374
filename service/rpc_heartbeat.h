// Shows that gRPC's threads still run callbacks: an alarm that goes through them once a second.
#pragma once

#include <memory>

#include "absl/time/time.h"

namespace nqkv {

// Thread-safe. Its destructor waits for the alarm's last callback.
class RpcHeartbeat {
 public:
  RpcHeartbeat();
  ~RpcHeartbeat();

  absl::Duration Age() const;

 private:
  class Beat;
  std::shared_ptr<Beat> beat_;
};

}  // namespace nqkv
