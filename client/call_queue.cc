#include "client/call_queue.h"

#include <algorithm>

namespace nqkv::client {

CallQueue::CallQueue(Connection* connection, TimePoint deadline, const Clock& clock)
    : connection_(connection),
      give_up_at_(std::chrono::system_clock::now() + std::max(deadline - clock.Now(), TimePoint::duration::zero()) +
                  kGraceTime) {}

CallQueue::~CallQueue() {
  queue_.Shutdown();
  void* tag = nullptr;
  bool ok = false;
  while (Next(&tag, &ok)) continue;
}

bool CallQueue::Next(void** tag, bool* ok) {
  if (!gave_up_) {
    const auto next = queue_.AsyncNext(tag, ok, give_up_at_);
    if (next != grpc::CompletionQueue::TIMEOUT) return next == grpc::CompletionQueue::GOT_EVENT;
    gave_up_ = true;
    connection_->Break();
  }
  return queue_.Next(tag, ok);
}

}  // namespace nqkv::client
