// Many threads lease, read, release and end sessions while others put, evict and delete under them.
#include <gtest/gtest.h>

#include <functional>
#include <random>
#include <thread>

#include "tests/storage/lease_fixture.h"

namespace nqkv {
namespace {

using std::chrono::milliseconds;

constexpr int kThreads = 4;
constexpr int kSteps = 2'000;
constexpr int kBlocks = 400;

class Worker {
 public:
  Worker(LeaseFixture* fixture, uint32_t seed) : fixture_(fixture), random_(seed) {}

  void Run() {
    for (int step = 0; step < kSteps; ++step) Step();
    reads_.clear();
  }

 private:
  void Step() {
    LeaseTable& table = fixture_->table();
    switch (random_() % 10) {
      case 0:
        if (const auto session = table.OpenSession(0, "worker"); session.ok()) session_ = *session;
        return;
      case 1:
        return static_cast<void>(table.CloseSession(session_));
      case 2:
        return static_cast<void>(table.Hear(session_).ok());
      case 3:
        fixture_->clock().Turn(milliseconds(random_() % 20));
        return static_cast<void>(table.Sweep());
      case 4:
        if (!tokens_.empty()) table.Release(0, tokens_[random_() % tokens_.size()]);
        return;
      case 5:
        fixture_->Put(Block());
        return static_cast<void>(fixture_->store().Delete(LeaseFixture::KeyOf(Block())));
      case 6:
        reads_.clear();
        return;
      case 7:
        return Read();
      default:
        return Grant();
    }
  }

  void Grant() {
    std::vector<int> blocks;
    for (int i = 0; i < 8; ++i) blocks.push_back(Block());
    for (const int block : blocks) fixture_->Put(block);
    auto token = fixture_->table().Grant({.session_id = random_() % 2 == 0 ? session_.session_id : "",
                                          .request_id = random_() % 2 == 0 ? absl::StrCat(random_() % 5) : "",
                                          .duration = milliseconds(100)},
                                         fixture_->Pin(blocks));
    if (token.ok()) tokens_.push_back(*std::move(token));
    if (tokens_.size() > 50) tokens_.erase(tokens_.begin(), tokens_.begin() + 25);
  }

  void Read() {
    if (tokens_.empty()) return;
    auto read = fixture_->table().BeginRead(0, tokens_[random_() % tokens_.size()]);
    if (read.ok()) reads_.push_back(*std::move(read));
  }

  int Block() { return static_cast<int>(random_() % kBlocks); }

  LeaseFixture* const fixture_;
  std::mt19937 random_;
  LeaseTable::Speaker session_;
  std::vector<std::string> tokens_;
  std::vector<LeaseTable::Hold> reads_;
};

TEST(LeaseTableThreadsTest, NothingIsLostOrPinnedForEver) {
  LeaseFixture fixture({}, uint64_t{1} << 20);  // Too small for all the blocks.
  std::vector<std::thread> threads;
  for (uint32_t thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&fixture, thread] { Worker(&fixture, thread).Run(); });
  }
  for (int check = 0; check < 50; ++check) EXPECT_TRUE(fixture.table().CheckConsistency().ok());
  for (std::thread& thread : threads) thread.join();
  fixture.clock().Turn(std::chrono::hours(1));
  fixture.SweepAll();
  const LeaseStats stats = fixture.table().Stats();
  EXPECT_GT(stats.granted_total, 0u);
  EXPECT_EQ(stats.leases + stats.sessions + stats.reads + stats.parts + stats.bytes, 0u);
  EXPECT_TRUE(fixture.table().CheckConsistency().ok()) << fixture.table().CheckConsistency();
  EXPECT_EQ(fixture.store().Stats().pinned_parts, 0u);
  EXPECT_TRUE(fixture.store().CheckConsistency().ok()) << fixture.store().CheckConsistency();
}

}  // namespace
}  // namespace nqkv
