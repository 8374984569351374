// One entry a slot: what is stored there, and who reads it. The table lies at the head of the arena.
//
// An entry is free, reserved (one writer owns it), committed (readers may pin it) or gone (forgotten; its memory waits
// for the last reader). State and pins share one atomic word, so that exactly one party sees a slot become gone and
// unpinned, and frees it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "absl/strings/string_view.h"
#include "kernels/block_layout.h"
#include "storage/arena.h"
#include "storage/block_key.h"
#include "storage/mutex.h"
#include "storage/size_class.h"

namespace nqkv {

inline constexpr uint32_t kNoSlot = UINT32_MAX;

enum class SlotState : uint8_t { kFree = 0, kReserved = 1, kCommitted = 2, kGone = 3 };

// Everything but the atomics is written by the owner of a reservation only, and is constant while committed or gone.
struct SlotEntry {
  BlockKey key;
  PartRange range;
  std::atomic<uint32_t> word = 0;  // State in the upper 2 bits, pins below.
  // Where the slot's memory lies: in units of kSlotAlignment from the start of the arena (38 bits), and by how many
  // pages of the pool that is behind the start of its slab.
  uint64_t place = 0;
  union {
    uint64_t raw_bytes = 0;  // Reserved and committed: size before encoding.
    uint64_t next;           // Free, or gone and unpinned: the next slot of the list it is on.
  };
  uint64_t scope_tag = 0;  // Of PartInfo::scope; 0 for none.
  uint32_t bytes = 0;      // Committed: stored bytes. Reserved: bytes asked for.
  float floor_error = 0;
  float token_norm_error = 0;
  SizeClass size_class = 0;  // Of the slot's memory.
  uint8_t provenance = 0;
  std::atomic<bool> has_siblings = false;  // The block has, or has had, more parts than this one.

  static constexpr int kUnitBits = 38;
  uint64_t offset() const { return (place & ((uint64_t{1} << kUnitBits) - 1)) * kSlotAlignment; }
  uint32_t slab_pages_before() const { return static_cast<uint32_t>(place >> kUnitBits); }
  void SetPlace(uint64_t offset, uint32_t slab_pages_before) {
    place = offset / kSlotAlignment | uint64_t{slab_pages_before} << kUnitBits;
  }

  SlotState state() const { return static_cast<SlotState>(word.load(std::memory_order_acquire) >> 30); }
  uint32_t pins() const { return word.load(std::memory_order_acquire) & ((1u << 30) - 1); }
};
static_assert(sizeof(SlotEntry) <= 128);

class SlotTable;
struct SlotTableRelease {
  void operator()(SlotTable* table) const;
};
// The store's share of a table.
using SlotTablePointer = std::unique_ptr<SlotTable, SlotTableRelease>;

// Owns the arena. Lives until the store has let go of it and no slot is pinned, so a reader that is late may still read
// and unpin. Thread-safe.
class SlotTable {
 public:
  // Bytes of a table with so many entries.
  static uint64_t TableBytes(uint32_t slot_count) { return uint64_t{slot_count} * sizeof(SlotEntry); }

  // Precondition: the arena holds TableBytes(slot_count) bytes, and a table of so many entries if it was restored. Then
  // the entries that are committed stay so, with no pins, and all others become free.
  static SlotTablePointer Create(std::unique_ptr<Arena> arena, uint32_t slot_count);

  Arena& arena() { return *arena_; }
  uint32_t slot_count() const { return slot_count_; }
  const SlotEntry& entry(uint32_t slot) const { return entries_[slot]; }
  SlotEntry& entry(uint32_t slot) { return entries_[slot]; }
  std::byte* memory(uint32_t slot) const { return arena_->bytes().data() + entries_[slot].offset(); }

  // Takes a free entry, which becomes reserved; kNoSlot when none is free.
  uint32_t Acquire() ABSL_LOCKS_EXCLUDED(mutex_);
  // Gives back an entry that nobody pins: reserved, or gone.
  void Release(uint32_t slot) ABSL_LOCKS_EXCLUDED(mutex_);
  // Entries that Acquire could give.
  uint32_t free_count() const ABSL_LOCKS_EXCLUDED(mutex_);

  // Reserved -> committed.
  void Commit(uint32_t slot);
  // Committed -> gone. True: nobody pins it and the caller frees it. False: the last Unpin puts it on the list of slots
  // to free.
  bool Forget(uint32_t slot);

  // Pins a committed slot. The caller makes sure that it stays committed meanwhile (it holds the lock of its index).
  void Pin(uint32_t slot);
  // Pins the slot if it is committed and unpinned. May be called for any slot at any time.
  bool TryPin(uint32_t slot);
  // May be called on any thread: takes no lock. May destroy the table.
  void Unpin(uint32_t slot);

  // Takes the list of gone slots that have lost their last pin; kNoSlot ends it. Follow it with NextToFree, which is
  // valid until the slot is released.
  uint32_t TakeSlotsToFree() { return to_free_.exchange(kNoSlot, std::memory_order_acquire); }
  uint32_t NextToFree(uint32_t slot) const { return static_cast<uint32_t>(entries_[slot].next); }

  uint64_t pinned_parts() const { return references_.load(std::memory_order_relaxed) - 1; }
  uint64_t pinned_bytes() const { return pinned_bytes_.load(std::memory_order_relaxed); }

 private:
  friend struct SlotTableRelease;
  SlotTable(std::unique_ptr<Arena> arena, uint32_t slot_count);
  ~SlotTable() = default;

  bool Restore(SlotEntry* entry) const;
  void CountPinned(uint32_t bytes);
  void CountUnpinned(uint32_t bytes);
  void PushToFree(uint32_t slot);
  void DropReference();

  const std::unique_ptr<Arena> arena_;
  SlotEntry* const entries_;
  const uint32_t slot_count_;
  std::atomic<uint64_t> references_ = 1;  // The store and each pinned slot; 0 destroys.
  std::atomic<uint64_t> pinned_bytes_ = 0;
  std::atomic<uint32_t> to_free_ = kNoSlot;

  mutable Mutex mutex_;
  uint32_t free_ ABSL_GUARDED_BY(mutex_) = kNoSlot;  // Head of the list of free entries.
  uint32_t free_count_ ABSL_GUARDED_BY(mutex_) = 0;
};

// What stands for a scope in the table. Different scopes may share a tag: what goes by tags may forget too much, never
// too little. Part of the arena's format. 0 only for the empty scope.
uint64_t ScopeTag(absl::string_view scope);

}  // namespace nqkv
