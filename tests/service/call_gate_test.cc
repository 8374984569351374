#include "service/call_gate.h"

#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "proto/rpc_status.h"

namespace nqkv {
namespace {

TEST(CallGateTest, CountsCallsAndRefusesNewOnesOnceItIsClosed) {
  Metrics metrics;
  CallGate gate(2, &metrics);
  auto first = std::make_unique<CallGate::Pass>(*gate.Enter());
  EXPECT_EQ(gate.calls(), 1u);
  gate.Close();
  const absl::Status refused = gate.Enter().status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable);
  EXPECT_GT(RetryDelay(refused), absl::ZeroDuration());
  EXPECT_FALSE(gate.WaitUntilEmpty(absl::Now()));
  first.reset();
  EXPECT_TRUE(gate.WaitUntilEmpty(absl::InfiniteFuture()));
}

TEST(CallGateTest, RefusesMoreCallsThanItsLimitAndSaysWhenToTryAgain) {
  Metrics metrics;
  CallGate gate(2, &metrics);
  auto first = std::make_unique<CallGate::Pass>(*gate.Enter());
  const absl::StatusOr<CallGate::Pass> second = gate.Enter();
  ASSERT_TRUE(second.ok());
  const absl::Status refused = gate.Enter().status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(std::string(refused.message()), "too many calls in flight: at most 2 (--calls_max)");
  EXPECT_GT(RetryDelay(refused), absl::ZeroDuration());
  EXPECT_EQ(metrics.Sum().rejections, 1u);
  EXPECT_EQ(gate.calls(), 2u);
  first.reset();
  EXPECT_TRUE(gate.Enter().ok());
}

TEST(CallGateTest, WaitsForTheLastCall) {
  Metrics metrics;
  CallGate gate(2, &metrics);
  absl::StatusOr<CallGate::Pass> pass = gate.Enter();
  gate.Close();
  std::thread call([taken = *std::move(pass)] {});
  EXPECT_TRUE(gate.WaitUntilEmpty(absl::Now() + absl::Seconds(60)));
  call.join();
}

}  // namespace
}  // namespace nqkv
