// Random operations on a store and on a model of it. The store may forget (evict) what the model holds, but only whole
// blocks, only unpinned ones, and as many as it counts; all else must be equal.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "storage/block_store.h"
#include "tests/support/store_model.h"

namespace nqkv {
namespace {

constexpr uint16_t kLayers = 4;
constexpr uint16_t kHeads = 8;
constexpr size_t kHandlesMax = 12;
#ifdef __SANITIZE_THREAD__
constexpr int kSteps = 5'000;  // There is one thread here; block_store_threads_test has many.
#else
constexpr int kSteps = 50'000;
#endif

struct Case {
  uint32_t seed = 0;
  uint64_t host_bytes = 0;
  uint64_t part_bytes_max = 0;
  uint32_t index_stripes = 16;
  int keys = 0;
  std::string eviction_policy = "slru";
  int steps = kSteps;
};

void PrintTo(const Case& test_case, std::ostream* out) { *out << "seed " << test_case.seed; }

class BlockStoreModelTest : public ::testing::TestWithParam<Case> {
 protected:
  BlockStoreModelTest() : random_(GetParam().seed) {
    store_ = *BlockStore::Create({.host_bytes = GetParam().host_bytes,
                                  .bytes_per_slot = 1024,
                                  .index_stripes = GetParam().index_stripes,
                                  .eviction_policy = GetParam().eviction_policy});
  }

  int Draw(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }

  BlockKey DrawKey() {
    const int number = Draw(0, GetParam().keys - 1);
    return *BlockKey::Create(number % 2, number % 3, number % 5 == 0, absl::StrCat("key-", number));
  }

  // Mostly what a shard of a whole model holds, sometimes anything.
  PartRange DrawRange() {
    if (Draw(0, 3) != 0) {
      const int size = 1 << Draw(0, 3);
      const int rank = Draw(0, size - 1);
      return {0, kLayers, static_cast<uint16_t>(kHeads / size * rank),
              static_cast<uint16_t>(kHeads / size * (rank + 1))};
    }
    const auto layer = static_cast<uint16_t>(Draw(0, kLayers - 1));
    const auto head = static_cast<uint16_t>(Draw(0, kHeads - 1));
    return {layer, static_cast<uint16_t>(Draw(layer + 1, kLayers)), head,
            static_cast<uint16_t>(Draw(head + 1, kHeads))};
  }

  std::string DrawBytes() {
    const double share = std::uniform_real_distribution<double>(0, 1)(random_);
    const auto size = static_cast<size_t>(1 + share * share * share * static_cast<double>(GetParam().part_bytes_max));
    std::string bytes(size, static_cast<char>('a' + Draw(0, 25)));
    const uint32_t id = ++parts_made_;
    std::memcpy(bytes.data(), &id, std::min(sizeof(id), size));
    bytes.back() = static_cast<char>(id);
    return bytes;
  }

  // Whether the store has forgotten the block; then the model forgets it too. Parts go together or not at all.
  void Reconcile(const BlockKey& key) {
    const StoreModel::Block& block = model_.FindBlock(key);
    if (block.empty()) return;
    size_t found = 0;
    for (const StoreModel::Part& part : block) found += store_->Find(key, part.range).present;
    if (found == block.size()) return;
    ASSERT_EQ(found, 0u) << "a block lost some of its parts";
    ASSERT_FALSE(IsHeld(key)) << "a pinned block was evicted";
    model_.Delete(key);
    ++evicted_blocks_;
  }

  void Put() {
    const BlockKey key = DrawKey();
    const PartRange range = DrawRange();
    const std::string bytes = DrawBytes();
    Reconcile(key);
    const uint64_t evicted_before = store_->Stats().evicted_blocks_total;
    auto reservation = store_->Reserve(key, range, bytes.size() * static_cast<size_t>(1 + Draw(0, 7) / 7));
    Reconcile(key);
    if (!reservation.ok()) {
      EXPECT_EQ(store_->Stats().evicted_blocks_total, evicted_before) << "evicted for nothing";
      if (absl::IsAlreadyExists(reservation.status())) {
        EXPECT_TRUE(model_.Covers(key, range));
      } else {
        EXPECT_TRUE(absl::IsResourceExhausted(reservation.status())) << reservation.status();
        ++refused_;
      }
      return;
    }
    ASSERT_GE(reservation->bytes().size(), bytes.size());
    std::memcpy(reservation->bytes().data(), bytes.data(), bytes.size());
    if (Draw(0, 9) == 0) return;  // Drops it.
    if (Draw(0, 3) == 0) {
      reserved_.push_back({*std::move(reservation), bytes});
      if (reserved_.size() > 4) Commit();
      return;
    }
    Commit(*std::move(reservation), bytes);
  }

  void Commit() {
    auto [reservation, bytes] = std::move(reserved_.front());
    reserved_.pop_front();
    Commit(std::move(reservation), bytes);
  }

  void Commit(Reservation reservation, const std::string& bytes) {
    const BlockKey key = reservation.key();
    const PartRange range = reservation.range();
    Reconcile(key);
    const absl::Status status =
        store_->Commit(std::move(reservation), bytes.size(),
                       {.raw_bytes = bytes.size() * 4, .expected_reuse = static_cast<float>(Draw(0, 3)) / 60});
    if (model_.Put(key, range, bytes)) {
      EXPECT_EQ(status, absl::OkStatus());
      ++committed_;
    } else {
      EXPECT_TRUE(absl::IsAlreadyExists(status)) << status;
    }
  }

  void Get() {
    const BlockKey key = DrawKey();
    const PartRange range = DrawRange();
    Reconcile(key);
    auto handle = store_->Get(key, range);
    ASSERT_EQ(handle.ok(), model_.Covers(key, range)) << handle.status();
    ASSERT_EQ(store_->Find(key, range).present, handle.ok());
    if (!handle.ok()) return;
    Held held = {.key = key, .handle = *std::move(handle), .bytes = {}};
    std::vector<PartRange> ranges;
    for (const PartPin& pin : held.handle.parts()) {
      const StoreModel::Part* part = model_.FindPart(key, pin.range());
      ASSERT_NE(part, nullptr);
      held.bytes.push_back(part->bytes);
      ranges.push_back(pin.range());
    }
    ASSERT_TRUE(CoversCellByCell(ranges, range));
    CheckBytes(held);
    if (Draw(0, 1) == 0) held_.push_back(std::move(held));
    if (held_.size() > kHandlesMax) DropHandle();
  }

  void DropHandle() {
    if (held_.empty()) return;
    const size_t index = static_cast<size_t>(Draw(0, static_cast<int>(held_.size()) - 1));
    CheckBytes(held_[index]);
    held_.erase(held_.begin() + static_cast<ptrdiff_t>(index));
  }

  void Delete() {
    const BlockKey key = DrawKey();
    Reconcile(key);
    EXPECT_EQ(store_->Delete(key).blocks, model_.Delete(key));
  }

  void Clear() {
    for (const BlockKey& key : model_.Keys()) Reconcile(key);
    const auto tenant = static_cast<TenantId>(Draw(0, 1));
    const auto cache = static_cast<CacheId>(Draw(0, 2));
    EXPECT_EQ(store_->Clear(tenant, cache).blocks, model_.Clear(tenant, cache));
  }

  void MatchPrefix() {
    std::vector<BlockKey> keys;
    for (int count = Draw(0, 6); count > 0; --count) keys.push_back(DrawKey());
    const PartRange range = DrawRange();
    for (const BlockKey& key : keys) Reconcile(key);
    size_t expected = 0;
    while (expected < keys.size() && model_.Covers(keys[expected], range)) ++expected;
    std::vector<BlockPresence> blocks;
    EXPECT_EQ(store_->MatchPrefix(keys, range, &blocks), expected);
    EXPECT_EQ(blocks.size(), expected);
  }

  // Changes the order of eviction only.
  void Use() {
    std::vector<BlockKey> keys;
    for (int count = Draw(0, 200); count > 0; --count) keys.push_back(DrawKey());
    switch (Draw(0, 2)) {
      case 0:
        return store_->Touch(keys);
      case 1:
        return store_->Settle(keys);
      default:
        return store_->Demote(keys);
    }
  }

  void CompareCounts() {
    for (const BlockKey& key : model_.Keys()) Reconcile(key);
    const StoreStats stats = store_->Stats();
    EXPECT_EQ(stats.evicted_blocks_total, evicted_blocks_);
    const auto& ages = stats.evicted_ages.counts;
    EXPECT_EQ(std::accumulate(ages.begin(), ages.end(), uint64_t{0}), evicted_blocks_);
    EXPECT_LE(stats.used_bytes, stats.capacity_bytes);
    CacheStats sum;
    for (TenantId tenant = 0; tenant < 2; ++tenant) {
      for (CacheId cache = 0; cache < 3; ++cache) {
        const CacheStats expected = model_.StatsOf(tenant, cache);
        const CacheStats counted = store_->StatsOf(tenant, cache);
        EXPECT_EQ(counted.blocks, expected.blocks);
        EXPECT_EQ(counted.parts, expected.parts);
        EXPECT_EQ(counted.stored_bytes, expected.stored_bytes);
        EXPECT_EQ(counted.raw_bytes, expected.stored_bytes * 4);
        sum.blocks += counted.blocks;
        sum.parts += counted.parts;
        sum.stored_bytes += counted.stored_bytes;
      }
    }
    EXPECT_EQ(stats.blocks, sum.blocks);
    EXPECT_EQ(stats.parts, sum.parts);
    EXPECT_EQ(stats.stored_bytes, sum.stored_bytes);
    EXPECT_EQ(stats.pinned_parts == 0, held_.empty());
    EXPECT_EQ(store_->CheckConsistency(), absl::OkStatus());
  }

  void Step() {
    const int choice = Draw(0, 999);
    if (choice < 450) {
      Put();
    } else if (choice < 700) {
      Get();
    } else if (choice < 800) {
      DropHandle();
    } else if (choice < 850) {
      Delete();
    } else if (choice < 852) {
      Clear();
    } else if (choice < 952) {
      MatchPrefix();
    } else if (choice < 990) {
      Use();
    } else {
      CompareCounts();
    }
  }

  struct Held {
    BlockKey key;
    BlockHandle handle;
    std::vector<std::string> bytes;  // Of its parts, in order.
  };

  bool IsHeld(const BlockKey& key) const {
    // A handle of a block that was deleted and put again does not protect the new one.
    return std::any_of(held_.begin(), held_.end(), [&](const Held& held) {
      if (!(held.key == key)) return false;
      for (size_t index = 0; index < held.bytes.size(); ++index) {
        const StoreModel::Part* part = model_.FindPart(key, held.handle.parts()[index].range());
        if (part != nullptr && part->bytes == held.bytes[index]) return true;
      }
      return false;
    });
  }

  static void CheckBytes(const Held& held) {
    ASSERT_EQ(held.handle.parts().size(), held.bytes.size());
    for (size_t index = 0; index < held.bytes.size(); ++index) {
      const auto bytes = held.handle.parts()[index].bytes();
      ASSERT_EQ(bytes.size(), held.bytes[index].size());
      ASSERT_EQ(std::memcmp(bytes.data(), held.bytes[index].data(), bytes.size()), 0);
    }
  }

  std::mt19937 random_;
  std::unique_ptr<BlockStore> store_;
  StoreModel model_;
  std::deque<std::pair<Reservation, std::string>> reserved_;
  std::vector<Held> held_;
  uint32_t parts_made_ = 0;
  uint64_t evicted_blocks_ = 0;
  uint64_t committed_ = 0;
  uint64_t refused_ = 0;
};

TEST_P(BlockStoreModelTest, AgreesWithTheModel) {
  for (int step = 0; step < GetParam().steps && !HasFailure(); ++step) Step();
  CompareCounts();
  EXPECT_GT(committed_, static_cast<uint64_t>(GetParam().steps) / 20);
  EXPECT_GT(evicted_blocks_, 0u);
  held_.clear();
  reserved_.clear();
  CompareCounts();
  for (const BlockKey& key : model_.Keys()) store_->Delete(key);
  EXPECT_EQ(store_->Stats().used_bytes, 0u);
  EXPECT_EQ(store_->Stats().free_bytes, store_->Stats().capacity_bytes);
  EXPECT_EQ(store_->CheckConsistency(), absl::OkStatus());
}

INSTANTIATE_TEST_SUITE_P(
    Seeds, BlockStoreModelTest,
    ::testing::Values(
        Case{.seed = 1, .host_bytes = 4 << 20, .part_bytes_max = 100'000, .keys = 200},
        Case{.seed = 2, .host_bytes = 2 << 20, .part_bytes_max = 500'000, .keys = 60},
        Case{.seed = 3, .host_bytes = 2 << 20, .part_bytes_max = 2'000, .keys = 3000},
        Case{.seed = 4,
             .host_bytes = 1 << 20,
             .part_bytes_max = 300'000,
             .index_stripes = 1,
             .keys = 30,
             .eviction_policy = "lru"},
        Case{.seed = 5, .host_bytes = 2 << 20, .part_bytes_max = 700'000, .index_stripes = 2, .keys = 40}));

}  // namespace
}  // namespace nqkv
