#include "service/session_call.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/status_macros.h"
#include "proto/rpc_status.h"
#include "service/request_check.h"

namespace nqkv {
namespace {

constexpr size_t kOwnerBytesMax = 256;
constexpr absl::Duration kRetryDelay = absl::Seconds(1);

}  // namespace

SessionCall::SessionCall(const CallEnvironment* environment, Transport* transport, const Tenant& tenant)
    : environment_(environment), tenant_(tenant), start_(absl::Now()), transport_(transport) {}

void SessionCall::Start() {
  MutexLock lock(&mutex_);
  WatchSilence();
  transport_->StartRead();
}

void SessionCall::Refuse(const absl::Status& status) {
  MutexLock lock(&mutex_);
  Finish(status);
}

void SessionCall::OnMessage(const v1::SessionRequest& request) {
  MutexLock lock(&mutex_);
  if (finished_) return;
  ++messages_;
  absl::Status status = CheckRequest(request);
  if (status.ok()) status = speaker_.has_value() ? Hear(request) : Open(request);
  if (!status.ok()) return Finish(status);
  if (request.close()) {
    environment_->leases->CloseSession(*speaker_);
    return Finish(absl::OkStatus());
  }
  WatchSilence();
  v1::SessionResponse response;
  response.set_session_id(speaker_->session_id);
  response.set_heartbeat_seconds(environment_->limits.heartbeat_seconds);
  response.set_session_grace_seconds(environment_->limits.session_grace_seconds);
  writing_ = true;
  transport_->StartWrite(response);
}

absl::Status SessionCall::Open(const v1::SessionRequest& request) {
  if (request.owner().size() > kOwnerBytesMax) {
    return FieldError("owner", absl::StrCat(request.owner().size(), " bytes, at most ", kOwnerBytesMax));
  }
  absl::StatusOr<LeaseTable::Speaker> speaker =
      request.session_id().empty() ? environment_->leases->OpenSession(tenant_.id, request.owner())
                                   : environment_->leases->ResumeSession(tenant_.id, request.session_id());
  if (absl::IsResourceExhausted(speaker.status())) {
    environment_->metrics->RecordRejection(Rejection::kSessions);
    return WithRetry(speaker.status(), kRetryDelay);
  }
  NQKV_RETURN_IF_ERROR(speaker.status());
  speaker_ = *std::move(speaker);
  return absl::OkStatus();
}

absl::Status SessionCall::Hear(const v1::SessionRequest& request) {
  if (!request.owner().empty()) return FieldError("owner", "only the first message of a stream may set it");
  if (!request.session_id().empty() && request.session_id() != speaker_->session_id) {
    return FieldError("session_id", "not that of the stream's first message");
  }
  return environment_->leases->Hear(*speaker_);
}

void SessionCall::OnBadMessage(const absl::Status& status) {
  MutexLock lock(&mutex_);
  if (!finished_) Finish(status);
}

// Broken or half closed: the session may be taken over.
void SessionCall::OnReadsDone() {
  MutexLock lock(&mutex_);
  if (!finished_) Finish(absl::OkStatus());
}

void SessionCall::OnWriteDone(bool ok) {
  MutexLock lock(&mutex_);
  writing_ = false;
  if (finished_) return;
  if (ending_) return Finish(end_);
  if (!ok) return Finish(absl::CancelledError("the call was cancelled"));
  transport_->StartRead();
}

void SessionCall::OnCancel() {
  MutexLock lock(&mutex_);
  if (!finished_) Finish(absl::CancelledError("the call was cancelled"));
}

void SessionCall::WatchSilence() {
  if (silence_.has_value()) environment_->timer->Cancel(*silence_);
  const absl::Time due = absl::Now() + absl::Seconds(environment_->limits.session_grace_seconds);
  silence_ = environment_->timer->Schedule(due, [weak = weak_from_this(), messages = messages_] {
    if (const std::shared_ptr<SessionCall> call = weak.lock()) call->OnSilence(messages);
  });
}

void SessionCall::OnSilence(uint64_t messages) {
  MutexLock lock(&mutex_);
  if (finished_ || messages != messages_) return;  // A message came just then.
  Finish(absl::DeadlineExceededError(
      absl::StrCat("nothing was heard for ", environment_->limits.session_grace_seconds, " s: the session has ended")));
}

// Waits for a write under way, which it makes end.
void SessionCall::Finish(const absl::Status& status) {
  if (writing_) {
    if (!std::exchange(ending_, true)) {
      end_ = status;
      transport_->Cancel();
    }
    return;
  }
  finished_ = true;
  if (silence_.has_value()) environment_->timer->Cancel(*silence_);
  environment_->metrics->RecordRpc(Rpc::kSession, status.code(), absl::Now() - start_);
  std::exchange(transport_, nullptr)->Finish(status);
}

}  // namespace nqkv
