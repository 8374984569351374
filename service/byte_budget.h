// Bounds the payload bytes that calls hold outside the arena. Over the bound is an answer, never a wait.
#pragma once

#include <atomic>
#include <cstdint>
#include <utility>

#include "absl/status/statusor.h"

namespace nqkv {

// Thread-safe. A budget with a parent takes from both, so that one call cannot use up what all share.
class ByteBudget {
 public:
  // Bytes that are given back when it goes. Move-only; must not outlive its budget.
  class Lease {
   public:
    Lease() = default;
    Lease(Lease&& other) noexcept
        : budget_(std::exchange(other.budget_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
    Lease& operator=(Lease&& other) noexcept;
    ~Lease() { Reset(); }

    void Reset();
    uint64_t bytes() const { return bytes_; }

   private:
    friend class ByteBudget;
    Lease(ByteBudget* budget, uint64_t bytes) : budget_(budget), bytes_(bytes) {}

    ByteBudget* budget_ = nullptr;
    uint64_t bytes_ = 0;
  };

  // `parent`, when given, must outlive the budget.
  explicit ByteBudget(uint64_t limit_bytes, ByteBudget* parent = nullptr) : limit_(limit_bytes), parent_(parent) {}

  // Errors:
  //   RESOURCE_EXHAUSTED  that many bytes are not free; carries RetryInfo. Counted.
  absl::StatusOr<Lease> Acquire(uint64_t bytes);

  uint64_t limit_bytes() const { return limit_; }
  uint64_t used_bytes() const { return used_.load(std::memory_order_relaxed); }
  uint64_t rejected_total() const { return rejected_.load(std::memory_order_relaxed); }

 private:
  bool Take(uint64_t bytes);
  void GiveBack(uint64_t bytes);

  const uint64_t limit_;
  ByteBudget* const parent_;
  std::atomic<uint64_t> used_ = 0;
  std::atomic<uint64_t> rejected_ = 0;
};

}  // namespace nqkv
