// What every EvictionPolicy owes the index, whatever its order.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "storage/eviction_policy.h"

namespace nqkv {

// The parameter is the policy's name.
class EvictionPolicyConformanceTest : public ::testing::TestWithParam<std::string> {
 protected:
  static constexpr BlockId kBlocks = 64;

  EvictionPolicyConformanceTest() : links_(kBlocks), policy_(MakeEvictionPolicy(GetParam(), links_)) {}

  BlockId TakeNext() {
    const auto victim = policy_->Next();
    if (!victim.has_value()) return kNoBlock;
    policy_->Remove(victim->block);
    return victim->block;
  }

  std::vector<EvictionLink> links_;
  std::unique_ptr<EvictionPolicy> policy_;
};

TEST_P(EvictionPolicyConformanceTest, HasNoVictimWhenEmpty) {
  EXPECT_FALSE(policy_->Next().has_value());
  EXPECT_EQ(policy_->CountBlocks(), 0u);
}

TEST_P(EvictionPolicyConformanceTest, NextDoesNotRemove) {
  policy_->Insert(3, 10, 1);
  EXPECT_EQ(policy_->Next()->block, 3u);
  EXPECT_EQ(policy_->Next()->block, 3u);
  EXPECT_EQ(policy_->CountBlocks(), 1u);
}

TEST_P(EvictionPolicyConformanceTest, GivesEachBlockOnce) {
  for (BlockId block = 0; block < kBlocks; ++block) policy_->Insert(block, 10, block + 1);
  std::set<BlockId> taken;
  for (BlockId block = 0; block < kBlocks; ++block) taken.insert(TakeNext());
  EXPECT_EQ(taken.size(), kBlocks);
  EXPECT_FALSE(policy_->Next().has_value());
}

TEST_P(EvictionPolicyConformanceTest, ARemovedBlockIsNoVictim) {
  for (BlockId block = 0; block < 3; ++block) policy_->Insert(block, 10, block + 1);
  policy_->Remove(0);
  policy_->Remove(2);
  EXPECT_EQ(TakeNext(), 1u);
  EXPECT_FALSE(policy_->Next().has_value());
}

TEST_P(EvictionPolicyConformanceTest, ARenamedBlockKeepsItsPlace) {
  for (BlockId block = 0; block < 3; ++block) policy_->Insert(block, 10, block + 1);
  const auto first = *policy_->Next();
  policy_->Rename(first.block, 40);
  EXPECT_EQ(policy_->Next()->block, 40u);
  EXPECT_EQ(policy_->Next()->used, first.used);
  EXPECT_EQ(policy_->CountBlocks(), 3u);
}

TEST_P(EvictionPolicyConformanceTest, ABlockJustTouchedIsNotTheVictim) {
  for (BlockId block = 0; block < 3; ++block) policy_->Insert(block, 10, block + 1);
  const BlockId first = policy_->Next()->block;
  policy_->Touch(first, 10);
  EXPECT_NE(policy_->Next()->block, first);
}

TEST_P(EvictionPolicyConformanceTest, ABlockJustSettledIsNotTheVictim) {
  for (BlockId block = 0; block < 3; ++block) policy_->Insert(block, 10, block + 1);
  const BlockId first = policy_->Next()->block;
  policy_->Settle(first, 10);
  EXPECT_NE(policy_->Next()->block, first);
}

TEST_P(EvictionPolicyConformanceTest, ADemotedBlockIsTheVictimUntilItIsTouched) {
  for (BlockId block = 0; block < 4; ++block) policy_->Insert(block, 10, block + 1);
  policy_->Touch(3, 10);
  policy_->Demote(3);
  EXPECT_EQ(policy_->Next()->block, 3u);
  EXPECT_EQ(policy_->Next()->used, 0u);
  policy_->Touch(3, 11);
  EXPECT_NE(policy_->Next()->block, 3u);
}

TEST_P(EvictionPolicyConformanceTest, OrderIsThatOfUse) {
  for (BlockId block = 0; block < 10; ++block) policy_->Insert(block, 10, block + 1);
  for (const BlockId block : {4u, 2u}) policy_->Settle(block, 20 - block);
  for (const BlockId expected : {0u, 1u, 3u, 5u, 6u, 7u, 8u, 9u, 4u, 2u}) EXPECT_EQ(TakeNext(), expected);
}

TEST_P(EvictionPolicyConformanceTest, HoldsWhatRandomCallsLeave) {
  std::mt19937 random(11);
  std::set<BlockId> held;
  for (uint64_t now = 1; now < 20'000; ++now) {
    const BlockId block = random() % kBlocks;
    if (!held.contains(block)) {
      policy_->Insert(block, 10, now);
      held.insert(block);
    } else if (random() % 2 == 0) {
      policy_->Touch(block, now);
    } else if (random() % 4 == 0) {
      policy_->Settle(block, now);
    } else if (random() % 4 == 0) {
      policy_->Reweigh(block, random() % 100);
    } else if (random() % 8 == 0) {
      policy_->Demote(block);
    } else if (const BlockId name = random() % kBlocks; random() % 2 == 0 && !held.contains(name)) {
      policy_->Rename(block, name);
      held.erase(block);
      held.insert(name);
    } else {
      policy_->Remove(block);
      held.erase(block);
    }
    ASSERT_EQ(policy_->CountBlocks(), held.size());
    ASSERT_EQ(policy_->Next().has_value(), !held.empty());
    if (!held.empty()) {
      ASSERT_TRUE(held.contains(policy_->Next()->block));
    }
  }
}

}  // namespace nqkv
