// The connection to one server, tuned for bulk.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "client/retry.h"
#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"
#include "grpcpp/generic/generic_stub.h"
#include "nqkv/v1/kv_cache.grpc.pb.h"

namespace nqkv::client {

// INVALID_ARGUMENT unless `server` is "host:port", "[v6]:port" or "unix:/path".
absl::Status ValidateServer(const std::string& server);

// Messages up to kMessageBytesMax, no retries inside gRPC (its retry buffer may keep the caller's memory after the
// call), quick reconnects, no HTTP proxy. Connects on first use.
std::shared_ptr<grpc::Channel> MakeGrpcChannel(const std::string& server);

// Thread-safe.
class Channel {
 public:
  // What the client takes in one message, whatever the server allows.
  static constexpr int kMessageBytesMax = 64 << 20;

  static absl::StatusOr<std::shared_ptr<Channel>> Create(const std::string& server);

  v1::KvCache::Stub& stub() { return *stub_; }
  grpc::GenericStub& generic() { return generic_; }
  // Real time, whose waits also drive the connection: gRPC does not get on with a handshake while no call polls, so a
  // plain sleep between two attempts would leave the second as disconnected as the first.
  Clock* clock() { return clock_.get(); }
  const std::string& server() const { return server_; }

 private:
  Channel(const std::string& server, const std::shared_ptr<grpc::Channel>& channel);

  std::string server_;
  std::unique_ptr<Clock> clock_;
  std::unique_ptr<v1::KvCache::Stub> stub_;
  grpc::GenericStub generic_;
};

// Makes `context` end at `deadline`, which lies on the clock of the client, not on gRPC's.
void SetDeadline(grpc::ClientContext* context, TimePoint deadline, const Clock& clock);

}  // namespace nqkv::client
