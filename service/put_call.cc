#include "service/put_call.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "proto/rpc_status.h"

namespace nqkv {
namespace {

// A client that does not read its results stops being read itself.
constexpr int kResultsMax = 1'024;
// Payload that counts as progress: a client that sends a byte now and then does not hold its blocks for ever.
constexpr uint64_t kProgressBytes = uint64_t{64} << 10;
constexpr absl::Duration kRetryDelay = absl::Milliseconds(100);

}  // namespace

PutCall::PutCall(const CallEnvironment* environment, Transport* transport, Caller caller)
    : environment_(environment),
      start_(absl::Now()),
      caller_(std::move(caller)),
      transport_(transport),
      stream_(std::in_place, environment, caller_),
      progress_(start_) {}

void PutCall::Start() {
  MutexLock lock(&mutex_);
  WatchIdle(progress_ + absl::Seconds(environment_->limits.put_idle_seconds_max));
  Advance();
}

void PutCall::Refuse(const absl::Status& status) {
  MutexLock lock(&mutex_);
  Finish(status);
}

void PutCall::OnMessage(std::unique_ptr<IncomingMessage> message) {
  MutexLock lock(&mutex_);
  reading_ = false;
  if (!finished_ && status_.ok()) {
    absl::StatusOr<ByteBudget::Lease> lease = caller_.payload->Acquire(message->bytes());
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
  Advance();
}

void PutCall::OnWriteDone(bool ok) {
  MutexLock lock(&mutex_);
  writing_ = false;
  if (ok) {
    progress_ = absl::Now();
  } else {
    cancelled_ = true;
  }
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
  NoteProgress();
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

void PutCall::NoteProgress() {
  open_blocks_ = stream_->open_blocks();
  if (stream_->payload_bytes() < progress_bytes_ + kProgressBytes && stream_->ended_blocks() == progress_blocks_)
    return;
  progress_ = absl::Now();
  progress_bytes_ = stream_->payload_bytes();
  progress_blocks_ = stream_->ended_blocks();
}

void PutCall::WatchIdle(absl::Time due) {
  idle_ = environment_->timer->Schedule(due, [weak = weak_from_this()] {
    if (const std::shared_ptr<PutCall> call = weak.lock()) call->OnIdleDue();
  });
}

// One timer that is set again when it was early, rather than one for each message.
void PutCall::OnIdleDue() {
  MutexLock lock(&mutex_);
  if (finished_) return;
  const absl::Time now = absl::Now();
  const absl::Duration idle_max = absl::Seconds(environment_->limits.put_idle_seconds_max);
  const absl::Time due = progress_ + idle_max;
  if (working_) return WatchIdle(now + idle_max);  // The server's own slowness is not the client's.
  if (now < due) return WatchIdle(due);
  EndIdle();
}

void PutCall::EndIdle() {
  idle_.reset();
  environment_->metrics->RecordRejection(Rejection::kPutIdle);
  if (status_.ok()) {
    status_ = absl::DeadlineExceededError(absl::StrCat("no progress for ", environment_->limits.put_idle_seconds_max,
                                                       " s (--max_put_idle_seconds) while ", open_blocks_,
                                                       " blocks were open"));
  }
  if (writing_) {  // The client does not read: nothing else ends the write.
    cancelled_ = true;
    transport_->Cancel();
  }
  Advance();
}

void PutCall::Finish(const absl::Status& status) {
  finished_ = true;
  if (idle_.has_value()) environment_->timer->Cancel(*idle_);
  waiting_.reset();
  waiting_lease_.Reset();
  stream_.reset();  // Open blocks go now, not when the transport lets go of the call.
  environment_->metrics->RecordRpc(Rpc::kPut, status.code(), absl::Now() - start_);
  std::exchange(transport_, nullptr)->Finish(status);
}

}  // namespace nqkv
