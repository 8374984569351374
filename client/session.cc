#include "client/session.h"

#include <utility>

#include "kernels/status_macros.h"
#include "proto/rpc_status.h"

namespace nqkv::client {
namespace {

// Between two attempts to open a stream.
constexpr std::chrono::milliseconds kRetryTime{100};
// For the server to take a close.
constexpr std::chrono::milliseconds kCloseTime{1000};

std::chrono::nanoseconds FromSeconds(double seconds) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::duration<double>(seconds));
}

}  // namespace

Session::Impl::Impl(std::shared_ptr<Channel> channel, const std::string& owner)
    : channel_(std::move(channel)), owner_(owner) {}

Session::Impl::~Impl() {
  if (!thread_.joinable()) return;
  {
    std::unique_lock lock(mutex_);
    closing_ = true;
    changed_.notify_all();
    changed_.wait_for(lock, kCloseTime, [this] { return ended_; });
    if (context_ != nullptr) context_->TryCancel();
  }
  thread_.join();
}

absl::Status Session::Impl::Open(TimePoint deadline) {
  open_by_ = deadline;
  thread_ = std::thread([this] { Run(); });
  std::unique_lock lock(mutex_);
  const bool done = changed_.wait_until(lock, deadline, [this] { return ended_ || !id_.empty(); });
  if (done) return status_;
  closing_ = true;
  if (context_ != nullptr) context_->TryCancel();
  return last_error_.ok() ? absl::DeadlineExceededError("the server did not open the session in time") : last_error_;
}

std::string Session::Impl::id() const {
  std::lock_guard lock(mutex_);
  return id_;
}

absl::Status Session::Impl::status() const {
  std::lock_guard lock(mutex_);
  return status_;
}

void Session::Impl::Run() {
  while (true) {
    const absl::Status status = RunStream();
    if (!ShouldTryAgain(status)) return End(status);
    if (!WaitFor(std::chrono::nanoseconds(0))) return End(status);
    channel_->clock()->SleepFor(kRetryTime);  // Which drives the connection too.
  }
}

absl::Status Session::Impl::RunStream() {
  NQKV_ASSIGN_OR_RETURN(const std::shared_ptr<Connection> connection, channel_->Connect());
  grpc::ClientContext context;
  v1::SessionRequest first;
  {
    std::lock_guard lock(mutex_);
    if (closing_) return absl::OkStatus();
    context_ = &context;
    first.set_session_id(id_);
    if (id_.empty()) first.set_owner(owner_);
  }
  const std::unique_ptr<Stream> stream = connection->stub().Session(&context);
  bool closing = false;
  for (bool alive = Ask(stream.get(), first); alive && !closing;) {
    closing = !WaitFor(heartbeat_);
    if (!closing) alive = Ask(stream.get(), {});
  }
  if (closing) {
    v1::SessionRequest close;
    close.set_close(true);
    stream->Write(close);
    stream->WritesDone();
  }
  absl::Status status = FromGrpc(stream->Finish());
  if (absl::IsUnavailable(status)) channel_->Discard(connection);
  std::lock_guard lock(mutex_);
  context_ = nullptr;
  return status;
}

bool Session::Impl::Ask(Stream* stream, const v1::SessionRequest& request) {
  v1::SessionResponse response;
  if (!stream->Write(request) || !stream->Read(&response)) return false;
  std::lock_guard lock(mutex_);
  id_ = response.session_id();
  heartbeat_ = FromSeconds(response.heartbeat_seconds());
  grace_ = FromSeconds(response.session_grace_seconds());
  heard_ = channel_->clock()->Now();
  changed_.notify_all();
  return true;
}

bool Session::Impl::WaitFor(std::chrono::nanoseconds duration) {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, duration, [this] { return closing_; });
  return !closing_;
}

// As long as the session may still be there, or may still be opened.
bool Session::Impl::ShouldTryAgain(const absl::Status& status) {
  std::lock_guard lock(mutex_);
  last_error_ = status;
  if (closing_ || absl::IsAborted(status) || absl::IsInvalidArgument(status) || absl::IsUnimplemented(status)) {
    return false;
  }
  return channel_->clock()->Now() < (id_.empty() ? open_by_ : heard_ + grace_);
}

void Session::Impl::End(const absl::Status& status) {
  std::lock_guard lock(mutex_);
  ended_ = true;
  if (!closing_) {
    status_ = status.ok() ? absl::UnavailableError("the server ended the session's stream") : status;
  }
  changed_.notify_all();
}

Session::Session(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Session::~Session() = default;

std::string Session::id() const { return impl_->id(); }
absl::Status Session::status() const { return impl_->status(); }

}  // namespace nqkv::client
