// Bounds bytes that calls hold. Over the bound is an answer, never a wait.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>

#include "absl/status/statusor.h"

namespace nqkv {

// Thread-safe. A budget with a parent takes from both.
//
// A part with a weight never holds more than `weight` times what its parent has left for the others. So one part that
// never gives anything back leaves room for the rest: with weight 1 it stops at a half, n of them leave one share in
// n + 1, and nothing is set aside for parts that ask for nothing.
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

  explicit ByteBudget(uint64_t limit_bytes) : limit_(limit_bytes) {}
  // A part of `parent`. `weight` is at least 1.
  ByteBudget(std::shared_ptr<ByteBudget> parent, uint32_t weight)
      : limit_(parent->limit_bytes()), parent_(std::move(parent)), weight_(weight) {}

  // Errors:
  //   RESOURCE_EXHAUSTED  that many bytes are not free; carries RetryInfo unless they never can be. Counted.
  absl::StatusOr<Lease> Acquire(uint64_t bytes);
  // For those who can do without: no error, not counted.
  std::optional<Lease> TryAcquire(uint64_t bytes);

  uint64_t limit_bytes() const { return limit_; }
  // What a lease has at most, when nobody holds anything.
  uint64_t lease_bytes_max() const;
  uint64_t used_bytes() const { return used_.load(std::memory_order_relaxed); }
  uint64_t rejected_total() const { return rejected_.load(std::memory_order_relaxed); }

 private:
  bool Take(uint64_t bytes);
  bool IsFair() const;
  void GiveBack(uint64_t bytes);

  const uint64_t limit_;
  const std::shared_ptr<ByteBudget> parent_;
  const uint32_t weight_ = 0;
  std::atomic<uint64_t> used_ = 0;
  std::atomic<uint64_t> rejected_ = 0;
};

}  // namespace nqkv
