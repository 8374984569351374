// The store's eviction on real request traces, against the plain policy that it comes close to.
#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "tests/support/policy_model.h"
#include "tests/support/trace_file.h"
#include "tests/support/trace_replay.h"

namespace nqkv {
namespace {

constexpr double kPoint = 0.01;

struct Case {
  std::string trace;
  double capacity = 0;  // Share of the unique blocks.
  std::string eviction_policy = "slru";
};

void PrintTo(const Case& test_case, std::ostream* out) {
  *out << test_case.trace << " " << test_case.capacity << " " << test_case.eviction_policy;
}

class TraceReplayTest : public ::testing::TestWithParam<Case> {};

TEST_P(TraceReplayTest, HitsAreThoseOfThePlainPolicy) {
  const auto trace = ReadTrace(std::string(NQKV_TRACES) + "/" + GetParam().trace + ".jsonl.zst");
  ASSERT_TRUE(trace.ok()) << trace.status();
  const auto capacity =
      static_cast<uint64_t>(std::lround(GetParam().capacity * static_cast<double>(trace->unique_blocks)));
  const uint64_t block_bytes = RawBlockBytes(32);
  const auto host_bytes = HostBytesFor(capacity, block_bytes);
  ASSERT_TRUE(host_bytes.ok()) << host_bytes.status();
  const auto store = ReplayThroughStore(
      *trace, {.host_bytes = *host_bytes, .block_bytes = block_bytes, .eviction_policy = GetParam().eviction_policy});
  ASSERT_TRUE(store.ok()) << store.status();
  const ReplayResult model = ReplayThroughModel(*trace, capacity, GetParam().eviction_policy == "slru" ? 0.2 : 0);
  EXPECT_NEAR(static_cast<double>(store->blocks_held), static_cast<double>(capacity),
              0.005 * static_cast<double>(capacity));
  EXPECT_NEAR(store->block_hits, model.block_hits, kPoint);
  EXPECT_NEAR(store->token_hits, model.token_hits, kPoint);
  RecordProperty("store", std::to_string(store->block_hits));
  RecordProperty("model", std::to_string(model.block_hits));
}

INSTANTIATE_TEST_SUITE_P(Traces, TraceReplayTest,
                         ::testing::Values(Case{"mooncake-conversation", 0.02}, Case{"mooncake-conversation", 0.1},
                                           Case{"mooncake-conversation", 0.02, "lru"}, Case{"coding-agents-a", 0.02}));

TEST(TraceFileTest, ReadsBothTraces) {
  const auto chats = ReadTrace(std::string(NQKV_TRACES) + "/mooncake-conversation.jsonl.zst");
  ASSERT_TRUE(chats.ok()) << chats.status();
  EXPECT_EQ(chats->name, "mooncake-conversation");
  EXPECT_EQ(chats->requests.size(), 12'031u);
  EXPECT_EQ(chats->accesses, 288'500u);
  EXPECT_EQ(chats->unique_blocks, 182'790u);
  EXPECT_EQ(Recut(*chats, 8).accesses, 8 * 288'500u);
  EXPECT_EQ(Recut(*chats, 8).block_tokens, 64u);
  EXPECT_EQ(ReadTrace("/nowhere.jsonl").status().code(), absl::StatusCode::kNotFound);
}

TEST(PolicyModelTest, ProtectsWhatWasHit) {
  PolicyModel model(4, 10, 0.5);
  const auto serve = [&](std::vector<uint32_t> blocks) { return model.Serve(blocks); };
  EXPECT_EQ(serve({0}), 0u);
  EXPECT_EQ(serve({0}), 1u);
  EXPECT_EQ(serve({1, 2, 3}), 0u);
  EXPECT_EQ(serve({4, 5}), 0u);     // 3 and 2, a chain's tail, go.
  EXPECT_EQ(serve({1, 2, 3}), 1u);  // 5 and 4 go: both are older than 1 now.
  EXPECT_EQ(serve({0}), 1u);
  EXPECT_EQ(serve({4}), 0u);
}

}  // namespace
}  // namespace nqkv
