// Tells whether the parts that must keep moving do. Readiness asks it; it has no thread of its own.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "storage/mutex.h"

namespace nqkv {

// Thread-safe.
class Watchdog {
 public:
  // How long ago the part last showed that it moves.
  using AgeFunction = std::function<absl::Duration()>;

  // `age` must stay callable as long as the watchdog lives.
  void Watch(std::string part, absl::Duration age_max, AgeFunction age) ABSL_LOCKS_EXCLUDED(mutex_);

  struct Heartbeat {
    std::string part;
    absl::Duration age;
    absl::Duration age_max;
    bool stalled() const { return age > age_max; }
  };
  std::vector<Heartbeat> Check() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Part {
    std::string name;
    absl::Duration age_max;
    AgeFunction age;
  };
  mutable Mutex mutex_;
  std::vector<Part> parts_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace nqkv
