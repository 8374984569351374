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
  absl::Status Commit(uint32_t slot, const BlockKey& key, uint32_t seconds, FreedSlots* freed);

  // Takes in a slot that is committed already. Errors: as CheckRoom; the slot is still committed then.
  absl::Status Restore(uint32_t slot, const BlockKey& key, FreedSlots* freed);

  BlockPresence Find(const BlockKey& key, const PartRange& range) const;
  // How many leading keys cover the range. Appends one presence for each to `presences`, unless that is null.
  size_t CountPrefix(std::span<const BlockKey> keys, const PartRange& range,
                     std::vector<BlockPresence>* presences) const;
  // Pins the parts that cover the range. Empty when it is not covered.
  std::vector<PartPin> Get(const BlockKey& key, const PartRange& range) const;
  // From last to first.
  void UseAll(std::span<const BlockKey> keys, Use use, uint32_t seconds);

  Forgotten Delete(const BlockKey& key, FreedSlots* freed);
  // The same, unless a part of it is being read.
  Forgotten Evict(const BlockKey& key, FreedSlots* freed);
  // Of all parts.
  uint64_t CountPins(const BlockKey& key) const;
  // Forgets up to `blocks_max` blocks of the cache in one stripe.
  Forgotten ClearSome(uint32_t stripe, TenantId tenant, CacheId cache, uint64_t blocks_max, FreedSlots* freed);
  uint32_t stripe_count() const { return static_cast<uint32_t>(stripes_.size()); }
  uint64_t block_count(uint32_t stripe) const { return stripes_[stripe]->block_count(); }

  // Forgets a block that nobody reads and that was used about the longest ago: the oldest of up to 16 stripes' next
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
  // Keys that are looked up together.
  static constexpr size_t kBatchKeys = 128;
  class Batch;

  // The lower half of the hash goes into the stripe's table.
  uint32_t StripeNumberOf(uint64_t hash) const { return static_cast<uint32_t>((hash >> 32) & (stripes_.size() - 1)); }
  IndexStripe& StripeOf(uint64_t hash) const { return *stripes_[StripeNumberOf(hash)]; }
  // The last of `ticks` ticks that are the caller's.
  uint64_t Tick(uint64_t ticks = 1) { return clock_.fetch_add(ticks, std::memory_order_relaxed) + ticks; }
  // The stripe whose rank is the lowest of up to 16, and the second lowest rank; null when they have none.
  struct Lowest {
    IndexStripe* stripe = nullptr;
    uint64_t next_rank = 0;
  };
  Lowest SampleLowest(uint64_t (IndexStripe::*rank)() const);
  void BalanceProtected(size_t rounds_max);

  IndexWeights weights_;
  std::vector<BlockNode> nodes_;     // By slot.
  std::vector<EvictionLink> links_;  // By slot.
  std::vector<std::unique_ptr<IndexStripe>> stripes_;
  std::atomic<uint64_t> clock_ = 0;    // Logical: one tick a use.
  std::atomic<uint64_t> samples_ = 0;  // Drawn so far.
};

}  // namespace nqkv
