#include "client/connection.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/channel.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/create_channel_posix.h"
#include "grpcpp/security/credentials.h"
#include "grpcpp/support/channel_arguments.h"
#include "kernels/status_macros.h"

namespace nqkv::client {
namespace {

constexpr int kKeepaliveTimeMs = 30'000;
constexpr int kKeepaliveTimeoutMs = 10'000;

// No retries inside gRPC: its retry buffer may keep the caller's memory after the call.
grpc::ChannelArguments CommonArguments() {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(Channel::kMessageBytesMax);
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  return arguments;
}

absl::Status ConnectError(const std::string& path) {
  const int error = errno;
  return absl::UnavailableError(absl::StrCat(path, ": ", std::strerror(error)));
}

// A connected, non-blocking socket. A Unix socket connects at once or not at all.
absl::StatusOr<int> ConnectUnix(const std::string& path) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.data(), path.size());  // Its length was checked.
  const int socket_id = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (socket_id < 0) return ConnectError(path);
  if (connect(socket_id, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0) return socket_id;
  absl::Status status = ConnectError(path);
  close(socket_id);
  return status;
}

}  // namespace

std::shared_ptr<grpc::Channel> MakeGrpcChannel(const std::string& server) {
  grpc::ChannelArguments arguments = CommonArguments();
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

absl::StatusOr<std::shared_ptr<Connection>> Connection::Open(const std::string& server) {
  if (!absl::StartsWith(server, "unix:")) {
    return std::shared_ptr<Connection>(new Connection(MakeGrpcChannel(server), -1));
  }
  const std::string path = server.substr(5);
  NQKV_ASSIGN_OR_RETURN(const int socket_id, ConnectUnix(path));
  const int own = fcntl(socket_id, F_DUPFD_CLOEXEC, 0);
  if (own < 0) {
    absl::Status status = ConnectError(path);
    close(socket_id);
    return status;
  }
  grpc::ChannelArguments arguments = CommonArguments();
  arguments.SetString(GRPC_ARG_DEFAULT_AUTHORITY, "localhost");
  return std::shared_ptr<Connection>(
      new Connection(grpc::CreateCustomInsecureChannelFromFd("localhost", socket_id, arguments), own));
}

Connection::Connection(std::shared_ptr<grpc::Channel> channel, int socket)
    : channel_(std::move(channel)), stub_(v1::KvCache::NewStub(channel_)), generic_(channel_), socket_(socket) {}

Connection::~Connection() {
  if (socket_ >= 0) close(socket_);
}

bool Connection::broken() const {
  if (socket_ < 0) return false;
  pollfd file = {.fd = socket_, .events = POLLRDHUP, .revents = 0};
  return poll(&file, 1, 0) > 0;
}

void Connection::Break() {
  if (socket_ >= 0) shutdown(socket_, SHUT_RDWR);
}

}  // namespace nqkv::client
