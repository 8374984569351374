#include "storage/size_class.h"

#include <gtest/gtest.h>

namespace nqkv {
namespace {

TEST(SizeClassTest, ClassesAreMultiplesOf64AndGrow) {
  for (SizeClass size_class = 0; size_class < SizeClassCount(); ++size_class) {
    EXPECT_EQ(SlotBytes(size_class) % kSlotAlignment, 0u);
    if (size_class == 0) continue;
    EXPECT_GT(SlotBytes(size_class), SlotBytes(size_class - 1));
  }
  EXPECT_EQ(SlotBytes(0), kSlotAlignment);
  EXPECT_EQ(SlotBytes(SizeClassCount() - 1), kSlotBytesMax);
}

TEST(SizeClassTest, ClassesAreAtMostThreePercentApart) {
  for (SizeClass size_class = 1; size_class < SizeClassCount(); ++size_class) {
    const uint64_t step = SlotBytes(size_class) - SlotBytes(size_class - 1);
    EXPECT_TRUE(step == kSlotAlignment || step * 100 <= SlotBytes(size_class - 1) * 3) << SlotBytes(size_class);
  }
}

TEST(SizeClassTest, TheClassOfASizeIsTheSmallestThatHoldsIt) {
  for (SizeClass size_class = 0; size_class < SizeClassCount(); ++size_class) {
    EXPECT_EQ(SizeClassOf(SlotBytes(size_class)), size_class);
    EXPECT_EQ(SizeClassOf(SlotBytes(size_class) - kSlotAlignment + 1), size_class);
    if (size_class == 0) continue;
    EXPECT_EQ(SizeClassOf(SlotBytes(size_class - 1) + 1), size_class);
  }
  EXPECT_EQ(SizeClassOf(1), 0);
}

}  // namespace
}  // namespace nqkv
