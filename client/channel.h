// The way to one server: a connection at a time, a new one when the last broke.
#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "client/connection.h"
#include "client/retry.h"
#include "grpcpp/client_context.h"

namespace nqkv::client {

// INVALID_ARGUMENT unless `server` is "host:port", "[v6]:port" or "unix:/path".
absl::Status ValidateServer(const std::string& server);

// Thread-safe.
class Channel {
 public:
  // What the client takes in one message, whatever the server allows.
  static constexpr int kMessageBytesMax = 64 << 20;

  // Does not connect. Errors: INVALID_ARGUMENT (see ValidateServer).
  static absl::StatusOr<std::shared_ptr<Channel>> Create(const std::string& server);

  // The connection, a new one when there is none that works. Errors: UNAVAILABLE.
  absl::StatusOr<std::shared_ptr<Connection>> Connect();
  // Makes the next Connect open another one, after a call on this one ended with UNAVAILABLE.
  void Discard(std::shared_ptr<Connection> connection);

  // Real time, whose waits also drive the connection: gRPC does not get on with a handshake while no call polls, so a
  // plain sleep between two attempts would leave the second as disconnected as the first.
  Clock* clock() { return &clock_; }

 private:
  class PollingClock : public Clock {
   public:
    explicit PollingClock(Channel* channel) : channel_(channel) {}
    TimePoint Now() const override { return Clock::Real()->Now(); }
    void SleepFor(std::chrono::nanoseconds duration) override;

   private:
    Channel* channel_;
  };

  explicit Channel(const std::string& server) : server_(server), clock_(this) {}

  const std::string server_;
  PollingClock clock_;
  std::atomic<std::shared_ptr<Connection>> connection_;
};

// Makes `context` end at `deadline`, which lies on the clock of the client, not on gRPC's.
void SetDeadline(grpc::ClientContext* context, TimePoint deadline, const Clock& clock);

}  // namespace nqkv::client
