// The caller's memory on loan to the transport.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <future>
#include <memory>

#include "grpcpp/support/slice.h"

namespace nqkv::client {

// Hands out slices that point into memory of the caller, and waits until the transport has dropped them all: a slice
// may outlive its call. Borrow and wait from one thread; slices are dropped on any.
class BorrowedMemory {
 public:
  BorrowedMemory();
  // Waits for the last.
  ~BorrowedMemory();
  BorrowedMemory(const BorrowedMemory&) = delete;
  BorrowedMemory& operator=(const BorrowedMemory&) = delete;

  // Precondition: nobody has waited yet.
  grpc::Slice Borrow(const void* data, size_t bytes);
  // Slices that were not dropped yet.
  uint64_t lent() const;
  // Whether all are back in time. Afterwards nothing can be borrowed.
  bool WaitUntilReturned(std::chrono::milliseconds timeout);

 private:
  // Shared with each slice, which may be the last to know of it.
  struct Loans {
    std::atomic<uint64_t> count{1};  // Our own is given up by waiting, so that 0 comes once.
    std::promise<void> returned;

    void Return() {
      if (count.fetch_sub(1, std::memory_order_acq_rel) == 1) returned.set_value();
    }
  };

  void Close();

  std::shared_ptr<Loans> loans_;
  std::future<void> returned_;
  bool closed_ = false;
};

}  // namespace nqkv::client
