#include "kernels/block_layout.h"

#include <gtest/gtest.h>

namespace nqkv {
namespace {

GroupLayout KeysAndValues(uint16_t first_layer, uint16_t last_layer) {
  GroupLayout group{.id = 1, .block_tokens = 16, .planes = {}};
  for (uint16_t layer = first_layer; layer <= last_layer; ++layer) {
    group.planes.push_back({.layer = layer, .role = PlaneRole::kKey, .heads = 4, .channels = 64});
    group.planes.push_back({.layer = layer, .role = PlaneRole::kValue, .heads = 4, .channels = 128});
  }
  return group;
}

TEST(BlockLayoutTest, WholeRangeReachesFromFirstToLastLayerAndOverAllHeads) {
  EXPECT_EQ(WholeRange(KeysAndValues(3, 5)), (PartRange{3, 6, 0, 4}));
  EXPECT_TRUE(WholeRange(GroupLayout{}).empty());
}

TEST(BlockLayoutTest, FindsThePlanesOfARange) {
  const GroupLayout group = KeysAndValues(3, 5);
  const PlaneSpan middle = PlanesIn(group, {4, 5, 0, 4});
  EXPECT_EQ(middle.first, 2u);
  EXPECT_EQ(middle.last, 4u);
  const PlaneSpan none = PlanesIn(group, {6, 9, 0, 4});
  EXPECT_EQ(none.first, none.last);
}

TEST(BlockLayoutTest, CountsRawBytesOfTheRangeAlone) {
  const GroupLayout group = KeysAndValues(0, 1);
  EXPECT_EQ(RawBytes(group, WholeRange(group)), 2u * 16 * 4 * (64 + 128) * 2);
  EXPECT_EQ(RawBytes(group, {1, 2, 1, 2}), 16u * (64 + 128) * 2);
}

TEST(BlockLayoutTest, ARangeContainsWhatLiesInside) {
  const PartRange range{2, 4, 0, 8};
  EXPECT_TRUE(range.Contains({2, 4, 0, 8}));
  EXPECT_TRUE(range.Contains({3, 4, 7, 8}));
  EXPECT_FALSE(range.Contains({1, 4, 0, 8}));
  EXPECT_FALSE(range.Contains({2, 4, 0, 9}));
}

}  // namespace
}  // namespace nqkv
