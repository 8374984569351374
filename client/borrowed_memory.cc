#include "client/borrowed_memory.h"

namespace nqkv::client {
namespace {

using Counter = std::shared_ptr<std::atomic<uint64_t>>;

void Return(void* user_data) {
  const std::unique_ptr<Counter> lent(static_cast<Counter*>(user_data));
  (*lent)->fetch_sub(1, std::memory_order_acq_rel);
  (*lent)->notify_all();
}

}  // namespace

grpc::Slice BorrowedMemory::Borrow(const void* data, size_t bytes) {
  lent_->fetch_add(1, std::memory_order_relaxed);
  // gRPC's signature has no const; it does not write.
  return grpc::Slice(const_cast<void*>(data), bytes, Return, new Counter(lent_));
}

void BorrowedMemory::WaitUntilReturned() {
  for (uint64_t lent = this->lent(); lent != 0; lent = this->lent()) lent_->wait(lent, std::memory_order_acquire);
}

}  // namespace nqkv::client
