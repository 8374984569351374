#include "service/byte_budget.h"

#include <algorithm>

#include "absl/numeric/int128.h"
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
  for (ByteBudget* budget = this; budget != nullptr; budget = budget->parent_.get()) {
    budget->rejected_.fetch_add(1, std::memory_order_relaxed);
  }
  const uint64_t most = lease_bytes_max();
  if (bytes > most) {
    return absl::ResourceExhaustedError(absl::StrCat("too many bytes in flight: ", bytes,
                                                     " at once, a caller may hold ", most, " (--in_flight_bytes)"));
  }
  return WithRetry(absl::ResourceExhaustedError(absl::StrCat("too many bytes in flight: ", bytes,
                                                             " more do not fit beside what is held of ", limit_,
                                                             " (--in_flight_bytes)")),
                   kRetryDelay);
}

std::optional<ByteBudget::Lease> ByteBudget::TryAcquire(uint64_t bytes) {
  if (!Take(bytes)) return std::nullopt;
  return Lease(this, bytes);
}

uint64_t ByteBudget::lease_bytes_max() const {
  if (parent_ == nullptr) return limit_;
  const absl::uint128 fair = absl::uint128(parent_->limit_) * weight_ / (weight_ + 1);
  return std::min(static_cast<uint64_t>(fair), parent_->lease_bytes_max());
}

bool ByteBudget::Take(uint64_t bytes) {
  uint64_t used = used_.load(std::memory_order_relaxed);
  do {
    if (bytes > limit_ - used) return false;
  } while (!used_.compare_exchange_weak(used, used + bytes, std::memory_order_relaxed));
  if (parent_ == nullptr) return true;
  if (parent_->Take(bytes)) {
    if (IsFair()) return true;
    parent_->GiveBack(bytes);
  }
  used_.fetch_sub(bytes, std::memory_order_relaxed);
  return false;
}

// Two that take at once may each see the other's bytes, and one or both be refused a little early: never too late.
bool ByteBudget::IsFair() const {
  return used_bytes() <= absl::uint128(parent_->limit_ - parent_->used_bytes()) * weight_;
}

void ByteBudget::GiveBack(uint64_t bytes) {
  used_.fetch_sub(bytes, std::memory_order_relaxed);
  if (parent_ != nullptr) parent_->GiveBack(bytes);
}

}  // namespace nqkv
