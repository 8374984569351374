#include "client/channel.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "grpcpp/support/channel_arguments.h"

namespace nqkv::client {
namespace {

constexpr int kKeepaliveTimeMs = 30'000;
constexpr int kKeepaliveTimeoutMs = 10'000;
constexpr size_t kUnixPathBytesMax = 107;  // sun_path with its terminating zero.

bool IsHostPort(absl::string_view server) {
  const size_t colon = server.rfind(':');
  if (colon == absl::string_view::npos || colon == 0) return false;
  const absl::string_view host = server.substr(0, colon);
  uint32_t port = 0;
  if (!absl::SimpleAtoi(server.substr(colon + 1), &port) || port == 0 || port > 65535) return false;
  if (host.front() == '[') return host.back() == ']' && host.size() > 2;
  return host.find_first_of(":/ []") == absl::string_view::npos;
}

class ChannelClock : public Clock {
 public:
  explicit ChannelClock(std::shared_ptr<grpc::Channel> channel) : channel_(std::move(channel)) {}

  TimePoint Now() const override { return Clock::Real()->Now(); }
  void SleepFor(std::chrono::nanoseconds duration) override {
    const TimePoint end = Now() + duration;
    channel_->WaitForConnected(std::chrono::system_clock::now() + duration);
    // A connection that is there at once is no reason to hurry: the server asked for the time, or all clients come now.
    if (const auto left = end - Now(); left > std::chrono::nanoseconds(0)) Clock::Real()->SleepFor(left);
  }

 private:
  std::shared_ptr<grpc::Channel> channel_;
};

}  // namespace

absl::Status ValidateServer(const std::string& server) {
  if (absl::StartsWith(server, "unix:")) {
    const size_t path_bytes = server.size() - 5;
    if (path_bytes < 2 || server[5] != '/') {
      return absl::InvalidArgumentError(absl::StrCat("server: '", server, "' has no absolute path after unix:"));
    }
    if (path_bytes > kUnixPathBytesMax) {
      return absl::InvalidArgumentError(absl::StrCat("server: '", server, "' is longer than a socket path can be"));
    }
    return absl::OkStatus();
  }
  if (IsHostPort(server)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("server: '", server, "' is neither host:port nor unix:/path"));
}

std::shared_ptr<grpc::Channel> MakeGrpcChannel(const std::string& server) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(Channel::kMessageBytesMax);
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 500);
  // Also sets TCP_USER_TIMEOUT, so that a peer which stopped reading cannot keep borrowed memory for ever.
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveTimeMs);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  // Clients of one process do not share a connection, and so not its flow control.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return grpc::CreateCustomChannel(server, grpc::InsecureChannelCredentials(), arguments);
}

absl::StatusOr<std::shared_ptr<Channel>> Channel::Create(const std::string& server) {
  if (absl::Status valid = ValidateServer(server); !valid.ok()) return valid;
  return std::shared_ptr<Channel>(new Channel(server, MakeGrpcChannel(server)));
}

Channel::Channel(const std::string& server, const std::shared_ptr<grpc::Channel>& channel)
    : server_(server),
      clock_(std::make_unique<ChannelClock>(channel)),
      stub_(v1::KvCache::NewStub(channel)),
      generic_(channel) {}

void SetDeadline(grpc::ClientContext* context, TimePoint deadline, const Clock& clock) {
  const auto left = std::max(deadline - clock.Now(), TimePoint::duration::zero());
  context->set_deadline(std::chrono::system_clock::now() + left);
}

}  // namespace nqkv::client
