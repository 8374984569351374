#include "client/channel.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace nqkv::client {
namespace {

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

absl::StatusOr<std::shared_ptr<Channel>> Channel::Create(const std::string& server) {
  if (absl::Status valid = ValidateServer(server); !valid.ok()) return valid;
  return std::shared_ptr<Channel>(new Channel(server));
}

absl::StatusOr<std::shared_ptr<Connection>> Channel::Connect() {
  std::shared_ptr<Connection> present = connection_.load();
  if (present != nullptr && !present->broken()) return present;
  absl::StatusOr<std::shared_ptr<Connection>> fresh = Connection::Open(server_);
  if (!fresh.ok()) return fresh;
  // Another thread may have been faster: then all use its connection.
  if (connection_.compare_exchange_strong(present, *fresh) || present == nullptr) return fresh;
  return present;
}

void Channel::Discard(std::shared_ptr<Connection> connection) {
  // Over TCP gRPC heals it.
  if (connection->heals_itself()) return;
  connection_.compare_exchange_strong(connection, nullptr);
}

void Channel::PollingClock::SleepFor(std::chrono::nanoseconds duration) {
  const TimePoint end = Now() + duration;
  const std::shared_ptr<Connection> connection = channel_->connection_.load();
  if (connection != nullptr && connection->heals_itself()) {
    connection->channel()->WaitForConnected(std::chrono::system_clock::now() + duration);
  }
  // A connection that is there at once is no reason to hurry: the server asked for the time, or all clients come now.
  if (const auto left = end - Now(); left > std::chrono::nanoseconds(0)) Clock::Real()->SleepFor(left);
}

void SetDeadline(grpc::ClientContext* context, TimePoint deadline, const Clock& clock) {
  const auto left = std::max(deadline - clock.Now(), TimePoint::duration::zero());
  context->set_deadline(std::chrono::system_clock::now() + left);
}

}  // namespace nqkv::client
