// The time by which ages are told.
#pragma once

#include <chrono>

namespace nqkv {

// Thread-safe, and quick enough to be asked for each call. Tests bring their own.
class Clock {
 public:
  virtual ~Clock() = default;
  // Since some fixed point; never goes back.
  virtual std::chrono::nanoseconds Now() const = 0;
};

class SteadyClock final : public Clock {
 public:
  std::chrono::nanoseconds Now() const override { return std::chrono::steady_clock::now().time_since_epoch(); }
};

}  // namespace nqkv
