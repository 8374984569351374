// Decides whether a call is tried again, and waits before it is.
#pragma once

#include <chrono>
#include <functional>

#include "absl/status/status.h"
#include "client/nqkv.h"

namespace nqkv::client {

using TimePoint = std::chrono::steady_clock::time_point;

// Time as the client sees it; tests bring their own. Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual TimePoint Now() const = 0;
  virtual void SleepFor(std::chrono::nanoseconds duration) = 0;

  static Clock* Real();  // Lives forever.
};

// INVALID_ARGUMENT naming the field.
absl::Status ValidateRetryPolicy(const RetryPolicy& policy);

// UNAVAILABLE, RESOURCE_EXHAUSTED that carries a RetryInfo, or CANCELLED: by a server that stops with the call still
// open, since a call that the client itself breaks off ends with the status that made it do so.
bool IsRetryable(const absl::Status& status);

// One call's attempts. Not thread-safe.
class Retry {
 public:
  using Uniform = std::function<double()>;  // In [0, 1).

  // `clock` must outlive it.
  Retry(const RetryPolicy& policy, TimePoint deadline, Clock* clock, Uniform uniform = {});

  // Whether to try once more after `status`; true comes after the wait. False at once when the status is not retryable,
  // the attempts are used up, or the wait would pass the deadline.
  bool Again(const absl::Status& status);

  TimePoint deadline() const { return deadline_; }

 private:
  std::chrono::nanoseconds NextBackoff();

  RetryPolicy policy_;
  TimePoint deadline_;
  Clock* clock_;
  Uniform uniform_;
  int attempts_ = 1;
  std::chrono::duration<double> backoff_;
};

}  // namespace nqkv::client
