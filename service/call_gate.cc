#include "service/call_gate.h"

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "proto/rpc_status.h"

namespace nqkv {
namespace {

constexpr absl::Duration kDrainDelay = absl::Seconds(1);
constexpr absl::Duration kBusyDelay = absl::Milliseconds(100);

}  // namespace

absl::StatusOr<CallGate::Pass> CallGate::Enter() {
  {
    MutexLock lock(&mutex_);
    if (closed_) return WithRetry(absl::UnavailableError("the server is draining"), kDrainDelay);
    if (calls_ < calls_max_) {
      ++calls_;
      return Pass(this);
    }
  }
  metrics_->RecordRejection(Rejection::kCalls);
  return WithRetry(
      absl::ResourceExhaustedError(absl::StrCat("too many calls in flight: at most ", calls_max_, " (--calls_max)")),
      kBusyDelay);
}

void CallGate::Close() {
  MutexLock lock(&mutex_);
  closed_ = true;
}

bool CallGate::WaitUntilEmpty(absl::Time deadline) {
  MutexLock lock(&mutex_);
  while (calls_ > 0 && absl::Now() < deadline) changed_.wait_until(mutex_, absl::ToChronoTime(deadline));
  return calls_ == 0;
}

uint64_t CallGate::calls() const {
  MutexLock lock(&mutex_);
  return calls_;
}

// Notified under the lock: the gate may go as soon as the last call has been seen to leave.
void CallGate::Leave() {
  MutexLock lock(&mutex_);
  if (--calls_ == 0) changed_.notify_all();
}

}  // namespace nqkv
