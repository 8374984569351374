// The completion queue of one call, which one thread drives.
#pragma once

#include <chrono>

#include "client/connection.h"
#include "client/retry.h"
#include "grpcpp/completion_queue.h"

namespace nqkv::client {

// Not thread-safe. Destroyed after the call's stream; takes what is still in it then.
class CallQueue {
 public:
  // For the transport to end what it began, when the call's time is up.
  static constexpr std::chrono::milliseconds kGraceTime{1000};

  // `connection` must outlive it. `deadline` is the call's, on `clock`.
  CallQueue(Connection* connection, TimePoint deadline, const Clock& clock);
  ~CallQueue();

  grpc::CompletionQueue* queue() { return &queue_; }

  // Waits for the next operation that ended. Each one ends when the call's deadline passes, unless the transport is in
  // the middle of a write that the peer does not take: then the connection is broken after the grace time.
  bool Next(void** tag, bool* ok);

 private:
  Connection* connection_;
  std::chrono::system_clock::time_point give_up_at_;
  bool gave_up_ = false;
  grpc::CompletionQueue queue_;
};

}  // namespace nqkv::client
