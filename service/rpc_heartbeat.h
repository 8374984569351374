// Shows that gRPC's threads still run callbacks: an alarm that goes through them once a second.
#pragma once

#include <condition_variable>
#include <memory>

#include "absl/time/time.h"
#include "grpcpp/alarm.h"
#include "storage/mutex.h"

namespace nqkv {

// Thread-safe. Its destructor waits for the alarm's last callback.
class RpcHeartbeat {
 public:
  RpcHeartbeat();
  ~RpcHeartbeat();

  absl::Duration Age() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  void SetAlarm() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void OnAlarm() ABSL_LOCKS_EXCLUDED(mutex_);

  mutable Mutex mutex_;
  std::condition_variable_any changed_;
  std::unique_ptr<grpc::Alarm> alarm_ ABSL_GUARDED_BY(mutex_);
  absl::Time last_ ABSL_GUARDED_BY(mutex_);
  bool waiting_ ABSL_GUARDED_BY(mutex_) = false;  // For the alarm's callback.
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace nqkv
