#include "service/unary_call.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/status_macros.h"
#include "proto/rpc_status.h"
#include "spdlog/spdlog.h"

namespace nqkv {
namespace {

constexpr absl::Duration kRetryDelay = absl::Milliseconds(100);

}  // namespace

UnaryCall::UnaryCall(const CallEnvironment* environment, Transport* transport, Caller caller, const UnaryMethod* method)
    : environment_(environment),
      caller_(std::move(caller)),
      method_(method),
      start_(absl::Now()),
      transport_(transport) {}

void UnaryCall::Start(std::unique_ptr<IncomingMessage> message) {
  if (const absl::Status status = Enter(message.get()); !status.ok()) return Finish(status, "");
  const bool is_large = message->bytes() > kInlineRequestBytesMax;
  if (!is_large && !method_->is_slow) return Run(std::move(message));
  const bool posted = environment_->workers->TryPost(
      [self = shared_from_this(), message = std::move(message)]() mutable { self->Run(std::move(message)); });
  if (posted) return;
  environment_->metrics->RecordRejection(Rejection::kQueueFull);
  Finish(WithRetry(absl::ResourceExhaustedError("too many calls wait for a worker thread"), kRetryDelay), "");
}

absl::Status UnaryCall::Enter(const IncomingMessage* message) {
  MutexLock lock(&mutex_);
  NQKV_ASSIGN_OR_RETURN(CallGate::Pass pass, environment_->gate->Enter());
  pass_.emplace(std::move(pass));
  if (message == nullptr) return absl::InvalidArgumentError("malformed message: it cannot be unpacked");
  NQKV_ASSIGN_OR_RETURN(ByteBudget::Lease lease, AdmitRequest(*environment_, caller_.payload.get(), *message));
  leases_.push_back(std::move(lease));
  return absl::OkStatus();
}

void UnaryCall::Run(std::unique_ptr<IncomingMessage> message) {
  if (method_->begin != nullptr) return RunWaiting(std::move(message));
  ByteBudget::Lease lease;
  absl::StatusOr<std::string> reply = method_->answer(caller_.tenant, caller_.payload.get(), *message, &lease);
  message.reset();
  {
    MutexLock lock(&mutex_);
    leases_.push_back(std::move(lease));
  }
  if (reply.ok()) {
    Finish(absl::OkStatus(), *std::move(reply));
  } else {
    Finish(reply.status(), "");
  }
}

void UnaryCall::RunWaiting(std::unique_ptr<IncomingMessage> message) {
  ByteBudget::Lease lease;
  auto done = [self = shared_from_this()](absl::StatusOr<std::string> reply) {
    reply.ok() ? self->Finish(absl::OkStatus(), *std::move(reply)) : self->Finish(reply.status(), "");
  };
  absl::StatusOr<std::shared_ptr<LookupCall>> call =
      method_->begin(caller_.tenant, caller_.payload.get(), *message, &lease, std::move(done));
  message.reset();
  bool cancelled = false;
  {
    MutexLock lock(&mutex_);
    leases_.push_back(std::move(lease));
    if (call.ok()) waiting_ = *call;
    cancelled = cancelled_;
  }
  if (!call.ok()) return Finish(call.status(), "");
  cancelled ? (*call)->OnCancel() : (*call)->Start();
}

void UnaryCall::OnCancel() {
  std::shared_ptr<LookupCall> waiting;
  {
    MutexLock lock(&mutex_);
    cancelled_ = true;
    waiting = waiting_;
  }
  if (waiting != nullptr) waiting->OnCancel();
}

void UnaryCall::Finish(const absl::Status& status, std::string reply) {
  environment_->metrics->RecordRpc(method_->rpc, status.code(), absl::Now() - start_);
  if (!status.ok() && spdlog::should_log(spdlog::level::debug)) {
    spdlog::debug("{} ended: {}", std::string(RpcName(method_->rpc)), status.ToString());
  }
  Transport* transport = nullptr;
  {
    MutexLock lock(&mutex_);
    transport = transport_;
    const absl::Time due = absl::Now() + absl::Seconds(environment_->limits.read_seconds_max);
    too_long_ = environment_->timer->Schedule(due, [weak = weak_from_this()] {
      if (const std::shared_ptr<UnaryCall> call = weak.lock()) call->OnTooLong();
    });
  }
  transport->Finish(status, std::move(reply));
}

void UnaryCall::OnTooLong() {
  MutexLock lock(&mutex_);
  if (transport_ == nullptr) return;
  environment_->metrics->RecordRejection(Rejection::kReadTooLong);
  transport_->Cancel();
}

void UnaryCall::OnDone() {
  MutexLock lock(&mutex_);
  transport_ = nullptr;
  waiting_.reset();
  if (too_long_.has_value()) environment_->timer->Cancel(*too_long_);
  leases_.clear();
}

}  // namespace nqkv
