#include "storage/coverage.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "tests/support/store_model.h"

namespace nqkv {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

PartRange Range(int layer_begin, int layer_end, int head_begin, int head_end) {
  return {.layer_begin = static_cast<uint16_t>(layer_begin),
          .layer_end = static_cast<uint16_t>(layer_end),
          .head_begin = static_cast<uint16_t>(head_begin),
          .head_end = static_cast<uint16_t>(head_end)};
}

TEST(CoverageTest, NothingCoversNothingButTheEmptyRange) {
  EXPECT_FALSE(Covers({}, Range(0, 1, 0, 1)));
  EXPECT_TRUE(Covers({}, Range(3, 3, 0, 1)));
}

TEST(CoverageTest, OnePartIsEnoughWhenItHoldsTheRange) {
  const std::vector<PartRange> parts = {Range(0, 2, 0, 2), Range(0, 4, 0, 8)};
  EXPECT_THAT(PartsFor(parts, Range(1, 3, 2, 4)), ElementsAre(1u));
  EXPECT_THAT(PartsFor(parts, Range(0, 1, 0, 1)), ElementsAre(0u));
}

TEST(CoverageTest, ShardsOfAnySizeTogetherServeAnyOther) {
  std::vector<PartRange> parts;
  for (int rank = 0; rank < 4; ++rank) parts.push_back(Range(0, 32, 2 * rank, 2 * rank + 2));
  EXPECT_THAT(PartsFor(parts, Range(0, 32, 0, 8)), ElementsAre(0u, 1u, 2u, 3u));
  EXPECT_THAT(PartsFor(parts, Range(0, 32, 4, 8)), ElementsAre(2u, 3u));
  EXPECT_THAT(PartsFor(parts, Range(5, 6, 3, 4)), ElementsAre(1u));
  parts.erase(parts.begin() + 2);
  EXPECT_THAT(PartsFor(parts, Range(0, 32, 0, 8)), IsEmpty());
  EXPECT_THAT(PartsFor(parts, Range(0, 32, 0, 4)), ElementsAre(0u, 1u));
}

TEST(CoverageTest, AHoleInTheMiddleIsSeenWhenAreasAddUp) {
  // Two overlapping parts make up for the area of the hole.
  const std::vector<PartRange> parts = {Range(0, 2, 0, 3), Range(0, 2, 1, 3), Range(2, 4, 0, 4)};
  EXPECT_FALSE(Covers(parts, Range(0, 4, 0, 4)));
  EXPECT_TRUE(Covers(parts, Range(0, 4, 0, 3)));
}

TEST(CoverageTest, AgreesWithCountingCells) {
  std::mt19937 random(7);
  const auto draw = [&](int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); };
  int covered = 0;
  for (int round = 0; round < 20'000; ++round) {
    std::vector<PartRange> parts;
    const int count = draw(0, 12);
    for (int part = 0; part < count; ++part) {
      const int layer = draw(0, 5), head = draw(0, 5);
      parts.push_back(Range(layer, draw(layer + 1, 6), head, draw(head + 1, 6)));
    }
    const int layer = draw(0, 5), head = draw(0, 5);
    const PartRange needed = Range(layer, draw(layer + 1, 6), head, draw(head + 1, 6));
    const bool expected = CoversCellByCell(parts, needed);
    ASSERT_EQ(Covers(parts, needed), expected) << "round " << round;
    if (!expected) continue;
    ++covered;
    std::vector<PartRange> chosen;
    for (const uint32_t index : PartsFor(parts, needed)) chosen.push_back(parts[index]);
    ASSERT_TRUE(CoversCellByCell(chosen, needed)) << "round " << round;
  }
  EXPECT_GT(covered, 2'000);
}

TEST(CoverageTest, ABlockOfAThousandPartsIsNoTrouble) {
  std::vector<PartRange> parts;
  for (int layer = 0; layer < 32; ++layer) {
    for (int head = 0; head < 32; ++head) parts.push_back(Range(layer, layer + 1, head, head + 1));
  }
  EXPECT_TRUE(Covers(parts, Range(0, 32, 0, 32)));
  parts[500] = Range(0, 1, 0, 1);
  EXPECT_FALSE(Covers(parts, Range(0, 32, 0, 32)));
  EXPECT_TRUE(Covers(parts, Range(0, 15, 0, 32)));
  EXPECT_TRUE(Covers(parts, Range(16, 32, 0, 32)));
}

}  // namespace
}  // namespace nqkv
