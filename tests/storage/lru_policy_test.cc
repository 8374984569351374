#include "storage/lru_policy.h"

#include <gtest/gtest.h>

#include <vector>

#include "tests/conformance/eviction_policy_conformance.h"

namespace nqkv {
namespace {

INSTANTIATE_TEST_SUITE_P(Lru, EvictionPolicyConformanceTest, ::testing::Values("lru"));

TEST(LruPolicyTest, TheVictimIsTheLeastRecentlyUsed) {
  std::vector<EvictionLink> links(4);
  LruPolicy policy(links);
  for (BlockId block = 0; block < 4; ++block) policy.Insert(block, 10, block + 1);
  policy.Touch(0, 5);
  policy.Touch(2, 6);
  for (const BlockId expected : {1u, 3u, 0u, 2u}) {
    EXPECT_EQ(policy.Next()->block, expected);
    policy.Remove(expected);
  }
}

TEST(LruPolicyTest, TellsWhenTheVictimWasUsed) {
  std::vector<EvictionLink> links(2);
  LruPolicy policy(links);
  policy.Insert(0, 10, 7);
  policy.Insert(1, 10, 8);
  EXPECT_EQ(policy.Next()->used, 7u);
  policy.Touch(0, 9);
  EXPECT_EQ(policy.Next()->used, 8u);
}

}  // namespace
}  // namespace nqkv
