// The caller's memory on loan to the transport.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "grpcpp/support/slice.h"

namespace nqkv::client {

// Hands out slices that point into memory of the caller, and waits until the transport has dropped them all: a slice
// may outlive its call. Borrow from one thread; slices are dropped on any.
class BorrowedMemory {
 public:
  BorrowedMemory() : lent_(std::make_shared<std::atomic<uint64_t>>(0)) {}
  ~BorrowedMemory() { WaitUntilReturned(); }
  BorrowedMemory(const BorrowedMemory&) = delete;
  BorrowedMemory& operator=(const BorrowedMemory&) = delete;

  grpc::Slice Borrow(const void* data, size_t bytes);
  uint64_t lent() const { return lent_->load(std::memory_order_acquire); }
  void WaitUntilReturned();

 private:
  // Shared with each slice, since the last one's notification may run after the waiter has gone on.
  std::shared_ptr<std::atomic<uint64_t>> lent_;
};

}  // namespace nqkv::client
