// Who may still come in: counts the calls in flight, and turns new ones away when they are too many or the server
// drains.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "service/metrics.h"
#include "storage/mutex.h"

namespace nqkv {

// Thread-safe. gRPC's own shutdown answers some calls that race with it with CANCELLED, which a client must not retry;
// so calls are refused here first and gRPC is shut down when none is left.
class CallGate {
 public:
  // A call in flight, as long as it lives. Move-only; must not outlive its gate.
  class Pass {
   public:
    Pass(Pass&& other) noexcept : gate_(std::exchange(other.gate_, nullptr)) {}
    Pass& operator=(Pass&&) = delete;
    ~Pass() {
      if (gate_ != nullptr) gate_->Leave();
    }

   private:
    friend class CallGate;
    explicit Pass(CallGate* gate) : gate_(gate) {}
    CallGate* gate_;
  };

  // Lets in `calls_max` calls at a time. `metrics`, which counts who is turned away for that, must outlive the gate.
  CallGate(uint64_t calls_max, Metrics* metrics) : calls_max_(calls_max), metrics_(metrics) {}

  // Errors:
  //   UNAVAILABLE         the gate is closed; carries RetryInfo, since another server may take the call.
  //   RESOURCE_EXHAUSTED  too many calls are in flight; carries RetryInfo.
  absl::StatusOr<Pass> Enter() ABSL_LOCKS_EXCLUDED(mutex_);

  void Close() ABSL_LOCKS_EXCLUDED(mutex_);
  // False when calls are still in flight at `deadline`.
  bool WaitUntilEmpty(absl::Time deadline) ABSL_LOCKS_EXCLUDED(mutex_);
  uint64_t calls() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  void Leave() ABSL_LOCKS_EXCLUDED(mutex_);

  const uint64_t calls_max_;
  Metrics* const metrics_;
  mutable Mutex mutex_;
  std::condition_variable_any changed_;
  uint64_t calls_ ABSL_GUARDED_BY(mutex_) = 0;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace nqkv
