#include "storage/slot_table.h"

#include <cassert>
#include <new>
#include <utility>

namespace nqkv {
namespace {

constexpr uint32_t kReservedWord = 1u << 30;
constexpr uint32_t kCommittedWord = 2u << 30;
constexpr uint32_t kGoneWord = 3u << 30;
constexpr uint32_t kPinsMask = (1u << 30) - 1;

}  // namespace

void SlotTableRelease::operator()(SlotTable* table) const { table->DropReference(); }

SlotTablePointer SlotTable::Create(std::unique_ptr<Arena> arena, uint32_t slot_count) {
  return SlotTablePointer(new SlotTable(std::move(arena), slot_count));
}

SlotTable::SlotTable(std::unique_ptr<Arena> arena, uint32_t slot_count)
    : arena_(std::move(arena)),
      entries_(reinterpret_cast<SlotEntry*>(arena_->bytes().data())),
      slot_count_(slot_count) {
  assert(arena_->bytes().size() >= TableBytes(slot_count));
  MutexLock lock(&mutex_);
  for (uint32_t slot = slot_count; slot-- > 0;) {
    if (arena_->restored() && Restore(&entries_[slot])) continue;
    SlotEntry* entry = new (&entries_[slot]) SlotEntry;
    entry->next = std::exchange(free_, slot);
    ++free_count_;
  }
}

// Whether the entry is a committed part's that can be. What it says may be anything.
bool SlotTable::Restore(SlotEntry* entry) const {
  if (entry->state() != SlotState::kCommitted) return false;
  const bool valid = entry->key.IsValid() && !entry->range.empty() && entry->size_class < SizeClassCount() &&
                     entry->bytes > 0 && entry->bytes <= SlotBytes(entry->size_class);
  if (!valid) return false;
  entry->word.store(kCommittedWord, std::memory_order_relaxed);
  entry->has_siblings.store(false, std::memory_order_relaxed);
  return true;
}

uint32_t SlotTable::Acquire() {
  MutexLock lock(&mutex_);
  if (free_ == kNoSlot) return kNoSlot;
  const uint32_t slot = free_;
  free_ = static_cast<uint32_t>(entries_[slot].next);
  --free_count_;
  entries_[slot].has_siblings.store(false, std::memory_order_relaxed);
  entries_[slot].word.store(kReservedWord, std::memory_order_relaxed);
  return slot;
}

void SlotTable::Release(uint32_t slot) {
  MutexLock lock(&mutex_);
  entries_[slot].word.store(0, std::memory_order_relaxed);
  entries_[slot].next = std::exchange(free_, slot);
  ++free_count_;
}

uint32_t SlotTable::free_count() const {
  MutexLock lock(&mutex_);
  return free_count_;
}

void SlotTable::Commit(uint32_t slot) { entries_[slot].word.store(kCommittedWord, std::memory_order_release); }

bool SlotTable::Forget(uint32_t slot) {
  const uint32_t before = entries_[slot].word.fetch_or(kGoneWord, std::memory_order_acq_rel);
  assert((before & ~kPinsMask) == kCommittedWord);
  return (before & kPinsMask) == 0;
}

void SlotTable::Pin(uint32_t slot) {
  SlotEntry& entry = entries_[slot];
  const uint32_t before = entry.word.fetch_add(1, std::memory_order_acq_rel);
  if ((before & kPinsMask) == 0) CountPinned(entry.bytes);
}

bool SlotTable::TryPin(uint32_t slot) {
  SlotEntry& entry = entries_[slot];
  uint32_t expected = kCommittedWord;
  if (!entry.word.compare_exchange_strong(expected, kCommittedWord + 1, std::memory_order_acq_rel)) return false;
  CountPinned(entry.bytes);
  return true;
}

void SlotTable::Unpin(uint32_t slot) {
  SlotEntry& entry = entries_[slot];
  // Read first: once unpinned, the entry may be another part's.
  const uint32_t bytes = entry.bytes;
  const uint32_t before = entry.word.fetch_sub(1, std::memory_order_acq_rel);
  if ((before & kPinsMask) != 1) return;
  if ((before & ~kPinsMask) == kGoneWord) PushToFree(slot);
  CountUnpinned(bytes);
}

// The pin that this counts holds off its own CountUnpinned, so the counters never fall below zero.
void SlotTable::CountPinned(uint32_t bytes) {
  references_.fetch_add(1, std::memory_order_relaxed);
  pinned_bytes_.fetch_add(bytes, std::memory_order_relaxed);
}

void SlotTable::CountUnpinned(uint32_t bytes) {
  pinned_bytes_.fetch_sub(bytes, std::memory_order_relaxed);
  DropReference();
}

// Push only; the whole list is taken at once, so no slot can leave and return in between (no ABA).
void SlotTable::PushToFree(uint32_t slot) {
  uint32_t head = to_free_.load(std::memory_order_relaxed);
  do {
    entries_[slot].next = head;
  } while (!to_free_.compare_exchange_weak(head, slot, std::memory_order_release, std::memory_order_relaxed));
}

void SlotTable::DropReference() {
  if (references_.fetch_sub(1, std::memory_order_acq_rel) == 1) delete this;
}

// FNV-1a, 64 bits: short, and the same everywhere.
uint64_t ScopeTag(absl::string_view scope) {
  if (scope.empty()) return 0;
  uint64_t tag = 0xcbf29ce484222325u;
  for (const char byte : scope) tag = (tag ^ static_cast<uint8_t>(byte)) * 0x100000001b3u;
  return tag == 0 ? 1 : tag;
}

}  // namespace nqkv
