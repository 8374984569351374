#include "service/watchdog.h"

#include <utility>

namespace nqkv {

void Watchdog::Watch(std::string part, absl::Duration age_max, AgeFunction age) {
  MutexLock lock(&mutex_);
  parts_.push_back({std::move(part), age_max, std::move(age)});
}

std::vector<Watchdog::Heartbeat> Watchdog::Check() const {
  std::vector<Part> parts;
  {
    MutexLock lock(&mutex_);
    parts = parts_;
  }
  std::vector<Heartbeat> heartbeats;
  heartbeats.reserve(parts.size());
  for (const Part& part : parts) heartbeats.push_back({part.name, part.age(), part.age_max});
  return heartbeats;
}

}  // namespace nqkv
