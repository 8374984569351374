#include "service/byte_budget.h"

#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "proto/rpc_status.h"

namespace nqkv {
namespace {

TEST(ByteBudgetTest, GivesUpToItsLimitAndTakesBack) {
  ByteBudget budget(100);
  absl::StatusOr<ByteBudget::Lease> first = budget.Acquire(60);
  ASSERT_TRUE(first.ok());
  const absl::Status refused = budget.Acquire(41).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_GT(RetryDelay(refused), absl::ZeroDuration());
  EXPECT_EQ(budget.rejected_total(), 1u);
  EXPECT_TRUE(budget.Acquire(40).ok());  // And dropped at once.
  EXPECT_EQ(budget.used_bytes(), 60u);
  ByteBudget::Lease moved = *std::move(first);
  EXPECT_EQ(budget.used_bytes(), 60u);
  moved.Reset();
  EXPECT_EQ(budget.used_bytes(), 0u);
}

TEST(ByteBudgetTest, RefusesWhatWouldOverflow) {
  ByteBudget budget(100);
  const absl::StatusOr<ByteBudget::Lease> lease = budget.Acquire(1);
  EXPECT_FALSE(budget.Acquire(UINT64_MAX).ok());
  EXPECT_EQ(budget.used_bytes(), 1u);
}

TEST(ByteBudgetTest, TakesFromItsParentTooAndFromNeitherWhenOneRefuses) {
  ByteBudget all(100);
  ByteBudget one(80, &all);
  ByteBudget other(80, &all);
  const absl::StatusOr<ByteBudget::Lease> lease = one.Acquire(70);
  ASSERT_TRUE(lease.ok());
  EXPECT_EQ(all.used_bytes(), 70u);
  EXPECT_FALSE(other.Acquire(40).ok());
  EXPECT_EQ(other.used_bytes(), 0u);
  EXPECT_EQ(all.used_bytes(), 70u);
  EXPECT_FALSE(one.Acquire(20).ok());
  EXPECT_TRUE(other.Acquire(30).ok());
}

TEST(ByteBudgetTest, NeverGivesMoreThanItsLimitToManyThreads) {
  ByteBudget budget(10);
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&budget] {
      for (int round = 0; round < 10'000; ++round) {
        const absl::StatusOr<ByteBudget::Lease> lease = budget.Acquire(3);
        EXPECT_LE(budget.used_bytes(), 10u);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(budget.used_bytes(), 0u);
}

}  // namespace
}  // namespace nqkv
