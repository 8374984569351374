#include "storage/slot_table.h"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

namespace nqkv {
namespace {

class SlotTableTest : public ::testing::Test {
 protected:
  static constexpr uint32_t kSlots = 8;

  SlotTableTest() : table_(SlotTable::Create(*Arena::Create({.bytes = SlotTable::TableBytes(kSlots)}), kSlots)) {}

  uint32_t CommitOne(uint32_t bytes) {
    const uint32_t slot = table_->Acquire();
    table_->entry(slot).bytes = bytes;
    table_->Commit(slot);
    return slot;
  }

  SlotTablePointer table_;
};

TEST_F(SlotTableTest, AnEntryTakesAtMost128Bytes) {
  RecordProperty("slot_entry_bytes", static_cast<int>(sizeof(SlotEntry)));
  EXPECT_LE(sizeof(SlotEntry), 128u);
  EXPECT_EQ(SlotTable::TableBytes(1000), 1000 * sizeof(SlotEntry));
}

TEST_F(SlotTableTest, GivesEachEntryOnce) {
  std::vector<bool> taken(kSlots);
  for (uint32_t count = 0; count < kSlots; ++count) {
    const uint32_t slot = table_->Acquire();
    ASSERT_LT(slot, kSlots);
    EXPECT_FALSE(taken[slot]);
    taken[slot] = true;
    EXPECT_EQ(table_->entry(slot).state(), SlotState::kReserved);
  }
  EXPECT_EQ(table_->Acquire(), kNoSlot);
  table_->Release(5);
  EXPECT_EQ(table_->free_count(), 1u);
  EXPECT_EQ(table_->Acquire(), 5u);
}

TEST_F(SlotTableTest, AnUnpinnedSlotIsTheForgettersToFree) {
  const uint32_t slot = CommitOne(10);
  table_->Pin(slot);
  table_->Unpin(slot);
  EXPECT_EQ(table_->entry(slot).state(), SlotState::kCommitted);
  EXPECT_TRUE(table_->Forget(slot));
  EXPECT_EQ(table_->TakeSlotsToFree(), kNoSlot);
}

TEST_F(SlotTableTest, APinnedSlotIsFreedByItsLastReader) {
  const uint32_t slot = CommitOne(10);
  table_->Pin(slot);
  table_->Pin(slot);
  EXPECT_FALSE(table_->Forget(slot));
  table_->Unpin(slot);
  EXPECT_EQ(table_->TakeSlotsToFree(), kNoSlot);
  table_->Unpin(slot);
  EXPECT_EQ(table_->TakeSlotsToFree(), slot);
  EXPECT_EQ(table_->NextToFree(slot), kNoSlot);
}

TEST_F(SlotTableTest, CountsPinnedPartsOnceHoweverManyReaders) {
  const uint32_t slot = CommitOne(10);
  const uint32_t other = CommitOne(100);
  table_->Pin(slot);
  table_->Pin(slot);
  table_->Pin(other);
  EXPECT_EQ(table_->pinned_parts(), 2u);
  EXPECT_EQ(table_->pinned_bytes(), 110u);
  table_->Unpin(slot);
  EXPECT_EQ(table_->pinned_parts(), 2u);
  table_->Unpin(slot);
  table_->Unpin(other);
  EXPECT_EQ(table_->pinned_parts(), 0u);
  EXPECT_EQ(table_->pinned_bytes(), 0u);
}

TEST_F(SlotTableTest, TryPinTakesCommittedUnpinnedSlotsOnly) {
  const uint32_t slot = table_->Acquire();
  EXPECT_FALSE(table_->TryPin(slot));
  table_->Commit(slot);
  EXPECT_TRUE(table_->TryPin(slot));
  EXPECT_FALSE(table_->TryPin(slot));
  EXPECT_FALSE(table_->Forget(slot));
  table_->Unpin(slot);
  EXPECT_FALSE(table_->TryPin(slot));
}

TEST_F(SlotTableTest, LivesUntilTheLastPinWhenItsOwnerIsGone) {
  const uint32_t slot = CommitOne(10);
  table_->Pin(slot);
  SlotTable* table = table_.get();
  table_.reset();
  EXPECT_EQ(table->entry(slot).bytes, 10u);
  table->Unpin(slot);  // Destroys the table; the address sanitizer tells if it did not.
}

TEST_F(SlotTableTest, ExactlyOneThreadFreesASlot) {
  for (int round = 0; round < 2'000; ++round) {
    const uint32_t slot = CommitOne(10);
    table_->Pin(slot);
    bool forgetter_frees = false;
    std::thread reader([&] { table_->Unpin(slot); });
    forgetter_frees = table_->Forget(slot);
    reader.join();
    const bool reader_frees = table_->TakeSlotsToFree() == slot;
    ASSERT_NE(forgetter_frees, reader_frees);
    table_->Release(slot);
  }
  EXPECT_EQ(table_->free_count(), kSlots);
}

TEST(ScopeTagTest, IsZeroForNoScopeOnly) {
  EXPECT_EQ(ScopeTag(""), 0u);
  EXPECT_NE(ScopeTag("a"), 0u);
  EXPECT_NE(ScopeTag("a"), ScopeTag("b"));
  EXPECT_EQ(ScopeTag("a"), 0xaf63dc4c8601ec8cu);
}

}  // namespace
}  // namespace nqkv
