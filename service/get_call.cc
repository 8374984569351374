#include "service/get_call.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/status_macros.h"
#include "proto/rpc_status.h"
#include "service/request_parser.h"

namespace nqkv {
namespace {

constexpr absl::Duration kRetryDelay = absl::Milliseconds(100);

}  // namespace

GetCall::GetCall(const CallEnvironment* environment, Transport* transport)
    : environment_(environment), start_(absl::Now()), transport_(transport) {}

void GetCall::Start(Caller caller, const v1::GetRequest& request) {
  MutexLock lock(&mutex_);
  if (finished_) return;  // Cancelled while the request was read.
  caller_ = std::move(caller);
  const absl::Status status = Prepare(request);
  if (!status.ok()) return Finish(status);
  const absl::Time due = start_ + absl::Seconds(environment_->limits.read_seconds_max);
  too_long_ = environment_->timer->Schedule(due, [weak = weak_from_this()] {
    if (const std::shared_ptr<GetCall> call = weak.lock()) call->OnTooLong();
  });
  Advance();
}

void GetCall::Start(const Caller& caller, const RequestShape* shape, std::unique_ptr<IncomingMessage> message) {
  if (const absl::Status status = Admit(caller, message.get()); !status.ok()) return End(status);
  if (message->bytes() <= kInlineRequestBytesMax) return Read(caller, *shape, *message);
  const bool posted =
      environment_->workers->TryPost([self = shared_from_this(), caller, shape, message = std::move(message)] {
        self->Read(caller, *shape, *message);
      });
  if (posted) return;
  environment_->metrics->RecordRejection(Rejection::kQueueFull);
  End(WithRetry(absl::ResourceExhaustedError("too many calls wait for a codec thread"), kRetryDelay));
}

absl::Status GetCall::Admit(const Caller& caller, const IncomingMessage* message) {
  if (message == nullptr) return absl::InvalidArgumentError("malformed message: it cannot be unpacked");
  MutexLock lock(&mutex_);
  NQKV_ASSIGN_OR_RETURN(ByteBudget::Lease lease, AdmitRequest(*environment_, caller.payload.get(), *message));
  caller_ = caller;
  request_leases_.push_back(std::move(lease));
  return absl::OkStatus();
}

void GetCall::Read(const Caller& caller, const RequestShape& shape, const IncomingMessage& message) {
  v1::GetRequest request;
  absl::StatusOr<ByteBudget::Lease> lease = ParseRequest(*environment_, caller.payload.get(), shape, message, &request);
  if (!lease.ok()) return End(lease.status());
  {
    MutexLock lock(&mutex_);
    if (!finished_) request_leases_.push_back(*std::move(lease));
  }
  Start(caller, request);
}

void GetCall::End(const absl::Status& status) {
  MutexLock lock(&mutex_);
  if (!finished_) Finish(status);
}

void GetCall::Refuse(const absl::Status& status) {
  MutexLock lock(&mutex_);
  Finish(status);
}

absl::Status GetCall::Prepare(const v1::GetRequest& request) {
  NQKV_ASSIGN_OR_RETURN(stream_, GetStream::Open(environment_, caller_.tenant, request));
  absl::StatusOr<ByteBudget::Lease> lease = caller_.payload->Acquire(stream_->buffer_bytes_max());
  if (!lease.ok()) {
    environment_->metrics->RecordRejection(Rejection::kBytesInFlight);
    return lease.status();
  }
  first_lease_ = std::make_shared<PayloadLease>(PayloadLease{caller_.payload, *std::move(lease)});
  return absl::OkStatus();
}

std::shared_ptr<PayloadLease> GetCall::LeaseForNext() {
  const bool is_free = first_lease_.use_count() == 1;
  if (is_free || !stream_->needs_buffer()) return first_lease_;
  if (auto lease = caller_.payload->TryAcquire(stream_->buffer_bytes_max())) {
    return std::make_shared<PayloadLease>(PayloadLease{caller_.payload, *std::move(lease)});
  }
  // With no write to wait for, what uses the first lease is on its way out of the transport.
  return writing_ ? nullptr : first_lease_;
}

void GetCall::OnWriteDone(bool ok) {
  MutexLock lock(&mutex_);
  writing_ = false;
  if (!ok) cancelled_ = true;
  Advance();
}

void GetCall::OnCancel() {
  MutexLock lock(&mutex_);
  cancelled_ = true;
  Advance();
}

void GetCall::OnTooLong() {
  MutexLock lock(&mutex_);
  if (finished_) return;
  environment_->metrics->RecordRejection(Rejection::kReadTooLong);
  status_ = absl::DeadlineExceededError(
      absl::StrCat("the read took longer than ", environment_->limits.read_seconds_max, " s (--max_read_seconds)"));
  cancelled_ = true;
  if (writing_) transport_->Cancel();  // The client does not read: nothing else ends the write.
  Advance();
}

void GetCall::Advance() {
  if (finished_) return;
  if (cancelled_ && status_.ok()) status_ = absl::CancelledError("the call was cancelled");
  if (cancelled_) ready_.reset();
  if (!writing_ && ready_.has_value()) {
    writing_ = true;
    transport_->StartWrite(*std::exchange(ready_, std::nullopt));
  }
  if (working_) return;
  if (status_.ok() && !ready_.has_value() && !stream_->done()) return StartWork();
  if (!writing_ && !ready_.has_value()) Finish(status_);
}

void GetCall::StartWork() {
  std::shared_ptr<PayloadLease> lease = LeaseForNext();
  if (lease == nullptr) return;
  working_ = true;
  if (environment_->workers->TryPost(
          [self = shared_from_this(), lease = std::move(lease)]() mutable { self->Work(std::move(lease)); })) {
    return;
  }
  working_ = false;
  environment_->metrics->RecordRejection(Rejection::kQueueFull);
  status_ = WithRetry(absl::ResourceExhaustedError("too many calls wait for a codec thread"), kRetryDelay);
  Advance();
}

void GetCall::Work(std::shared_ptr<PayloadLease> lease) {
  absl::StatusOr<OutgoingMessage> message = stream_->Next(lease);
  lease.reset();  // The message's payload holds it, where there is one.
  MutexLock lock(&mutex_);
  working_ = false;
  if (message.ok()) {
    ready_ = *std::move(message);
  } else if (status_.ok()) {
    status_ = message.status();
  }
  Advance();
}

void GetCall::Finish(const absl::Status& status) {
  finished_ = true;
  if (too_long_.has_value()) environment_->timer->Cancel(*too_long_);
  stream_.reset();  // Pins go now, not when the transport lets go of the call.
  first_lease_.reset();
  request_leases_.clear();
  environment_->metrics->RecordRpc(Rpc::kGet, status.code(), absl::Now() - start_);
  std::exchange(transport_, nullptr)->Finish(status);
}

}  // namespace nqkv
