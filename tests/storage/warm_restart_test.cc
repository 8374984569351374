// What a store finds in the file that another one left, in good order or killed at any moment.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "storage/block_store.h"
#include "storage/slot_table.h"
#include "tests/support/temp_dir.h"

namespace nqkv {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kHostBytes = 4 << 20;
constexpr PartRange kWhole = {.layer_begin = 0, .layer_end = 4, .head_begin = 0, .head_end = 8};

BlockKey Key(uint64_t number, CacheId cache = 1) {
  return *BlockKey::Create(0, cache, 0, absl::StrCat("key-", number));
}

// A block's bytes follow from its number.
std::string BytesOf(uint64_t number) {
  std::mt19937 random(static_cast<uint32_t>(number));
  std::string bytes(1 + random() % (number % 10 == 0 ? 60'000 : 3'000), '\0');
  for (char& byte : bytes) byte = static_cast<char>(random());
  return bytes;
}

absl::Status Put(BlockStore* store, uint64_t number, const PartRange& range = kWhole, CacheId cache = 1) {
  const std::string bytes = BytesOf(number);
  auto reservation = store->Reserve(Key(number, cache), range, bytes.size());
  if (!reservation.ok()) return reservation.status();
  std::memcpy(reservation->bytes().data(), bytes.data(), bytes.size());
  return store->Commit(*std::move(reservation), bytes.size(), {.raw_bytes = bytes.size() * 4});
}

// Whether the block is there; if so its bytes are right.
bool Has(BlockStore* store, uint64_t number, const PartRange& range = kWhole, CacheId cache = 1) {
  const auto handle = store->Get(Key(number, cache), range);
  if (!handle.ok()) return false;
  for (const PartPin& part : handle->parts()) {
    const std::string bytes(reinterpret_cast<const char*>(part.bytes().data()), part.bytes().size());
    EXPECT_TRUE(bytes == BytesOf(number)) << "block " << number;
  }
  return true;
}

Digest DigestOf(char text) {
  Digest digest = {};
  digest.fill(static_cast<uint8_t>(text));
  return digest;
}

class WarmRestartTest : public ::testing::Test {
 protected:
  ~WarmRestartTest() override {
    if (store_ != nullptr) {
      EXPECT_EQ(store_->CheckConsistency(), absl::OkStatus());
    }
  }

  StorageOptions Options() const {
    return {.host_bytes = kHostBytes, .arena_path = path_, .warm_restart = true, .bytes_per_slot = 1024};
  }

  void Start(const StorageOptions& options) {
    auto store = BlockStore::Create(options);
    ASSERT_EQ(store.status(), absl::OkStatus());
    store_ = *std::move(store);
    EXPECT_EQ(store_->CheckConsistency(), absl::OkStatus());
  }
  void Start() { Start(Options()); }
  void Restart() {
    store_.reset();
    Start();
  }

  testing::TempDir folder_;
  const std::string path_ = folder_.path() + "/arena";
  std::unique_ptr<BlockStore> store_;
};

TEST_F(WarmRestartTest, CommittedBlocksAreFoundAgainWithTheirBytes) {
  StorageOptions options = Options();
  options.host_bytes = 32 << 20;
  Start(options);
  EXPECT_EQ(store_->restart_report().discarded, "");
  for (uint64_t number = 0; number < 200; ++number) ASSERT_EQ(Put(store_.get(), number), absl::OkStatus());
  for (uint64_t number = 0; number < 200; number += 7) store_->Delete(Key(number));
  const StoreStats before = store_->Stats();
  store_.reset();
  Start(options);
  EXPECT_EQ(store_->restart_report().restored_parts, before.parts);
  for (uint64_t number = 0; number < 200; ++number) EXPECT_EQ(Has(store_.get(), number), number % 7 != 0);
  const StoreStats after = store_->Stats();
  EXPECT_EQ(after.blocks, before.blocks);
  EXPECT_EQ(after.stored_bytes, before.stored_bytes);
  EXPECT_EQ(after.raw_bytes, before.raw_bytes);
  EXPECT_EQ(after.used_bytes, before.used_bytes);
  // It works on: old blocks give way to new ones.
  for (uint64_t number = 1000; number < 9000; ++number) ASSERT_EQ(Put(store_.get(), number), absl::OkStatus());
  EXPECT_TRUE(Has(store_.get(), 8999));
  EXPECT_GT(store_->Stats().evicted_blocks_total, 0u);
}

TEST_F(WarmRestartTest, TheFileIsPrivateAndOutlivesTheStore) {
  Start();
  store_.reset();
  struct stat info = {};
  ASSERT_EQ(stat(path_.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0600u);
  StorageOptions cold = Options();
  cold.warm_restart = false;
  Start(cold);
  store_.reset();
  EXPECT_NE(stat(path_.c_str(), &info), 0) << "without warm_restart the file goes";
}

TEST_F(WarmRestartTest, PartsOfABlockAreFoundAgain) {
  Start();
  for (uint16_t head = 0; head < 8; head += 2) {
    ASSERT_EQ(Put(store_.get(), 5, {0, 4, head, static_cast<uint16_t>(head + 2)}), absl::OkStatus());
  }
  Restart();
  EXPECT_TRUE(Has(store_.get(), 5));
  EXPECT_EQ(store_->Stats().blocks, 1u);
  EXPECT_EQ(store_->Stats().parts, 4u);
}

TEST_F(WarmRestartTest, OtherOptionsStartCleanAndSaySo) {
  Start();
  ASSERT_EQ(Put(store_.get(), 1), absl::OkStatus());
  store_.reset();
  StorageOptions other = Options();
  other.bytes_per_slot = 2048;
  Start(other);
  EXPECT_FALSE(Has(store_.get(), 1));
  EXPECT_THAT(store_->restart_report().discarded, HasSubstr("4096 slots"));
  EXPECT_THAT(store_->restart_report().discarded, HasSubstr("2048 slots"));
  store_.reset();
  other.host_bytes += 1 << 20;
  Start(other);
  EXPECT_NE(store_->restart_report().discarded, "");
}

TEST_F(WarmRestartTest, AFileOfAStoreThatWasNotToOutliveItsProcessStartsClean) {
  const std::string copy = path_ + "-copy";
  StorageOptions cold = Options();
  cold.warm_restart = false;
  Start(cold);
  ASSERT_EQ(Put(store_.get(), 1), absl::OkStatus());
  ASSERT_EQ(link(path_.c_str(), copy.c_str()), 0);
  store_.reset();
  ASSERT_EQ(rename(copy.c_str(), path_.c_str()), 0);
  Start();
  EXPECT_FALSE(Has(store_.get(), 1));
  EXPECT_THAT(store_->restart_report().discarded, HasSubstr("not complete"));
}

TEST_F(WarmRestartTest, NeedsAFile) {
  EXPECT_TRUE(absl::IsInvalidArgument(StorageOptions{.warm_restart = true}.Validate()));
}

TEST_F(WarmRestartTest, CachesKeepTheirNumbers) {
  Start();
  const CacheId first = store_->NameCache(DigestOf('a'), DigestOf('s'))->id;
  const CacheId second = store_->NameCache(DigestOf('b'), DigestOf('s'))->id;
  EXPECT_NE(first, second);
  ASSERT_EQ(Put(store_.get(), 1, kWhole, first), absl::OkStatus());
  ASSERT_EQ(Put(store_.get(), 2, kWhole, second), absl::OkStatus());
  Restart();
  EXPECT_EQ(store_->NameCache(DigestOf('b'), DigestOf('s'))->id, second);
  EXPECT_EQ(store_->NameCache(DigestOf('a'), DigestOf('s'))->id, first);
  EXPECT_FALSE(store_->NameCache(DigestOf('a'), DigestOf('s'))->spec_changed);
  const CacheId third = store_->NameCache(DigestOf('c'), DigestOf('s'))->id;
  EXPECT_NE(third, first);
  EXPECT_NE(third, second);
  EXPECT_TRUE(Has(store_.get(), 1, kWhole, first));
}

TEST_F(WarmRestartTest, AChangedSpecStartsCleanAndSaysSo) {
  Start();
  const CacheId before = store_->NameCache(DigestOf('a'), DigestOf('s'))->id;
  ASSERT_EQ(Put(store_.get(), 1, kWhole, before), absl::OkStatus());
  Restart();
  const auto after = store_->NameCache(DigestOf('a'), DigestOf('t'));
  ASSERT_TRUE(after.has_value());
  EXPECT_TRUE(after->spec_changed);
  EXPECT_EQ(after->given_up, before);
  EXPECT_NE(after->id, before);
  EXPECT_FALSE(Has(store_.get(), 1, kWhole, after->id));
}

TEST_F(WarmRestartTest, NamesThatNobodyAsksForGiveWayToOthers) {
  Start();
  const auto digest = [](size_t number) {
    Digest name = {};
    std::memcpy(name.data(), &number, sizeof(number));
    return name;
  };
  for (size_t i = 0; i < CacheDirectory::kNamesMax; ++i) store_->NameCache(digest(i), DigestOf('s'));
  const CacheId unnamed = store_->NameCache(DigestOf('n'), DigestOf('s'))->id;
  EXPECT_NE(store_->NameCache(DigestOf('n'), DigestOf('s'))->id, unnamed) << "there is no room to know it again";
  ASSERT_EQ(Put(store_.get(), 1, kWhole, unnamed), absl::OkStatus());
  Restart();
  const CacheId first = store_->NameCache(digest(0), DigestOf('s'))->id;
  const auto named = store_->NameCache(DigestOf('n'), DigestOf('s'));
  EXPECT_TRUE(named->given_up.has_value());
  EXPECT_NE(named->given_up, first);
  EXPECT_FALSE(named->spec_changed);
  EXPECT_GT(named->id, unnamed) << "blocks with that number may be left";
}

TEST_F(WarmRestartTest, WithoutAFileThatStaysCachesHaveNoNumbersToKeep) {
  Start({.host_bytes = kHostBytes});
  EXPECT_FALSE(store_->NameCache(DigestOf('a'), DigestOf('s')).has_value());
}

// Whatever bytes the table has, the start neither crashes nor serves what was not committed whole.
TEST_F(WarmRestartTest, ADamagedTableIsNoHarm) {
  std::mt19937 random(3);
  for (int round = 0; round < 60; ++round) {
    Start();
    for (uint64_t number = 0; number < 300; ++number) Put(store_.get(), number).IgnoreError();
    store_.reset();
    {
      std::fstream file(path_, std::ios::in | std::ios::out | std::ios::binary);
      for (int i = 0; i < 40; ++i) {
        const uint64_t slot = random() % 400;
        file.seekp(static_cast<std::streamoff>(Arena::kHeaderBytes + slot * sizeof(SlotEntry) + sizeof(BlockKey) +
                                               random() % (sizeof(SlotEntry) - sizeof(BlockKey))));
        file.put(static_cast<char>(round % 2 == 0 ? random() : 1u << random() % 8));
      }
    }
    Start();
    for (uint64_t number = 0; number < 300; ++number) store_->Find(Key(number), kWhole);
    for (uint64_t number = 1000; number < 1400; ++number) Put(store_.get(), number).IgnoreError();
    EXPECT_EQ(store_->CheckConsistency(), absl::OkStatus());
    store_.reset();
    ASSERT_EQ(unlink(path_.c_str()), 0);
  }
}

// The child stores, deletes and reserves; what it has done is told through memory that outlives it.
struct Progress {
  std::atomic<uint64_t> committed = 0;  // Blocks below it are.
  std::atomic<uint64_t> deleted = 0;    // Every third block below it is.
};

[[noreturn]] void RunChild(const StorageOptions& options, uint64_t first, Progress* progress) {
  auto store = BlockStore::Create(options);
  if (!store.ok()) _exit(3);
  std::vector<Reservation> open;
  for (uint64_t number = first;; ++number) {
    auto reservation = (*store)->Reserve(Key(1'000'000 + number), kWhole, 500);
    if (reservation.ok()) open.push_back(*std::move(reservation));
    if (open.size() > 20) open.clear();
    if (!Put(store->get(), number).ok()) _exit(4);
    progress->committed.store(number + 1, std::memory_order_release);
    if (number % 3 == 0 && number >= 30) {
      (*store)->Delete(Key(number - 30));
      progress->deleted.store(number - 29, std::memory_order_release);
    }
  }
}

TEST_F(WarmRestartTest, AfterSigkillAtAnyMomentWhatWasCommittedIsThereAndNothingElse) {
  const char* wanted = std::getenv("NQKV_CRASH_ROUNDS");
  const int rounds = wanted == nullptr ? 10 : std::atoi(wanted);
  void* memory = mmap(nullptr, sizeof(Progress), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  std::mt19937 random(7);
  StorageOptions options = Options();
  options.host_bytes = 64 << 20;
  uint64_t first = 0;
  for (int round = 0; round < rounds; ++round) {
    auto* progress = new (memory) Progress;
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) RunChild(options, first, progress);
    const uint64_t goal = first + 40 + random() % 300;
    while (progress->committed.load(std::memory_order_acquire) < goal) {
      ASSERT_EQ(waitpid(child, nullptr, WNOHANG), 0) << "the child ended by itself";
      std::this_thread::yield();
    }
    ASSERT_EQ(kill(child, SIGKILL), 0);
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status));
    Start(options);
    const uint64_t committed = progress->committed;
    const uint64_t deleted = progress->deleted;
    for (uint64_t number = first; number < committed; ++number) {
      const bool gone = number % 3 == 0 && number < deleted;
      const bool unsure = number % 3 == 0 && number >= deleted && number < deleted + 6;  // Deleted, and not told.
      const bool has = Has(store_.get(), number);
      if (!unsure) {
        ASSERT_EQ(has, !gone) << "block " << number;
      }
    }
    Has(store_.get(), committed);  // It may be there, and then it is whole.
    for (uint64_t number = first; number < committed + 2; ++number) {
      EXPECT_FALSE(store_->Find(Key(1'000'000 + number), kWhole).present) << "it was never committed";
    }
    EXPECT_EQ(store_->Stats().reserved_bytes, 0u);
    EXPECT_EQ(store_->Stats().evicted_blocks_total, 0u);
    first = committed + 2;
    for (uint64_t number = 0; number < first; ++number) store_->Delete(Key(number));
    store_.reset();
  }
  munmap(memory, sizeof(Progress));
}

}  // namespace
}  // namespace nqkv
