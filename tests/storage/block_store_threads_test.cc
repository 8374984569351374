// Many threads on one store. Each part tells by its bytes which block and range it is, so that a reader sees at once
// when it was given the wrong memory, or memory that changes under it.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "storage/block_store.h"

namespace nqkv {
namespace {

constexpr int kThreads = 4;
constexpr int kKeys = 100;

// What every 8 bytes of the part are.
uint64_t Mark(int key, const PartRange& range) {
  return static_cast<uint64_t>(key) << 32 | static_cast<uint64_t>(range.head_begin) << 16 | range.head_end;
}

BlockKey KeyOf(int key) { return *BlockKey::Create(0, static_cast<CacheId>(key % 2), 0, absl::StrCat("key-", key)); }

class BlockStoreThreadsTest : public ::testing::Test {
 protected:
  void Run(const std::function<void(std::mt19937&)>& step, int steps) {
    std::vector<std::thread> threads;
    for (int thread = 0; thread < kThreads; ++thread) {
      threads.emplace_back([&, thread] {
        std::mt19937 random(static_cast<uint32_t>(thread));
        for (int count = 0; count < steps; ++count) step(random);
      });
    }
    for (std::thread& thread : threads) thread.join();
  }

  void Put(std::mt19937& random, uint64_t bytes_max) {
    const int key = static_cast<int>(random() % kKeys);
    const PartRange range = DrawRange(random);
    const uint64_t bytes = 8 * (1 + random() % (bytes_max / 8));
    auto reservation = store_->Reserve(KeyOf(key), range, bytes);
    if (!reservation.ok()) {
      refused_ += absl::IsResourceExhausted(reservation.status());
      return;
    }
    const uint64_t mark = Mark(key, range);
    for (uint64_t offset = 0; offset < bytes; offset += 8) {
      std::memcpy(reservation->bytes().data() + offset, &mark, 8);
    }
    if (random() % 8 == 0) return;
    committed_ += store_->Commit(*std::move(reservation), bytes, {.raw_bytes = 4 * bytes}).ok();
  }

  void Get(std::mt19937& random) {
    const int key = static_cast<int>(random() % kKeys);
    const auto handle = store_->Get(KeyOf(key), DrawRange(random));
    if (!handle.ok()) return;
    for (const PartPin& part : handle->parts()) {
      const uint64_t mark = Mark(key, part.range());
      for (size_t offset = 0; offset < part.bytes().size(); offset += 8) {
        wrong_ += std::memcmp(part.bytes().data() + offset, &mark, 8) != 0;
      }
    }
    ++read_;
  }

  static PartRange DrawRange(std::mt19937& random) {
    const auto size = static_cast<uint16_t>(1u << random() % 3);
    const auto rank = static_cast<uint16_t>(random() % size);
    return {0, 1, static_cast<uint16_t>(8 / size * rank), static_cast<uint16_t>(8 / size * (rank + 1))};
  }

  void ExpectCleanEnd() {
    EXPECT_EQ(wrong_, 0);
    EXPECT_EQ(store_->CheckConsistency(), absl::OkStatus());
    store_->Clear(0, 0);
    store_->Clear(0, 1);
    EXPECT_EQ(store_->Stats().used_bytes, 0u);
    EXPECT_EQ(store_->Stats().pinned_parts, 0u);
    EXPECT_EQ(store_->Stats().free_bytes, store_->Stats().capacity_bytes);
    EXPECT_EQ(store_->CheckConsistency(), absl::OkStatus());
  }

  std::unique_ptr<BlockStore> store_ = *BlockStore::Create({.host_bytes = 2 << 20, .bytes_per_slot = 1024});
  std::atomic<int> wrong_ = 0;
  std::atomic<int> read_ = 0;
  std::atomic<int> committed_ = 0;
  std::atomic<int> refused_ = 0;
};

TEST_F(BlockStoreThreadsTest, ReadersSeeTheirBlocksWhileOthersEvictDeleteAndClear) {
  Run(
      [this](std::mt19937& random) {
        switch (random() % 16) {
          case 0:
            store_->Delete(KeyOf(static_cast<int>(random() % kKeys)));
            break;
          case 1:
            if (random() % 32 == 0) store_->Clear(0, random() % 2);
            break;
          case 2:
            store_->MatchPrefix(std::vector<BlockKey>{KeyOf(static_cast<int>(random() % kKeys)), KeyOf(1)},
                                DrawRange(random), nullptr);
            break;
          case 3:
            EXPECT_LE(store_->Stats().pinned_parts, static_cast<uint64_t>(8 * kThreads));
            break;
          case 4:
          case 5:
          case 6:
          case 7:
          case 8:
          case 9:
            Get(random);
            break;
          default:
            Put(random, random() % 8 == 0 ? 400'000 : 20'000);
        }
      },
      3'000);
  EXPECT_GT(read_, 100);
  EXPECT_GT(committed_, 100);
  EXPECT_GT(store_->Stats().evicted_blocks_total, 100u);
  ExpectCleanEnd();
}

TEST_F(BlockStoreThreadsTest, OfManyWritersOfOneRangeOneWins) {
  for (int round = 0; round < 200; ++round) {
    std::atomic<int> stored = 0;
    std::atomic<int> already_there = 0;
    std::vector<std::thread> writers;
    for (int writer = 0; writer < kThreads; ++writer) {
      writers.emplace_back([&] {
        auto reservation = store_->Reserve(KeyOf(round % 2), {0, 1, 0, 8}, 1000);
        const absl::Status status =
            reservation.ok() ? store_->Commit(*std::move(reservation), 1000, {}) : reservation.status();
        stored += status.ok();
        already_there += absl::IsAlreadyExists(status);
      });
    }
    for (std::thread& writer : writers) writer.join();
    ASSERT_EQ(stored, 1);
    ASSERT_EQ(already_there, kThreads - 1);
    ASSERT_EQ(store_->Delete(KeyOf(round % 2)).blocks, 1u);
  }
  ExpectCleanEnd();
}

TEST_F(BlockStoreThreadsTest, WritersOfManySizesShareAFullStoreWithoutStarving) {
  Run([this](std::mt19937& random) { Put(random, 1u << (4 + random() % 15)); }, 3'000);
  // Each of the threads holds one reservation of at most 256 KiB, so there is always room to make.
  EXPECT_EQ(refused_, 0);
  ExpectCleanEnd();
}

TEST_F(BlockStoreThreadsTest, HandlesMayBeDroppedOnAnyThreadAfterTheStoreIsGone) {
  std::mt19937 random(1);
  for (int count = 0; count < 50; ++count) Put(random, 1000);
  std::vector<BlockHandle> handles;
  for (int key = 0; key < kKeys; ++key) {
    if (auto handle = store_->Get(KeyOf(key), {0, 1, 0, 2}); handle.ok()) handles.push_back(*std::move(handle));
  }
  ASSERT_GT(handles.size(), 2u);
  std::vector<std::thread> readers;
  for (BlockHandle& handle : handles) readers.emplace_back([&handle] { handle = BlockHandle(); });
  store_.reset();
  for (std::thread& reader : readers) reader.join();
}

}  // namespace
}  // namespace nqkv
