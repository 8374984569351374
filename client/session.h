// Keeps a session alive: one thread that sends heartbeats over a stream, and takes the session over again on a new
// stream when that breaks.
#pragma once

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "client/channel.h"
#include "client/nqkv.h"
#include "grpcpp/client_context.h"
#include "grpcpp/support/sync_stream.h"
#include "nqkv/v1/kv_cache.pb.h"

namespace nqkv::client {

// Thread-safe.
class Session::Impl {
 public:
  Impl(std::shared_ptr<Channel> channel, const std::string& owner);
  // Closes the session, when the server answers within a second; else its grace ends it.
  ~Impl();

  // Waits until the session is open. Errors: those of the Session rpc, or DEADLINE_EXCEEDED.
  absl::Status Open(TimePoint deadline);

  std::string id() const;
  absl::Status status() const;

 private:
  using Stream = grpc::ClientReaderWriter<v1::SessionRequest, v1::SessionResponse>;

  void Run();
  // Until the stream breaks, which it tells why, or the session is closed.
  absl::Status RunStream();
  // False: it broke.
  bool Ask(Stream* stream, const v1::SessionRequest& request);
  // False when the session is to be closed.
  bool WaitFor(std::chrono::nanoseconds duration);
  bool ShouldTryAgain(const absl::Status& status);
  void End(const absl::Status& status);

  const std::shared_ptr<Channel> channel_;
  const std::string owner_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::string id_;  // Empty: not open yet.
  absl::Status status_;
  absl::Status last_error_;
  std::chrono::nanoseconds heartbeat_{};
  std::chrono::nanoseconds grace_{};
  TimePoint heard_{};
  TimePoint open_by_{};
  grpc::ClientContext* context_ = nullptr;  // Of the stream that is running.
  bool closing_ = false;
  bool ended_ = false;
  std::thread thread_;
};

}  // namespace nqkv::client
