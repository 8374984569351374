#include "service/byte_budget.h"

#include <memory>
#include <optional>
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
  const auto all = std::make_shared<ByteBudget>(100);
  ByteBudget one(all, 4);
  ByteBudget other(all, 4);
  const absl::StatusOr<ByteBudget::Lease> lease = one.Acquire(70);
  ASSERT_TRUE(lease.ok());
  EXPECT_EQ(all->used_bytes(), 70u);
  EXPECT_FALSE(other.Acquire(40).ok());
  EXPECT_EQ(other.used_bytes(), 0u);
  EXPECT_EQ(all->used_bytes(), 70u);
  EXPECT_FALSE(one.Acquire(20).ok());
  EXPECT_EQ(one.used_bytes(), 70u);
  EXPECT_TRUE(other.Acquire(20).ok());
  EXPECT_EQ(all->rejected_total(), 2u);
}

TEST(ByteBudgetTest, APartHoldsAtMostItsWeightTimesWhatIsLeftForOthers) {
  const auto all = std::make_shared<ByteBudget>(120);
  std::vector<std::unique_ptr<ByteBudget>> parts;
  std::vector<ByteBudget::Lease> leases;
  for (const uint64_t most : {60u, 30u, 15u}) {  // Each: a half of what those before it left.
    parts.push_back(std::make_unique<ByteBudget>(all, 1));
    EXPECT_FALSE(parts.back()->TryAcquire(most + 1).has_value());
    std::optional<ByteBudget::Lease> lease = parts.back()->TryAcquire(most);
    ASSERT_TRUE(lease.has_value());
    leases.push_back(*std::move(lease));
  }
  EXPECT_EQ(all->used_bytes(), 105u);
  EXPECT_EQ(all->rejected_total(), 0u);
  leases.clear();
  EXPECT_EQ(all->used_bytes(), 0u);
}

TEST(ByteBudgetTest, SaysWhenToTryAgainOnlyWhereThatMayHelp) {
  const auto all = std::make_shared<ByteBudget>(100);
  ByteBudget tenant(all, 4);
  ByteBudget connection(std::shared_ptr<ByteBudget>(all, &tenant), 1);
  EXPECT_EQ(tenant.lease_bytes_max(), 80u);
  EXPECT_EQ(connection.lease_bytes_max(), 50u);
  const absl::Status never = connection.Acquire(51).status();
  EXPECT_EQ(never.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(RetryDelay(never), absl::ZeroDuration());
  const absl::StatusOr<ByteBudget::Lease> held = connection.Acquire(50);
  ASSERT_TRUE(held.ok()) << held.status();
  EXPECT_GT(RetryDelay(connection.Acquire(50).status()), absl::ZeroDuration());
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
