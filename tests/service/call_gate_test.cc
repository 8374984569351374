#include "service/call_gate.h"

#include <memory>
#include <thread>
#include <utility>

#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "proto/rpc_status.h"

namespace nqkv {
namespace {

TEST(CallGateTest, CountsCallsAndRefusesNewOnesOnceItIsClosed) {
  CallGate gate;
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

TEST(CallGateTest, WaitsForTheLastCall) {
  CallGate gate;
  absl::StatusOr<CallGate::Pass> pass = gate.Enter();
  gate.Close();
  std::thread call([taken = *std::move(pass)] {});
  EXPECT_TRUE(gate.WaitUntilEmpty(absl::Now() + absl::Seconds(60)));
  call.join();
}

}  // namespace
}  // namespace nqkv
