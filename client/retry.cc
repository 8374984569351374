#include "client/retry.h"

#include <algorithm>
#include <random>
#include <thread>

#include "absl/time/time.h"
#include "proto/rpc_status.h"

namespace nqkv::client {
namespace {

class RealClock : public Clock {
 public:
  TimePoint Now() const override { return std::chrono::steady_clock::now(); }
  void SleepFor(std::chrono::nanoseconds duration) override { std::this_thread::sleep_for(duration); }
};

double RandomUniform() {
  thread_local std::minstd_rand generator(std::random_device{}());
  return std::uniform_real_distribution<double>(0, 1)(generator);
}

}  // namespace

Clock* Clock::Real() {
  static RealClock clock;
  return &clock;
}

absl::Status ValidateRetryPolicy(const RetryPolicy& policy) {
  if (policy.attempts_max < 1) return absl::InvalidArgumentError("retry.attempts_max: must be at least 1");
  if (policy.backoff_first.count() < 0) return absl::InvalidArgumentError("retry.backoff_first: must not be negative");
  if (policy.backoff_max < policy.backoff_first) {
    return absl::InvalidArgumentError("retry.backoff_max: must not be below backoff_first");
  }
  if (!(policy.multiplier >= 1)) return absl::InvalidArgumentError("retry.multiplier: must be at least 1");
  if (!(policy.jitter >= 0 && policy.jitter <= 1)) return absl::InvalidArgumentError("retry.jitter: must be 0 to 1");
  return absl::OkStatus();
}

bool IsRetryable(const absl::Status& status) {
  if (absl::IsUnavailable(status) || absl::IsCancelled(status)) return true;
  return absl::IsResourceExhausted(status) && RetryDelay(status) > absl::ZeroDuration();
}

Retry::Retry(const RetryPolicy& policy, TimePoint deadline, Clock* clock, Uniform uniform)
    : policy_(policy),
      deadline_(deadline),
      clock_(clock),
      uniform_(uniform ? std::move(uniform) : RandomUniform),
      backoff_(policy.backoff_first) {}

bool Retry::Again(const absl::Status& status) {
  if (!IsRetryable(status) || attempts_ >= policy_.attempts_max) return false;
  // Clamped before it is added to a time: the server's number may be anything.
  const auto asked = absl::ToChronoNanoseconds(std::clamp(RetryDelay(status), absl::ZeroDuration(), absl::Hours(24)));
  const std::chrono::nanoseconds wait = std::max(NextBackoff(), asked);
  if (clock_->Now() + wait >= deadline_) return false;
  clock_->SleepFor(wait);
  ++attempts_;
  return true;
}

std::chrono::nanoseconds Retry::NextBackoff() {
  const auto whole = backoff_;
  backoff_ = std::min(backoff_ * policy_.multiplier, std::chrono::duration<double>(policy_.backoff_max));
  const double share = 1 - policy_.jitter * uniform_();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(whole * share);
}

}  // namespace nqkv::client
