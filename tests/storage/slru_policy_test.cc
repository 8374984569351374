#include "storage/slru_policy.h"

#include <gtest/gtest.h>

#include <vector>

#include "tests/conformance/eviction_policy_conformance.h"

namespace nqkv {
namespace {

INSTANTIATE_TEST_SUITE_P(Slru, EvictionPolicyConformanceTest, ::testing::Values("slru"));

class SlruPolicyTest : public ::testing::Test {
 protected:
  static constexpr BlockId kBlocks = 10;

  SlruPolicyTest() : links_(kBlocks + 10), policy_(links_) {
    for (BlockId block = 0; block < kBlocks; ++block) policy_.Insert(block, 100, ++now_);
  }

  void Touch(BlockId block) { policy_.Touch(block, ++now_); }

  std::vector<BlockId> TakeAll() {
    std::vector<BlockId> taken;
    while (const auto victim = policy_.Next()) {
      taken.push_back(victim->block);
      policy_.Remove(victim->block);
    }
    return taken;
  }

  std::vector<EvictionLink> links_;
  SlruPolicy policy_;
  uint64_t now_ = 0;
};

TEST_F(SlruPolicyTest, WhatWasWantedAgainOutlivesWhatCameLater) {
  Touch(0);
  Touch(1);
  policy_.Insert(10, 100, ++now_);
  EXPECT_EQ(TakeAll(), (std::vector<BlockId>{2, 3, 4, 5, 6, 7, 8, 9, 10, 0, 1}));
}

TEST_F(SlruPolicyTest, WhatIsProtectedNoMoreGoesBackAsTheNewestAndCountsAsUsedThen) {
  for (const BlockId block : {0u, 1u, 2u}) Touch(block);
  EXPECT_EQ(policy_.OldestProtected()->block, 0u);
  policy_.Unprotect(++now_);
  EXPECT_EQ(policy_.OldestProtected()->block, 1u);
  for (BlockId block = 3; block < kBlocks; ++block) policy_.Remove(block);
  EXPECT_EQ(policy_.Next()->used, now_);
  EXPECT_EQ(TakeAll(), (std::vector<BlockId>{0, 1, 2}));
}

TEST_F(SlruPolicyTest, TellsWhatIsProtectedByWeight) {
  EXPECT_FALSE(policy_.OldestProtected().has_value());
  EXPECT_EQ(policy_.protected_weight(), 0u);
  Touch(0);
  Touch(1);
  policy_.Reweigh(1, 5);
  EXPECT_EQ(policy_.protected_weight(), 105u);
  EXPECT_EQ(policy_.weight(), 905u);
  policy_.Remove(0);
  policy_.Demote(1);
  EXPECT_EQ(policy_.protected_weight(), 0u);
  EXPECT_EQ(policy_.weight(), 805u);
}

TEST_F(SlruPolicyTest, VictimsAreProtectedOnlyWhenNothingElseIsLeft) {
  Touch(0);
  for (BlockId block = 1; block < kBlocks; ++block) {
    EXPECT_FALSE(policy_.Next()->is_protected);
    policy_.Remove(policy_.Next()->block);
  }
  EXPECT_TRUE(policy_.Next()->is_protected);
}

TEST_F(SlruPolicyTest, SettlingProtectsNothing) {
  for (BlockId block = 0; block < kBlocks; ++block) policy_.Settle(block, ++now_);
  Touch(5);
  EXPECT_EQ(TakeAll(), (std::vector<BlockId>{0, 1, 2, 3, 4, 6, 7, 8, 9, 5}));
}

TEST_F(SlruPolicyTest, SettlingKeepsAProtectedBlockProtected) {
  Touch(0);
  Touch(1);
  policy_.Settle(0, ++now_);
  EXPECT_EQ(TakeAll(), (std::vector<BlockId>{2, 3, 4, 5, 6, 7, 8, 9, 1, 0}));
}

}  // namespace
}  // namespace nqkv
