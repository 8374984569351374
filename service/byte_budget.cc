#include "service/byte_budget.h"

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "proto/rpc_status.h"

namespace nqkv {
namespace {

// Long enough for a call in flight to end, short against a prefill.
constexpr absl::Duration kRetryDelay = absl::Milliseconds(100);

}  // namespace

ByteBudget::Lease& ByteBudget::Lease::operator=(Lease&& other) noexcept {
  if (this != &other) {
    Reset();
    budget_ = std::exchange(other.budget_, nullptr);
    bytes_ = std::exchange(other.bytes_, 0);
  }
  return *this;
}

void ByteBudget::Lease::Reset() {
  if (budget_ != nullptr) budget_->GiveBack(bytes_);
  budget_ = nullptr;
  bytes_ = 0;
}

absl::StatusOr<ByteBudget::Lease> ByteBudget::Acquire(uint64_t bytes) {
  if (Take(bytes)) return Lease(this, bytes);
  for (ByteBudget* budget = this; budget != nullptr; budget = budget->parent_) {
    budget->rejected_.fetch_add(1, std::memory_order_relaxed);
  }
  return WithRetry(absl::ResourceExhaustedError(absl::StrCat("too many bytes in flight: ", bytes,
                                                             " more do not fit into the ", limit_, " of this budget")),
                   kRetryDelay);
}

bool ByteBudget::Take(uint64_t bytes) {
  uint64_t used = used_.load(std::memory_order_relaxed);
  do {
    if (bytes > limit_ - used) return false;
  } while (!used_.compare_exchange_weak(used, used + bytes, std::memory_order_relaxed));
  if (parent_ == nullptr || parent_->Take(bytes)) return true;
  used_.fetch_sub(bytes, std::memory_order_relaxed);
  return false;
}

void ByteBudget::GiveBack(uint64_t bytes) {
  used_.fetch_sub(bytes, std::memory_order_relaxed);
  if (parent_ != nullptr) parent_->GiveBack(bytes);
}

}  // namespace nqkv
