#include "service/lookup_call.h"

#include "absl/time/clock.h"
#include "kernels/status_macros.h"
#include "proto/rpc_status.h"

namespace nqkv {
namespace {

constexpr absl::Duration kRetryDelay = absl::Seconds(1);

}  // namespace

LookupCall::LookupCall(const CallEnvironment* environment, PreparedLookup lookup, v1::LookupResponse* response,
                       Done done)
    : environment_(environment),
      start_(std::chrono::steady_clock::now()),
      lookup_(std::move(lookup)),
      response_(response),
      done_(std::move(done)) {}

void LookupCall::Start() { Advance(); }

void LookupCall::Advance() {
  Done done;
  absl::Status status;
  {
    MutexLock lock(&mutex_);
    if (done_ == nullptr) return;
    StopWaiting();
    const absl::StatusOr<bool> waits = WaitForMissing();
    if (waits.ok() && *waits) return;
    status = waits.status();
    if (status.ok()) lookup_.Answer(response_);
    done = std::move(done_);
    done_ = nullptr;
  }
  done(status);
}

absl::StatusOr<bool> LookupCall::WaitForMissing() {
  while (true) {
    const absl::Duration waited = absl::FromChrono(std::chrono::steady_clock::now() - start_);
    const auto missing = lookup_.FindMissing(waited);
    if (!missing.has_value()) return false;
    absl::StatusOr<PresenceWaiters::Ticket> ticket =
        environment_->waiters->Wait(missing->key, [weak = weak_from_this()] {
          if (const std::shared_ptr<LookupCall> call = weak.lock()) call->OnWoken();
        });
    if (absl::IsUnavailable(ticket.status())) return false;  // Draining: what is there is the answer.
    if (!ticket.ok()) {
      environment_->metrics->RecordRejection(Rejection::kWaiters);
      return WithRetry(ticket.status(), kRetryDelay);
    }
    waiter_.emplace(missing->key, *ticket);
    // Unless it was stored before we waited.
    if (lookup_.IsMissing(*missing)) {
      timer_ = environment_->timer->Schedule(absl::Now() + (missing->wait - waited), [weak = weak_from_this()] {
        if (const std::shared_ptr<LookupCall> call = weak.lock()) call->OnWoken();
      });
      return true;
    }
    StopWaiting();
  }
}

// Not here: this is the thread of who stored the block, or the timer's.
void LookupCall::OnWoken() {
  if (environment_->workers->TryPost([self = shared_from_this()] { self->Advance(); })) return;
  Advance();  // The workers are behind; the lookup must not wait for ever.
}

void LookupCall::OnCancel() {
  Done done;
  {
    MutexLock lock(&mutex_);
    if (done_ == nullptr) return;
    StopWaiting();
    done = std::move(done_);
    done_ = nullptr;
  }
  done(absl::CancelledError("the call was cancelled"));
}

void LookupCall::StopWaiting() {
  if (waiter_.has_value()) environment_->waiters->Cancel(waiter_->first, waiter_->second);
  if (timer_.has_value()) environment_->timer->Cancel(*timer_);
  waiter_.reset();
  timer_.reset();
}

}  // namespace nqkv
