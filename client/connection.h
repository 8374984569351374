// One connection to a server.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "grpcpp/channel.h"
#include "grpcpp/generic/generic_stub.h"
#include "nqkv/v1/kv_cache.grpc.pb.h"

namespace nqkv::client {

// Over TCP gRPC connects, and connects again, by itself. A Unix socket is connected here, since only who owns a
// descriptor can break the connection: gRPC keeps what it has begun to write, the caller's memory among it, for as long
// as the peer does not read. (TCP has a timeout of its own for that.) Thread-safe.
class Connection {
 public:
  // `server` is valid. Blocks for a Unix socket only, and not for long.
  //
  // Errors:
  //   UNAVAILABLE  nobody listens on the Unix socket.
  static absl::StatusOr<std::shared_ptr<Connection>> Open(const std::string& server);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  v1::KvCache::Stub& stub() { return *stub_; }
  grpc::GenericStub& generic() { return generic_; }
  const std::shared_ptr<grpc::Channel>& channel() const { return channel_; }

  // Whether gRPC connects it again by itself, that is over TCP.
  bool heals_itself() const { return socket_ < 0; }
  // Whether the peer has gone for good. Over TCP: never.
  bool broken() const;
  // Ends every call on it. Over TCP: does nothing.
  void Break();

 private:
  Connection(std::shared_ptr<grpc::Channel> channel, int socket);

  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::KvCache::Stub> stub_;
  grpc::GenericStub generic_;
  int socket_;  // A descriptor of our own for the Unix socket that gRPC has; -1 over TCP.
};

// As Connection's over TCP, for services and sockets of any kind.
std::shared_ptr<grpc::Channel> MakeGrpcChannel(const std::string& server);

}  // namespace nqkv::client
