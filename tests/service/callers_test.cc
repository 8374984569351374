#include "service/callers.h"

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace nqkv {
namespace {

class CallersTest : public ::testing::Test {
 protected:
  const std::shared_ptr<ByteBudget> payload_ = std::make_shared<ByteBudget>(1'000);
  const std::shared_ptr<ByteBudget> reserved_ = std::make_shared<ByteBudget>(100);
  Callers callers_{payload_, reserved_};
};

TEST_F(CallersTest, CallsOfAConnectionShareItsBudgets) {
  const Caller one = callers_.Find({}, "ipv4:127.0.0.1:1");
  const Caller same = callers_.Find({}, "ipv4:127.0.0.1:1");
  const Caller other = callers_.Find({}, "ipv4:127.0.0.1:2");
  const std::optional<ByteBudget::Lease> held = one.payload->TryAcquire(500);
  ASSERT_TRUE(held.has_value());
  EXPECT_FALSE(same.payload->TryAcquire(1).has_value());
  EXPECT_TRUE(other.payload->TryAcquire(250).has_value());
  EXPECT_TRUE(same.reserved->TryAcquire(50).has_value());
  EXPECT_EQ(payload_->used_bytes(), 500u);
}

TEST_F(CallersTest, ATenantsConnectionsTogetherLeaveAFifthToOtherTenants) {
  std::vector<Caller> greedy;
  std::vector<ByteBudget::Lease> held;
  for (int i = 0; i < 100; ++i) {
    greedy.push_back(callers_.Find({.id = 1, .name = "greedy"}, absl::StrCat(i)));
    while (auto lease = greedy.back().payload->TryAcquire(10)) held.push_back(*std::move(lease));
  }
  EXPECT_GT(payload_->used_bytes(), 700u);
  EXPECT_LE(payload_->used_bytes(), 800u);
  EXPECT_TRUE(callers_.Find({.id = 2, .name = "other"}, "0").payload->TryAcquire(100).has_value());
}

TEST_F(CallersTest, ForgetsConnectionsThatNobodyHolds) {
  const Caller kept = callers_.Find({}, "kept");
  const std::optional<ByteBudget::Lease> held = kept.payload->TryAcquire(500);
  for (int i = 0; i < 10'000; ++i) callers_.Find({}, absl::StrCat(i));
  EXPECT_LE(callers_.connection_count(), 64u);
  EXPECT_EQ(callers_.Find({}, "kept").payload->used_bytes(), 500u);
}

TEST_F(CallersTest, ABudgetOutlivesTheCallersForAMessageThatATransportStillHolds) {
  auto callers = std::make_unique<Callers>(payload_, reserved_);
  std::shared_ptr<ByteBudget> budget = callers->Find({}, "gone").payload;
  callers.reset();
  EXPECT_TRUE(budget->TryAcquire(100).has_value());
  EXPECT_EQ(payload_->used_bytes(), 0u);
}

}  // namespace
}  // namespace nqkv
