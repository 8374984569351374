#include "service/put_call.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "proto/rpc_status.h"

namespace nqkv {
namespace {

// A client that does not read its results stops being read itself.
constexpr int kResultsMax = 1'024;
constexpr absl::Duration kRetryDelay = absl::Milliseconds(100);

}  // namespace

PutCall::PutCall(const CallEnvironment* environment, Transport* transport, const Tenant& tenant)
    : environment_(environment),
      start_(absl::Now()),
      budget_(std::max(environment->budget->limit_bytes() / 2, environment->limits.message_bytes_max),
              environment->budget.get()),
      transport_(transport),
      stream_(std::in_place, environment, &budget_, tenant) {}

void PutCall::Start() {
  MutexLock lock(&mutex_);
  Advance();
}

void PutCall::Refuse(const absl::Status& status) {
  MutexLock lock(&mutex_);
  Finish(status);
}

void PutCall::OnMessage(std::unique_ptr<IncomingMessage> message) {
  MutexLock lock(&mutex_);
  reading_ = false;
  StopWatchingIdle();
  if (!finished_ && status_.ok()) {
    absl::StatusOr<ByteBudget::Lease> lease = budget_.Acquire(message->bytes());
    if (lease.ok()) {
      waiting_ = std::move(message);
      waiting_lease_ = *std::move(lease);
    } else {
      environment_->metrics->RecordRejection(Rejection::kBytesInFlight);
      status_ = lease.status();
    }
  }
  Advance();
}

void PutCall::OnReadsDone() {
  MutexLock lock(&mutex_);
  reading_ = false;
  half_closed_ = true;
  StopWatchingIdle();
  Advance();
}

void PutCall::OnWriteDone(bool ok) {
  MutexLock lock(&mutex_);
  writing_ = false;
  if (!ok) cancelled_ = true;
  Advance();
}

void PutCall::OnCancel() {
  MutexLock lock(&mutex_);
  cancelled_ = true;
  Advance();
}

void PutCall::Advance() {
  if (finished_) return;
  if (cancelled_ && status_.ok()) status_ = absl::CancelledError("the call was cancelled");
  if (!status_.ok()) {
    if (working_ || writing_) return;
    if (!cancelled_ && results_.results_size() > 0) {
      StartWrite();  // Blocks that ended before the error keep their result.
    } else {
      Finish(status_);
    }
    return;
  }
  if (half_closed_ && !ended_ && !working_ && waiting_ == nullptr) {
    stream_->End(&results_);
    ended_ = true;
  }
  if (!writing_ && results_.results_size() > 0) StartWrite();
  if (ended_ && !writing_) return Finish(absl::OkStatus());
  if (!working_ && waiting_ != nullptr && results_.results_size() < kResultsMax) StartWork();
  if (!reading_ && !half_closed_ && waiting_ == nullptr && status_.ok()) {
    reading_ = true;
    transport_->StartRead();
  }
  if (!status_.ok()) return Advance();  // The workers' queue is full.
  WatchIdle();
}

void PutCall::StartWork() {
  working_ = true;
  const bool posted = environment_->workers->TryPost(
      [self = shared_from_this(), message = std::move(waiting_), lease = std::move(waiting_lease_)]() mutable {
        self->Work(std::move(message), std::move(lease));
      });
  if (posted) return;
  working_ = false;
  environment_->metrics->RecordRejection(Rejection::kQueueFull);
  status_ = WithRetry(absl::ResourceExhaustedError("too many calls wait for a codec thread"), kRetryDelay);
}

void PutCall::Work(std::unique_ptr<IncomingMessage> message, ByteBudget::Lease lease) {
  v1::PutResponse results;
  const absl::Status status = stream_->Take(*message, &results);
  message.reset();
  lease.Reset();
  MutexLock lock(&mutex_);
  working_ = false;
  open_blocks_ = stream_->open_blocks();
  results_.MergeFrom(results);
  if (status_.ok()) status_ = status;
  if (absl::IsResourceExhausted(status)) environment_->metrics->RecordRejection(Rejection::kBytesInFlight);
  Advance();
}

void PutCall::StartWrite() {
  writing_ = true;
  transport_->StartWrite(results_);
  results_.Clear();
}

void PutCall::WatchIdle() {
  if (idle_.has_value() || !reading_ || working_ || open_blocks_ == 0) return;
  const absl::Time due = absl::Now() + absl::Seconds(environment_->limits.put_idle_seconds_max);
  idle_ = environment_->timer->Schedule(due, [weak = weak_from_this()] {
    if (const std::shared_ptr<PutCall> call = weak.lock()) call->OnIdle();
  });
}

void PutCall::StopWatchingIdle() {
  if (idle_.has_value()) environment_->timer->Cancel(*idle_);
  idle_.reset();
}

void PutCall::OnIdle() {
  MutexLock lock(&mutex_);
  if (finished_ || !idle_.has_value() || absl::Now() < idle_->first) return;
  idle_.reset();
  if (!reading_ || working_ || open_blocks_ == 0) return;
  environment_->metrics->RecordRejection(Rejection::kPutIdle);
  if (status_.ok()) {
    status_ = absl::DeadlineExceededError(absl::StrCat("nothing came for ", environment_->limits.put_idle_seconds_max,
                                                       " s while ", open_blocks_, " blocks were open"));
  }
  Advance();
}

void PutCall::Finish(const absl::Status& status) {
  finished_ = true;
  StopWatchingIdle();
  waiting_.reset();
  waiting_lease_.Reset();
  stream_.reset();  // Open blocks go now, not when the transport lets go of the call.
  environment_->metrics->RecordRpc(Rpc::kPut, status.code(), absl::Now() - start_);
  std::exchange(transport_, nullptr)->Finish(status);
}

}  // namespace nqkv
