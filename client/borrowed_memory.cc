#include "client/borrowed_memory.h"

#include <utility>

namespace nqkv::client {

BorrowedMemory::BorrowedMemory() : loans_(std::make_shared<Loans>()), returned_(loans_->returned.get_future()) {}

BorrowedMemory::~BorrowedMemory() {
  Close();
  returned_.wait();
}

grpc::Slice BorrowedMemory::Borrow(const void* data, size_t bytes) {
  loans_->count.fetch_add(1, std::memory_order_relaxed);
  const auto drop = [](void* user_data) {
    const std::unique_ptr<std::shared_ptr<Loans>> loans(static_cast<std::shared_ptr<Loans>*>(user_data));
    (*loans)->Return();
  };
  // gRPC's signature has no const; it does not write.
  return grpc::Slice(const_cast<void*>(data), bytes, drop, new std::shared_ptr<Loans>(loans_));
}

uint64_t BorrowedMemory::lent() const { return loans_->count.load(std::memory_order_acquire) - (closed_ ? 0 : 1); }

bool BorrowedMemory::WaitUntilReturned(std::chrono::milliseconds timeout) {
  Close();
  return returned_.wait_for(timeout) == std::future_status::ready;
}

void BorrowedMemory::Close() {
  if (!std::exchange(closed_, true)) loans_->Return();
}

}  // namespace nqkv::client
