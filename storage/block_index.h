// Finds the committed parts of a block, and knows which block to forget next.
//
// Blocks are spread over stripes by the hash of their key; a stripe does the work under its one lock.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "storage/block_presence.h"
#include "storage/index_stripe.h"

namespace nqkv {

// Thread-safe.
class BlockIndex {
 public:
  static constexpr size_t kPartsMax = 1024;  // A block.

  // `table` outlives the index. `stripe_count` is a power of two.
  BlockIndex(SlotTable* table, uint32_t stripe_count, absl::string_view eviction_policy);

  // Whether a part of this range may be added: ALREADY_EXISTS when the parts cover it, RESOURCE_EXHAUSTED when the
  // block has kPartsMax parts.
  absl::Status CheckRoom(const BlockKey& key, const PartRange& range) const;

  // Commits a reserved slot, whose entry is filled in with `key` and all else. Parts inside the new one leave, since
  // nobody needs them any more. Errors: as CheckRoom; the slot is still reserved then.
  absl::Status Commit(uint32_t slot, const BlockKey& key, FreedSlots* freed);

  BlockPresence Find(const BlockKey& key, const PartRange& range) const;
  // Pins the parts that cover the range, and touches the block. Empty when it is not covered.
  std::vector<PartPin> Get(const BlockKey& key, const PartRange& range);
  // From last to first.
  void Touch(std::span<const BlockKey> keys);

  Forgotten Delete(const BlockKey& key, FreedSlots* freed);
  // Forgets up to `blocks_max` blocks of the cache in one stripe.
  Forgotten ClearSome(uint32_t stripe, TenantId tenant, CacheId cache, uint64_t blocks_max, FreedSlots* freed);
  uint32_t stripe_count() const { return static_cast<uint32_t>(stripes_.size()); }
  uint64_t block_count(uint32_t stripe) const { return stripes_[stripe]->block_count(); }

  // Forgets a block that nobody reads and that was used about the longest ago: the oldest of up to 4 stripes' next
  // victims. No block when all are being read.
  Forgotten EvictOldest(FreedSlots* freed);

  // Adds blocks, parts, stored_bytes and raw_bytes.
  void AddStats(StoreStats* stats) const;
  CacheStats StatsOf(TenantId tenant, CacheId cache) const;

  // Appends the slots of all parts; INTERNAL names a contradiction.
  absl::Status CheckConsistency(std::vector<uint32_t>* slots) const;

  // Differs from process to process.
  static uint64_t HashOf(const BlockKey& key) { return absl::Hash<BlockKey>()(key); }

 private:
  // The lower half of the hash goes into the stripe's table.
  IndexStripe& StripeOf(uint64_t hash) const { return *stripes_[(hash >> 32) & (stripes_.size() - 1)]; }
  uint64_t Now() { return clock_.fetch_add(1, std::memory_order_relaxed) + 1; }
  IndexStripe* SampleVictim();

  std::vector<BlockNode> nodes_;     // By slot.
  std::vector<EvictionLink> links_;  // By slot.
  std::vector<std::unique_ptr<IndexStripe>> stripes_;
  std::atomic<uint64_t> clock_ = 0;    // Logical: one tick a use.
  std::atomic<uint64_t> samples_ = 0;  // Drawn so far.
};

}  // namespace nqkv
