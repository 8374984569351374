#include "storage/block_pool.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <vector>

namespace nqkv {
namespace {

using ::testing::Each;

constexpr uint64_t kBegin = 4096;
constexpr uint64_t kMiB = 1 << 20;

bool Anybody(uint32_t) { return true; }

class BlockPoolTest : public ::testing::Test {
 protected:
  ~BlockPoolTest() override { EXPECT_EQ(pool_.FindInconsistency(), ""); }

  // Allocates until the pool is full; owners are numbered from `owner` on.
  std::vector<uint64_t> Fill(uint64_t bytes, uint32_t owner = 0) {
    std::vector<uint64_t> places;
    while (const auto place = pool_.Allocate(bytes, owner + static_cast<uint32_t>(places.size()))) {
      places.push_back(*place);
    }
    return places;
  }

  StoreStats Stats() const {
    StoreStats stats;
    pool_.AddStats(&stats);
    return stats;
  }

  BlockPool pool_{kBegin, 8 * kMiB};
};

TEST_F(BlockPoolTest, PlacesAreAlignedAndInside) {
  for (const uint64_t place : Fill(5000)) {
    EXPECT_EQ(place % kSlotAlignment, 0u);
    EXPECT_GE(place, kBegin);
    EXPECT_LE(place + 5000, kBegin + 8 * kMiB);
  }
}

TEST_F(BlockPoolTest, EmptySlabsGoBackToTheFreePages) {
  const std::vector<uint64_t> places = Fill(5000);
  EXPECT_LT(Stats().free_bytes, 64u << 10);
  EXPECT_GT(Stats().used_bytes, 7 * kMiB);
  for (const uint64_t place : places) pool_.Free(place);
  EXPECT_EQ(Stats().used_bytes, 0u);
  EXPECT_EQ(Stats().free_bytes, 8 * kMiB);
  EXPECT_TRUE(Stats().classes.empty());
  EXPECT_TRUE(pool_.Allocate(pool_.slot_bytes_max(), 0).has_value());
}

TEST_F(BlockPoolTest, TellsTheSlotsOfEachClass) {
  pool_.Allocate(5000, 0);
  pool_.Allocate(5000, 1);
  pool_.Allocate(300'000, 2);
  const auto classes = Stats().classes;
  ASSERT_EQ(classes.size(), 2u);
  EXPECT_EQ(classes[0].used_slots, 2u);
  EXPECT_GE(classes[0].slot_bytes, 5000u);
  EXPECT_EQ(classes[1].used_slots, 1u);
}

TEST_F(BlockPoolTest, AFreedSlotIsTakenAgain) {
  const std::vector<uint64_t> places = Fill(5000);
  pool_.Free(places[7]);
  EXPECT_EQ(pool_.Allocate(5000, 1), places[7]);
  EXPECT_FALSE(pool_.Allocate(5000, 2).has_value());
}

TEST_F(BlockPoolTest, HoldsBlocksOfAnySizeWell) {
  for (const uint64_t arena_bytes : {64 * kMiB, 256 * kMiB}) {
    for (const uint64_t bytes : {1000u, 1024u, 3000u, 10'000u, 17'000u, 100'000u, 420'000u, 1'400'000u, 1'468'006u}) {
      BlockPool pool(kBegin, arena_bytes);
      uint64_t stored_bytes = 0;
      while (pool.Allocate(bytes, 0).has_value()) stored_bytes += bytes;
      const double share = static_cast<double>(stored_bytes) / static_cast<double>(arena_bytes);
      // 3 % for the classes' distance (64 bytes below 2 KiB), the rest for the ends of slabs and of the arena.
      const double expected = bytes < 2048 ? 0.92 : 0.94;
      EXPECT_GT(share, expected) << bytes << " bytes in " << arena_bytes;
    }
  }
}

TEST_F(BlockPoolTest, TheLargestSlotTakesNearlyAllOfIt) {
  EXPECT_GT(pool_.slot_bytes_max(), 8 * kMiB * 97 / 100);
  EXPECT_LE(pool_.slot_bytes_max(), 8 * kMiB);
  EXPECT_EQ(BlockPool(0, 1000).slot_bytes_max(), 0u);
}

TEST_F(BlockPoolTest, SlotsNeverOverlapWhateverTheOrder) {
  std::mt19937 random(3);
  std::map<uint64_t, uint64_t> taken;  // Place -> bytes.
  uint64_t refused = 0;
  for (uint32_t step = 0; step < 30'000; ++step) {
    if (random() % 100 < 55) {
      const uint64_t bytes = uint64_t{1} << (random() % 21);
      const uint64_t asked = bytes + random() % bytes;
      const auto place = pool_.Allocate(asked, step);
      refused += !place.has_value();
      if (!place.has_value()) continue;
      const auto next = taken.lower_bound(*place);
      ASSERT_TRUE(next == taken.end() || *place + asked <= next->first);
      ASSERT_TRUE(next == taken.begin() || std::prev(next)->first + std::prev(next)->second <= *place);
      taken.emplace(*place, asked);
    } else if (!taken.empty()) {
      auto victim = taken.lower_bound(kBegin + random() % (8 * kMiB));
      if (victim == taken.end()) victim = taken.begin();
      pool_.Free(victim->first);
      taken.erase(victim);
    }
    if (step % 1000 == 0) {
      ASSERT_EQ(pool_.FindInconsistency(), "");
    }
  }
  EXPECT_GT(refused, 100u);
  for (const auto& [place, bytes] : taken) pool_.Free(place);
  EXPECT_EQ(Stats().free_bytes, 8 * kMiB);
}

TEST_F(BlockPoolTest, ADrainMakesRoomForALargerSlot) {
  const std::vector<uint64_t> places = Fill(5000);
  ASSERT_FALSE(pool_.Allocate(kMiB, 0).has_value());
  const auto drain = pool_.BeginDrain(kMiB, Anybody);
  ASSERT_TRUE(drain.has_value());
  EXPECT_LT(drain->owners.size() * 5000, kMiB * 3 / 2);
  for (const uint32_t owner : drain->owners) pool_.Free(places[owner]);
  pool_.EndDrain(*drain);
  EXPECT_TRUE(pool_.Allocate(kMiB, 0).has_value());
}

TEST_F(BlockPoolTest, AfterADrainThereIsRoomForAnySize) {
  std::mt19937 random(9);
  std::vector<std::optional<uint64_t>> places;
  const auto draw_bytes = [&] { return 1 + random() % (1u << (6 + random() % 16)); };
  for (int round = 0; round < 3'000; ++round) {
    const uint64_t bytes = draw_bytes();
    const auto owner = static_cast<uint32_t>(places.size());
    places.push_back(pool_.Allocate(bytes, owner));
    if (places.back().has_value()) continue;
    const auto drain = pool_.BeginDrain(bytes, Anybody);
    ASSERT_TRUE(drain.has_value());
    for (const uint32_t left : drain->owners) {
      pool_.Free(*places[left]);
      places[left].reset();
    }
    pool_.EndDrain(*drain);
    places.back() = pool_.Allocate(bytes, owner);
    ASSERT_TRUE(places.back().has_value()) << bytes << " bytes, round " << round;
  }
}

TEST_F(BlockPoolTest, NothingIsAllocatedWhereADrainGoesOn) {
  const std::vector<uint64_t> places = Fill(5000);
  const auto drain = pool_.BeginDrain(kMiB, Anybody);
  ASSERT_TRUE(drain.has_value());
  pool_.Free(places[drain->owners[0]]);
  EXPECT_FALSE(pool_.Allocate(5000, 0).has_value());
  pool_.EndDrain(*drain);
  EXPECT_EQ(pool_.Allocate(5000, 0), places[drain->owners[0]]);
}

TEST_F(BlockPoolTest, ADrainSparesSlabsWhoseOwnersCannotLeave) {
  const std::vector<uint64_t> places = Fill(5000);
  EXPECT_FALSE(pool_.BeginDrain(kMiB, [](uint32_t owner) { return owner % 100 != 0; }).has_value());
  const auto stuck = [](uint32_t owner) { return owner >= 1000; };
  const auto drain = pool_.BeginDrain(kMiB, stuck);
  ASSERT_TRUE(drain.has_value());
  EXPECT_THAT(drain->owners, Each(::testing::Ge(1000u)));
  pool_.EndDrain(*drain);
}

TEST_F(BlockPoolTest, ADrainPrefersWhatIsEmptyAndOld) {
  const std::vector<uint64_t> places = Fill(200'000);
  for (size_t index = 11; index < 20; ++index) pool_.Free(places[index]);
  // Refills all but a few slots, so that slabs are equally full and the youngest ones are known.
  std::vector<uint32_t> young;
  for (uint32_t owner = 100; owner < 105; ++owner) {
    ASSERT_TRUE(pool_.Allocate(200'000, owner).has_value());
    young.push_back(owner);
  }
  const auto drain = pool_.BeginDrain(2 * kMiB, Anybody);
  ASSERT_TRUE(drain.has_value());
  for (const uint32_t owner : young) EXPECT_THAT(drain->owners, Each(::testing::Ne(owner)));
  pool_.EndDrain(*drain);
}

TEST_F(BlockPoolTest, FindsAnOwnerOfTheRightSize) {
  pool_.Allocate(5000, 1);
  pool_.Allocate(5000, 2);
  pool_.Allocate(50'000, 3);
  EXPECT_EQ(pool_.FindOwner(5000, [](uint32_t owner) { return owner != 1; }), 2u);
  EXPECT_EQ(pool_.FindOwner(50'000, Anybody), 3u);
  EXPECT_EQ(pool_.FindOwner(500, Anybody), std::nullopt);
  EXPECT_EQ(pool_.FindOwner(5000, [](uint32_t) { return false; }), std::nullopt);
}

TEST_F(BlockPoolTest, TakenSlotsTellsOwnersAndPlaces) {
  const uint64_t place = *pool_.Allocate(5000, 17);
  const auto taken = pool_.TakenSlots();
  ASSERT_EQ(taken.size(), 1u);
  EXPECT_EQ(taken[0].owner, 17u);
  EXPECT_EQ(taken[0].offset, place);
  EXPECT_GE(taken[0].slot_bytes, 5000u);
}

}  // namespace
}  // namespace nqkv
