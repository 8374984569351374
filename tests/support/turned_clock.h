// A clock that tests turn.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

#include "storage/clock.h"

namespace nqkv {

class TurnedClock final : public Clock {
 public:
  std::chrono::nanoseconds Now() const override { return std::chrono::nanoseconds(now_); }
  void Turn(std::chrono::nanoseconds by) { now_ += by.count(); }

 private:
  std::atomic<int64_t> now_ = 1'000'000'000;
};

}  // namespace nqkv
