// One lock's share of the index: some blocks, the order in which they will be evicted, and their counts.
//
// A block is the list of its parts' slots; the slot of the first one names it (BlockId). The stripe keeps no keys: it
// compares with those in the slot table. Under the lock only memory is read: no I/O, no codec, no callback, no other
// lock. What leaves is handed to the caller, who frees it outside.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/container/inlined_vector.h"
#include "absl/status/status.h"
#include "storage/block_handle.h"
#include "storage/block_key.h"
#include "storage/block_presence.h"
#include "storage/coverage.h"
#include "storage/eviction_policy.h"
#include "storage/mutex.h"
#include "storage/slot_table.h"
#include "storage/stats.h"

namespace nqkv {

// Slots that left the index unpinned: the caller owns them and frees them.
using FreedSlots = absl::InlinedVector<uint32_t, 16>;

// What one slot's part costs the index beside its EvictionLink. Guarded by the lock of its block's stripe.
struct BlockNode {
  uint32_t next_part = kNoSlot;
  BlockId newer = kNoBlock;  // First part only: in the list of the cache's blocks of this stripe.
  BlockId older = kNoBlock;
};

struct HashedKey {
  const BlockKey& key;
  uint64_t hash;
};

// Thread-safe.
class alignas(64) IndexStripe {
 public:
  // All outlive the stripe; `nodes` and `links` have one entry a slot and are shared by the stripes.
  struct Shared {
    SlotTable* table = nullptr;
    std::span<BlockNode> nodes;
    std::span<EvictionLink> links;
  };
  IndexStripe(const Shared& shared, absl::string_view eviction_policy, size_t blocks_expected);

  // The methods are those of BlockIndex, where they are described. `now` is the index's clock.
  absl::Status CheckRoom(const HashedKey& key, const PartRange& range) const ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status Commit(uint32_t slot, uint64_t hash, uint64_t now, FreedSlots* freed) ABSL_LOCKS_EXCLUDED(mutex_);
  BlockPresence Find(const HashedKey& key, const PartRange& range) const ABSL_LOCKS_EXCLUDED(mutex_);
  std::vector<PartPin> Get(const HashedKey& key, const PartRange& range, uint64_t now) ABSL_LOCKS_EXCLUDED(mutex_);
  void Touch(const HashedKey& key, uint64_t now) ABSL_LOCKS_EXCLUDED(mutex_);
  Forgotten Delete(const HashedKey& key, FreedSlots* freed) ABSL_LOCKS_EXCLUDED(mutex_);
  Forgotten ClearSome(TenantId tenant, CacheId cache, uint64_t blocks_max, FreedSlots* freed)
      ABSL_LOCKS_EXCLUDED(mutex_);

  // When the block that would be evicted next was used last; none when the stripe is empty.
  std::optional<uint64_t> NextVictimUsed() const ABSL_LOCKS_EXCLUDED(mutex_);
  // Forgets the first block in the policy's order that nobody reads. Blocks that are read on the way there count as
  // used now; after kPinnedStepsMax of them it gives up.
  static constexpr int kPinnedStepsMax = 64;
  Forgotten EvictNext(uint64_t now, FreedSlots* freed) ABSL_LOCKS_EXCLUDED(mutex_);

  void AddStats(StoreStats* stats) const ABSL_LOCKS_EXCLUDED(mutex_);
  void AddStatsOf(TenantId tenant, CacheId cache, CacheStats* stats) const ABSL_LOCKS_EXCLUDED(mutex_);
  uint64_t block_count() const ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status CheckConsistency(std::vector<uint32_t>* slots) const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  // An entry of the hash table keeps the hash, so that growing it reads no keys.
  struct BlockRef {
    BlockId block = kNoBlock;
    uint32_t hash = 0;
  };
  struct RefHash {
    using is_transparent = void;
    size_t operator()(const BlockRef& ref) const { return absl::Hash<uint32_t>()(ref.hash); }
    size_t operator()(const HashedKey& key) const { return absl::Hash<uint32_t>()(static_cast<uint32_t>(key.hash)); }
  };
  struct RefEqual {
    using is_transparent = void;
    const SlotTable* table;
    bool operator()(const BlockRef& a, const BlockRef& b) const { return a.block == b.block; }
    bool operator()(const BlockRef& ref, const HashedKey& key) const {
      return ref.hash == static_cast<uint32_t>(key.hash) && table->entry(ref.block).key == key.key;
    }
    bool operator()(const HashedKey& key, const BlockRef& ref) const { return (*this)(ref, key); }
  };
  struct Cache {
    CacheStats stats;
    BlockId newest = kNoBlock;
  };
  // The parts of a block, index by index.
  struct Parts {
    absl::InlinedVector<uint32_t, 16> slots;
    absl::InlinedVector<PartRange, 16> ranges;
  };
  static_assert(sizeof(BlockNode) + sizeof(EvictionLink) + 2 * (sizeof(BlockRef) + 1) + sizeof(uint32_t) <= 128,
                "what a block costs beside the slot table: here, in a half-full hash table, and in the pool");

  static uint64_t CacheName(TenantId tenant, CacheId cache) { return uint64_t{tenant} << 32 | cache; }
  static uint64_t CacheName(const BlockKey& key) { return CacheName(key.tenant(), key.cache()); }

  BlockId FindBlock(const HashedKey& key) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Parts PartsOf(BlockId block) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status CheckRoomIn(BlockId block, const PartRange& range) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void AddBlock(BlockId block, uint64_t hash, uint64_t now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void AddPart(BlockId block, uint32_t slot, uint64_t hash, uint64_t now, FreedSlots* freed)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void RenameBlock(BlockId block, BlockId name, uint64_t hash) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void CountPart(uint32_t slot, bool added) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ForgetPart(uint32_t slot, FreedSlots* freed) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Forgotten ForgetBlock(BlockId block, FreedSlots* freed) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool IsPinned(BlockId block) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  SlotTable* const table_;
  const std::span<BlockNode> nodes_;

  mutable Mutex mutex_;
  absl::flat_hash_set<BlockRef, RefHash, RefEqual> blocks_ ABSL_GUARDED_BY(mutex_);
  const std::unique_ptr<EvictionPolicy> order_ ABSL_PT_GUARDED_BY(mutex_);
  absl::flat_hash_map<uint64_t, Cache> caches_ ABSL_GUARDED_BY(mutex_);  // By CacheName; none without blocks.
};

}  // namespace nqkv
