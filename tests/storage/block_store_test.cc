#include "storage/block_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

namespace nqkv {
namespace {

using ::testing::HasSubstr;

constexpr PartRange kWhole = {.layer_begin = 0, .layer_end = 4, .head_begin = 0, .head_end = 8};

PartRange Heads(uint16_t begin, uint16_t end) {
  return {.layer_begin = 0, .layer_end = 4, .head_begin = begin, .head_end = end};
}

BlockKey Key(absl::string_view name, CacheId cache = 1, TenantId tenant = 0) {
  return *BlockKey::Create(tenant, cache, 0, name);
}

BlockKey Key(int number) { return Key(absl::StrCat("key-", number)); }

class FakeClock : public Clock {
 public:
  std::chrono::nanoseconds Now() const override { return now_; }
  void Advance(std::chrono::nanoseconds time) { now_ += time; }

 private:
  std::chrono::nanoseconds now_ = std::chrono::hours(1);
};

class BlockStoreTest : public ::testing::Test {
 protected:
  BlockStoreTest() { Open({.host_bytes = 4 << 20}); }
  ~BlockStoreTest() override { EXPECT_EQ(store_->CheckConsistency(), absl::OkStatus()); }

  void Open(const StorageOptions& options) {
    auto store = BlockStore::Create(options);
    ASSERT_EQ(store.status(), absl::OkStatus());
    store_ = *std::move(store);
  }

  absl::Status Put(const BlockKey& key, uint64_t bytes, char fill = 'x', const PartRange& range = kWhole,
                   const PartInfo& info = {}) {
    auto reservation = store_->Reserve(key, range, bytes);
    if (!reservation.ok()) return reservation.status();
    std::fill_n(reservation->bytes().begin(), bytes, static_cast<std::byte>(fill));
    return store_->Commit(*std::move(reservation), bytes, info);
  }

  std::string Read(const BlockKey& key, const PartRange& range = kWhole) {
    const auto handle = store_->Get(key, range);
    if (!handle.ok()) return "none";
    std::string text;
    for (const PartPin& part : handle->parts()) {
      text.append(reinterpret_cast<const char*>(part.bytes().data()), part.bytes().size());
    }
    return text;
  }

  bool Has(const BlockKey& key, const PartRange& range = kWhole) { return store_->Find(key, range).present; }

  std::unique_ptr<BlockStore> store_;
};

TEST_F(BlockStoreTest, ReadsBackWhatWasCommitted) {
  ASSERT_EQ(Put(Key("a"), 5000, 'a'), absl::OkStatus());
  ASSERT_EQ(Put(Key("b"), 3, 'b'), absl::OkStatus());
  EXPECT_TRUE(Read(Key("a")) == std::string(5000, 'a'));
  EXPECT_EQ(Read(Key("b")), "bbb");
  EXPECT_EQ(Read(Key("c")), "none");
}

TEST_F(BlockStoreTest, FindsNothingBeforeCommit) {
  auto reservation = store_->Reserve(Key("a"), kWhole, 100);
  ASSERT_TRUE(reservation.ok());
  EXPECT_FALSE(Has(Key("a")));
  EXPECT_EQ(store_->Commit(*std::move(reservation), 100, {}), absl::OkStatus());
  EXPECT_TRUE(Has(Key("a")));
}

TEST_F(BlockStoreTest, DroppedReservationGivesItsMemoryBack) {
  {
    auto reservation = store_->Reserve(Key("a"), kWhole, 100'000);
    ASSERT_TRUE(reservation.ok());
    EXPECT_GE(store_->Stats().reserved_bytes, 100'000u);
    EXPECT_EQ(store_->Stats().reserved_bytes, store_->Stats().used_bytes);
  }
  EXPECT_EQ(store_->Stats().reserved_bytes, 0u);
  EXPECT_EQ(store_->Stats().used_bytes, 0u);
  EXPECT_FALSE(Has(Key("a")));
}

TEST_F(BlockStoreTest, APartTakesTheRoomThatItNeedsNotWhatWasReserved) {
  auto reservation = store_->Reserve(Key("a"), kWhole, 1'000'000);
  ASSERT_TRUE(reservation.ok());
  std::fill_n(reservation->bytes().begin(), 100'000, std::byte{'a'});
  ASSERT_EQ(store_->Commit(*std::move(reservation), 100'000, {}), absl::OkStatus());
  EXPECT_LT(store_->Stats().used_bytes, 104'000u);
  EXPECT_EQ(store_->StatsOf(0, 1).used_bytes, store_->Stats().used_bytes);
  EXPECT_TRUE(Read(Key("a")) == std::string(100'000, 'a'));
}

TEST_F(BlockStoreTest, APartStaysWhereItIsWhenNoSmallerSlotIsFree) {
  auto reservation = store_->Reserve(Key("a"), kWhole, 3'900'000);
  ASSERT_TRUE(reservation.ok());
  const auto filler = store_->Reserve(Key("b"), kWhole, 50'000);
  ASSERT_TRUE(filler.ok());
  std::fill_n(reservation->bytes().begin(), 100'000, std::byte{'a'});
  ASSERT_EQ(store_->Commit(*std::move(reservation), 100'000, {}), absl::OkStatus());
  EXPECT_GT(store_->Stats().used_bytes, 3'900'000u);
  EXPECT_TRUE(Read(Key("a")) == std::string(100'000, 'a'));
}

TEST_F(BlockStoreTest, SecondCommitOfARangeIsRefusedAndItsMemoryReturns) {
  auto first = store_->Reserve(Key("a"), kWhole, 100);
  auto second = store_->Reserve(Key("a"), kWhole, 200);
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_EQ(store_->Commit(*std::move(first), 100, {}), absl::OkStatus());
  const uint64_t used_bytes = store_->Stats().used_bytes - store_->Stats().reserved_bytes;
  EXPECT_TRUE(absl::IsAlreadyExists(store_->Commit(*std::move(second), 200, {})));
  EXPECT_EQ(store_->Stats().used_bytes, used_bytes);
  EXPECT_EQ(Read(Key("a")).size(), 100u);
}

TEST_F(BlockStoreTest, ReserveOfACoveredRangeIsRefused) {
  ASSERT_EQ(Put(Key("a"), 10), absl::OkStatus());
  EXPECT_TRUE(absl::IsAlreadyExists(store_->Reserve(Key("a"), kWhole, 10).status()));
  EXPECT_TRUE(absl::IsAlreadyExists(store_->Reserve(Key("a"), Heads(2, 3), 10).status()));
}

TEST_F(BlockStoreTest, ServesAnyRangeAcrossParts) {
  for (uint16_t head = 0; head < 8; head += 2) {
    EXPECT_FALSE(Has(Key("a")));
    ASSERT_EQ(Put(Key("a"), 10, static_cast<char>('0' + head), Heads(head, head + 2)), absl::OkStatus());
  }
  EXPECT_TRUE(Has(Key("a")));
  EXPECT_EQ(Read(Key("a")).size(), 40u);
  EXPECT_EQ(Read(Key("a"), Heads(3, 4)), std::string(10, '2'));
  EXPECT_EQ(store_->Find(Key("a"), Heads(1, 3)).stored_bytes, 20u);
  EXPECT_FALSE(Has(Key("a"), Heads(7, 9)));
  EXPECT_EQ(store_->Stats().blocks, 1u);
  EXPECT_EQ(store_->Stats().parts, 4u);
}

TEST_F(BlockStoreTest, APartReplacesThoseInsideIt) {
  ASSERT_EQ(Put(Key("a"), 10, 'a', Heads(0, 2)), absl::OkStatus());
  ASSERT_EQ(Put(Key("a"), 10, 'b', Heads(4, 6)), absl::OkStatus());
  ASSERT_EQ(Put(Key("a"), 30, 'c'), absl::OkStatus());
  EXPECT_EQ(store_->Stats().parts, 1u);
  EXPECT_EQ(store_->Stats().stored_bytes, 30u);
  EXPECT_EQ(Read(Key("a"), Heads(0, 1)), std::string(30, 'c'));
}

TEST_F(BlockStoreTest, TellsTheWorstOfTheNeededParts) {
  ASSERT_EQ(Put(Key("a"), 10, 'a', Heads(0, 4), {.provenance = 1, .floor_error = 0.5f, .token_norm_error = 0.1f}),
            absl::OkStatus());
  ASSERT_EQ(Put(Key("a"), 10, 'b', Heads(4, 8), {.provenance = 2, .floor_error = 0.2f, .token_norm_error = 0.3f}),
            absl::OkStatus());
  const BlockPresence whole = store_->Find(Key("a"), kWhole);
  EXPECT_EQ(whole.provenance, 2);
  EXPECT_EQ(whole.floor_error, 0.5f);
  EXPECT_EQ(whole.token_norm_error, 0.3f);
  EXPECT_EQ(store_->Find(Key("a"), Heads(4, 5)).floor_error, 0.2f);
}

TEST_F(BlockStoreTest, MatchPrefixEndsAtTheFirstMiss) {
  for (const int number : {0, 1, 3}) ASSERT_EQ(Put(Key(number), 10), absl::OkStatus());
  const std::vector<BlockKey> keys = {Key(0), Key(1), Key(2), Key(3)};
  std::vector<BlockPresence> blocks;
  EXPECT_EQ(store_->MatchPrefix(keys, kWhole, &blocks), 2u);
  EXPECT_EQ(blocks.size(), 2u);
  EXPECT_EQ(store_->MatchPrefix({}, kWhole, nullptr), 0u);
}

TEST_F(BlockStoreTest, KeysOfOtherCachesTenantsAndGroupsAreOtherBlocks) {
  ASSERT_EQ(Put(Key("a", 1, 0), 10), absl::OkStatus());
  EXPECT_FALSE(Has(Key("a", 2, 0)));
  EXPECT_FALSE(Has(Key("a", 1, 1)));
  EXPECT_FALSE(Has(*BlockKey::Create(0, 1, 1, "a")));
  EXPECT_EQ(store_->Clear(1, 1).blocks, 0u);
  EXPECT_EQ(store_->StatsOf(1, 1).blocks, 0u);
  EXPECT_EQ(store_->StatsOf(0, 1).blocks, 1u);
}

TEST_F(BlockStoreTest, RefusesBadArgumentsPrecisely) {
  EXPECT_EQ(store_->Reserve(Key("a"), {}, 10).status(), absl::InvalidArgumentError("the range is empty"));
  EXPECT_EQ(store_->Reserve(Key("a"), kWhole, 0).status(), absl::InvalidArgumentError("0 bytes"));
  EXPECT_TRUE(absl::IsInvalidArgument(store_->Commit({}, 10, {})));
  auto reservation = store_->Reserve(Key("a"), kWhole, 10);
  ASSERT_TRUE(reservation.ok());
  const uint64_t slot_bytes = reservation->bytes().size();
  EXPECT_TRUE(absl::IsInvalidArgument(store_->Commit(*std::move(reservation), slot_bytes + 1, {})));
  EXPECT_TRUE(absl::IsInvalidArgument(Put(Key("a"), 10, 'x', kWhole, {.scope = std::string(33, 's')})));
  EXPECT_EQ(store_->Stats().used_bytes, 0u);
}

TEST_F(BlockStoreTest, RefusesABlockThatCanNeverFitAndSaysSo) {
  const auto status = store_->Reserve(Key("a"), kWhole, 5 << 20).status();
  EXPECT_TRUE(absl::IsResourceExhausted(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("5242880 bytes are more than the store can ever hold"));
  EXPECT_EQ(store_->Stats().rejected_reservations_total, 1u);
}

TEST_F(BlockStoreTest, KeepsBlocksInAFileUntilItIsDestroyed) {
  const std::string path = absl::StrCat(::testing::TempDir(), "/nqkv-block-store-test-", getpid());
  Open({.host_bytes = 4 << 20, .arena_path = path});
  ASSERT_EQ(Put(Key("a"), 5000, 'a'), absl::OkStatus());
  EXPECT_TRUE(Read(Key("a")) == std::string(5000, 'a'));
  EXPECT_EQ(access(path.c_str(), F_OK), 0);
  EXPECT_TRUE(absl::IsAlreadyExists(BlockStore::Create({.host_bytes = 4 << 20, .arena_path = path}).status()));
  Open({.host_bytes = 4 << 20});
  EXPECT_NE(access(path.c_str(), F_OK), 0);
}

TEST_F(BlockStoreTest, RefusesBadOptions) {
  EXPECT_TRUE(absl::IsInvalidArgument(BlockStore::Create({.index_stripes = 3}).status()));
}

TEST_F(BlockStoreTest, EvictsTheLeastRecentlyUsed) {
  Open({.host_bytes = 4 << 20, .index_stripes = 1});
  int stored = 0;
  while (store_->Stats().evicted_blocks_total == 0) ASSERT_EQ(Put(Key(stored++), 100'000), absl::OkStatus());
  EXPECT_FALSE(Has(Key(0)));
  store_->Touch(std::vector<BlockKey>{Key(1)});
  ASSERT_EQ(Put(Key(stored++), 100'000), absl::OkStatus());
  EXPECT_TRUE(Has(Key(1)));
  EXPECT_FALSE(Has(Key(2)));
}

TEST_F(BlockStoreTest, WhatWasWantedAgainOutlivesManyNewBlocks) {
  for (int i = 0; i < 30; ++i) ASSERT_EQ(Put(Key(i), 100'000), absl::OkStatus());
  EXPECT_EQ(store_->MatchPrefix({{Key(0)}}, kWhole, nullptr), 1u);
  for (int i = 30; i < 100; ++i) ASSERT_EQ(Put(Key(i), 100'000), absl::OkStatus());
  EXPECT_TRUE(Has(Key(0)));
  EXPECT_FALSE(Has(Key(30)));
}

TEST_F(BlockStoreTest, ADemotedBlockIsTheFirstToGo) {
  Open({.host_bytes = 4 << 20, .index_stripes = 1});
  for (int i = 0; i < 30; ++i) ASSERT_EQ(Put(Key(i), 100'000), absl::OkStatus());
  store_->Touch({{Key(20)}});
  store_->Demote({{Key(20)}});
  for (int i = 30; Has(Key(0)) && i < 100; ++i) ASSERT_EQ(Put(Key(i), 100'000), absl::OkStatus());
  EXPECT_FALSE(Has(Key(20)));
}

TEST_F(BlockStoreTest, ABlockThatIsHardlyExpectedAgainIsTheFirstToGo) {
  Open({.host_bytes = 4 << 20, .index_stripes = 1});
  for (int i = 0; i < 30; ++i) {
    const float expected_reuse = i == 20 ? 0.01f : i == 21 ? 0.5f : 0;
    ASSERT_EQ(Put(Key(i), 100'000, 'x', kWhole, {.expected_reuse = expected_reuse}), absl::OkStatus());
  }
  for (int i = 30; Has(Key(20)) && i < 100; ++i) ASSERT_EQ(Put(Key(i), 100'000), absl::OkStatus());
  EXPECT_FALSE(Has(Key(20)));
  EXPECT_EQ(store_->Stats().evicted_blocks_total, 1u);
  for (const float wrong : {-0.1f, 1.1f, std::nanf("")}) {
    EXPECT_TRUE(absl::IsInvalidArgument(Put(Key("w"), 10, 'x', kWhole, {.expected_reuse = wrong})));
  }
}

TEST_F(BlockStoreTest, SettlingARequestsBlocksKeepsItsHeadLongest) {
  Open({.host_bytes = 4 << 20, .index_stripes = 1});
  std::vector<BlockKey> chain;
  for (int i = 0; i < 20; ++i) chain.push_back(Key(i));
  for (const BlockKey& key : chain) ASSERT_EQ(Put(key, 100'000), absl::OkStatus());
  store_->Settle(chain);
  for (int i = 100; Has(Key(19)); ++i) ASSERT_EQ(Put(Key(i), 100'000), absl::OkStatus());
  for (int i = 0; i < 19; ++i) EXPECT_TRUE(Has(Key(i)));
}

TEST_F(BlockStoreTest, TellsForHowLongEvictedBlocksHadNotBeenUsed) {
  FakeClock clock;
  store_ = *BlockStore::Create({.host_bytes = 4 << 20}, &clock);
  ASSERT_EQ(Put(Key(0), 100'000), absl::OkStatus());
  ASSERT_EQ(Put(Key(1), 100'000), absl::OkStatus());
  clock.Advance(std::chrono::seconds(100));
  store_->Settle({{Key(1)}});
  clock.Advance(std::chrono::seconds(5));
  for (int i = 2; Has(Key(0)) || Has(Key(1)); ++i) ASSERT_EQ(Put(Key(i), 100'000), absl::OkStatus());
  const StoreStats stats = store_->Stats();
  uint64_t blocks = 0;
  for (const uint64_t count : stats.evicted_ages.counts) blocks += count;
  EXPECT_EQ(blocks, stats.evicted_blocks_total);
  EXPECT_EQ(stats.evicted_ages.counts[3], 1u);  // 105 s: of 60 to 300.
  EXPECT_EQ(stats.evicted_ages.counts[1], 1u);  // 5 s: of 1 to 10.
  EXPECT_EQ(stats.evicted_ages.sum_seconds, 110u);
}

TEST_F(BlockStoreTest, ARefusedReservationEvictsNothing) {
  // All over the memory blocks that are read, and small ones between them that are not.
  std::vector<BlockHandle> handles;
  for (int i = 0; i < 12; ++i) {
    ASSERT_EQ(Put(Key(i), 300'000), absl::OkStatus());
    handles.push_back(*store_->Get(Key(i), kWhole));
  }
  for (int i = 100; i < 120; ++i) ASSERT_EQ(Put(Key(i), 10'000), absl::OkStatus());
  const uint64_t blocks = store_->Stats().blocks;
  EXPECT_TRUE(absl::IsResourceExhausted(store_->Reserve(Key("large"), kWhole, 2'000'000).status()));
  EXPECT_EQ(store_->Stats().evicted_blocks_total, 0u);
  EXPECT_EQ(store_->Stats().blocks, blocks);
  handles.clear();
  EXPECT_EQ(Put(Key("large"), 2'000'000), absl::OkStatus());
}

TEST_F(BlockStoreTest, ABlockOfWhichAPartIsReadKeepsAllParts) {
  ASSERT_EQ(Put(Key("read"), 50'000, 'a', Heads(0, 4)), absl::OkStatus());
  ASSERT_EQ(Put(Key("read"), 50'000, 'b', Heads(4, 8)), absl::OkStatus());
  const auto handle = store_->Get(Key("read"), Heads(0, 4));
  ASSERT_TRUE(handle.ok());
  for (int i = 0; i < 200; ++i)
    ASSERT_EQ(Put(Key(i), 20'000 + 5'000 * static_cast<uint64_t>(i % 40)), absl::OkStatus());
  EXPECT_GT(store_->Stats().evicted_blocks_total, 100u);
  EXPECT_TRUE(Has(Key("read")));
}

TEST_F(BlockStoreTest, MatchPrefixKeepsTheHeadOfAChainLongest) {
  Open({.host_bytes = 4 << 20, .index_stripes = 1});
  std::vector<BlockKey> chain;
  for (int number = 0; number < 8; ++number) {
    chain.push_back(Key(number));
    ASSERT_EQ(Put(chain.back(), 100'000), absl::OkStatus());
  }
  ASSERT_EQ(store_->MatchPrefix(chain, kWhole, nullptr), 8u);
  for (int number = 100; Has(chain.back()); ++number) {
    ASSERT_EQ(Put(Key(number), 100'000), absl::OkStatus());
  }
  EXPECT_EQ(store_->MatchPrefix(chain, kWhole, nullptr), 7u);
}

TEST_F(BlockStoreTest, EvictsThePartsOfABlockTogether) {
  Open({.host_bytes = 4 << 20, .index_stripes = 1});
  ASSERT_EQ(Put(Key("a"), 50'000, 'a', Heads(0, 4)), absl::OkStatus());
  ASSERT_EQ(Put(Key("b"), 50'000), absl::OkStatus());
  ASSERT_EQ(Put(Key("a"), 50'000, 'a', Heads(4, 8)), absl::OkStatus());
  int number = 0;
  while (Has(Key("a"))) ASSERT_EQ(Put(Key(number++), 50'000), absl::OkStatus());
  EXPECT_FALSE(Has(Key("a"), Heads(0, 4)));
  EXPECT_FALSE(Has(Key("a"), Heads(4, 8)));
  EXPECT_FALSE(Has(Key("b")));
}

TEST_F(BlockStoreTest, FullOfPinnedBlocksRefusesAndLosesNothing) {
  std::vector<BlockHandle> handles;
  int stored = 0;
  while (true) {
    const absl::Status status = Put(Key(stored), 100'000, static_cast<char>('a' + stored % 26));
    if (!status.ok()) {
      EXPECT_TRUE(absl::IsResourceExhausted(status));
      break;
    }
    handles.push_back(*store_->Get(Key(stored++), kWhole));
  }
  EXPECT_GT(stored, 30);
  EXPECT_EQ(store_->Stats().evicted_blocks_total, 0u);
  EXPECT_EQ(store_->Stats().pinned_parts, static_cast<uint64_t>(stored));
  for (int number = 0; number < stored; ++number) {
    EXPECT_TRUE(Read(Key(number)) == std::string(100'000, static_cast<char>('a' + number % 26))) << number;
  }
  handles.pop_back();
  EXPECT_EQ(Put(Key(stored), 100'000), absl::OkStatus());
  EXPECT_FALSE(Has(Key(stored - 1)));
}

TEST_F(BlockStoreTest, APinnedBlockKeepsItsBytesAfterDelete) {
  ASSERT_EQ(Put(Key("a"), 1000, 'a'), absl::OkStatus());
  auto handle = store_->Get(Key("a"), kWhole);
  ASSERT_TRUE(handle.ok());
  EXPECT_EQ(store_->Delete(Key("a")).stored_bytes, 1000u);
  EXPECT_FALSE(Has(Key("a")));
  EXPECT_GT(store_->Stats().used_bytes, 0u);
  EXPECT_EQ(store_->Stats().pinned_bytes, 1000u);
  ASSERT_EQ(Put(Key("a"), 1000, 'b'), absl::OkStatus());
  EXPECT_EQ(handle->parts()[0].bytes()[999], std::byte{'a'});
  *handle = BlockHandle();
  EXPECT_EQ(store_->Stats().pinned_bytes, 0u);
  EXPECT_TRUE(Read(Key("a")) == std::string(1000, 'b'));
  store_->Delete(Key("a"));
  EXPECT_EQ(store_->Stats().used_bytes, 0u);
}

TEST_F(BlockStoreTest, AHandleMayOutliveTheStore) {
  ASSERT_EQ(Put(Key("a"), 1000, 'a'), absl::OkStatus());
  auto handle = store_->Get(Key("a"), kWhole);
  ASSERT_TRUE(handle.ok());
  Open({.host_bytes = 1 << 20});
  EXPECT_EQ(handle->parts()[0].bytes()[999], std::byte{'a'});
}

TEST_F(BlockStoreTest, ClearForgetsOneCache) {
  for (int number = 0; number < 100; ++number) {
    ASSERT_EQ(Put(Key(absl::StrCat(number), 1), 100), absl::OkStatus());
    ASSERT_EQ(Put(Key(absl::StrCat(number), 2), 100), absl::OkStatus());
  }
  const BlockStore::Removed removed = store_->Clear(0, 1);
  EXPECT_EQ(removed.blocks, 100u);
  EXPECT_EQ(removed.stored_bytes, 10'000u);
  EXPECT_EQ(store_->StatsOf(0, 1), CacheStats());
  EXPECT_EQ(store_->StatsOf(0, 2).blocks, 100u);
  EXPECT_EQ(store_->Clear(0, 2).blocks, 100u);
  EXPECT_EQ(store_->Stats().used_bytes, 0u);
}

TEST_F(BlockStoreTest, DropDamagedCountsBlocks) {
  ASSERT_EQ(Put(Key("a"), 10), absl::OkStatus());
  store_->DropDamaged(Key("a"));
  store_->DropDamaged(Key("a"));
  EXPECT_FALSE(Has(Key("a")));
  EXPECT_EQ(store_->Stats().damaged_blocks_total, 1u);
}

TEST_F(BlockStoreTest, AnotherSizeGetsRoomWhenAllMemoryBelongsToOneClass) {
  int stored = 0;
  while (store_->Stats().evicted_blocks_total == 0) ASSERT_EQ(Put(Key(stored++), 3000), absl::OkStatus());
  EXPECT_EQ(Put(Key("large"), 2 << 20), absl::OkStatus());
  EXPECT_TRUE(Has(Key("large")));
  EXPECT_EQ(Put(Key("middle"), 200'000), absl::OkStatus());
  for (int number = 0; number < 2000; ++number) ASSERT_EQ(Put(Key(1'000'000 + number), 3000), absl::OkStatus());
}

TEST_F(BlockStoreTest, RoomIsMadeAmongNeighboursThatAreBeingRead) {
  Open({.host_bytes = 4 << 20, .bytes_per_slot = 1024});
  std::vector<BlockHandle> handles;
  int old_blocks = 0;
  for (; store_->Stats().used_bytes < 2 << 20; ++old_blocks) {
    ASSERT_EQ(Put(Key(old_blocks), 5000), absl::OkStatus());
    if (old_blocks % 2 == 0) handles.push_back(*store_->Get(Key(old_blocks), kWhole));
  }
  // No slab of old blocks can be emptied, and of the younger ones, which have another size, one is not being read.
  ASSERT_EQ(Put(Key("unread"), 9000), absl::OkStatus());
  for (int number = old_blocks; Has(Key("unread")); ++number) {
    ASSERT_EQ(Put(Key(number), 9000), absl::OkStatus());
    handles.push_back(*store_->Get(Key(number), kWhole));
    store_->Touch(std::vector<BlockKey>{Key("unread")});
  }
  EXPECT_TRUE(Has(Key(old_blocks - 1))) << "all old blocks were evicted, though that made no room";
  EXPECT_TRUE(absl::IsResourceExhausted(Put(Key("another"), 9000)));
}

TEST_F(BlockStoreTest, AFullSlotTableGivesUpTheOnlyBlockThatIsNotRead) {
  Open({.host_bytes = 4 << 20, .bytes_per_slot = 64 << 10});
  std::vector<BlockHandle> handles;
  ASSERT_EQ(Put(Key("unread"), 100), absl::OkStatus());
  int stored = 1;
  for (; Has(Key("unread")); ++stored) {
    store_->Touch(std::vector<BlockKey>{Key("unread")});
    ASSERT_EQ(Put(Key(stored), 100), absl::OkStatus());
    handles.push_back(*store_->Get(Key(stored), kWhole));
  }
  EXPECT_EQ(stored, 65);
  EXPECT_TRUE(absl::IsResourceExhausted(Put(Key("another"), 100)));
  EXPECT_EQ(store_->Stats().evicted_blocks_total, 1u);
}

TEST_F(BlockStoreTest, EvictionOverManyStripesIsCloseToLeastRecentlyUsed) {
  int stored = 0;
  while (store_->Stats().evicted_blocks_total == 0) ASSERT_EQ(Put(Key(stored++), 10'000), absl::OkStatus());
  const int fit = stored - 1;
  // How blocks fall on the stripes differs from process to process, so this counts over many fillings.
  constexpr int kFillings = 16;
  int young = 0;
  for (int filling = 0; filling < kFillings; ++filling) {
    for (const int end = stored + fit; stored < end; ++stored) ASSERT_EQ(Put(Key(stored), 10'000), absl::OkStatus());
    for (int number = stored - fit / 2; number < stored; ++number) young += Has(Key(number));
  }
  // Eviction at random would leave 79 % of them.
  EXPECT_GE(young, kFillings * (fit / 2) * 99 / 100) << "of the younger half of what fits too many are gone";
}

TEST_F(BlockStoreTest, RefusesTooManyPartsOfABlock) {
  Open({.host_bytes = 4 << 20, .bytes_per_slot = 1024});
  for (uint16_t head = 0; head < 1024; ++head) {
    ASSERT_EQ(Put(Key("a"), 10, 'x', Heads(2 * head, 2 * head + 1)), absl::OkStatus());
  }
  EXPECT_TRUE(absl::IsResourceExhausted(Put(Key("a"), 10, 'x', Heads(5000, 5001))));
  EXPECT_EQ(store_->Stats().parts, 1024u);
}

}  // namespace
}  // namespace nqkv
