// One lock's share of the index: some blocks, the order in which they will be evicted, and their counts.
//
// A block is the list of its parts' slots; the slot of the first one names it (BlockId). The stripe keeps no keys: it
// compares with those in the slot table. Under the lock only memory is read: no I/O, no codec, no callback, no other
// lock. What leaves is handed to the caller, who frees it outside.
#pragma once

#include <atomic>
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
  // First part only, as what follows: in the list of the cache's blocks of this stripe.
  BlockId newer = kNoBlock;
  BlockId older = kNoBlock;
  uint32_t used_seconds = 0;  // When the block was used last, by the store's clock.
};

struct HashedKey {
  const BlockKey& key;
  uint64_t hash;
};

// One key of a batch. Probes of one stripe come in the order of their places.
struct Probe {
  const BlockKey* key = nullptr;
  uint64_t hash = 0;
  uint32_t place = 0;  // In the batch.
};

// A point in time: `tick` orders uses, `seconds` measures ages.
struct UseTime {
  uint64_t tick = 0;
  uint32_t seconds = 0;
};

// What a use says of a block: see EvictionPolicy.
enum class Use : uint8_t { kTouch, kSettle, kDemote };

// What all stripes' blocks weigh together.
struct IndexWeights {
  std::atomic<uint64_t> all = 0;
  std::atomic<uint64_t> protected_blocks = 0;
};

// Thread-safe.
class alignas(64) IndexStripe {
 public:
  // All outlive the stripe; `nodes` and `links` have one entry a slot and are shared by the stripes.
  struct Shared {
    SlotTable* table = nullptr;
    std::span<BlockNode> nodes;
    std::span<EvictionLink> links;
    IndexWeights* weights = nullptr;
  };
  IndexStripe(const Shared& shared, absl::string_view eviction_policy, size_t blocks_expected);

  // The methods are those of BlockIndex, where they are described. `now` is the index's clock.
  absl::Status CheckRoom(const HashedKey& key, const PartRange& range) const ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status Commit(uint32_t slot, uint64_t hash, UseTime now, FreedSlots* freed) ABSL_LOCKS_EXCLUDED(mutex_);
  BlockPresence Find(const HashedKey& key, const PartRange& range) const ABSL_LOCKS_EXCLUDED(mutex_);
  // Fills `presences`, by place. Memory of all probes is fetched at once, so that they wait for it together.
  void FindAll(std::span<const Probe> probes, const PartRange& range, BlockPresence* presences) const
      ABSL_LOCKS_EXCLUDED(mutex_);
  std::vector<PartPin> Get(const HashedKey& key, const PartRange& range) const ABSL_LOCKS_EXCLUDED(mutex_);
  // From the last probe to the first; the tick of each is `newest` less its place.
  void UseAll(std::span<const Probe> probes, Use use, UseTime newest) ABSL_LOCKS_EXCLUDED(mutex_);
  Forgotten Delete(const HashedKey& key, FreedSlots* freed) ABSL_LOCKS_EXCLUDED(mutex_);
  Forgotten Evict(const HashedKey& key, FreedSlots* freed) ABSL_LOCKS_EXCLUDED(mutex_);
  uint64_t CountPins(const HashedKey& key) const ABSL_LOCKS_EXCLUDED(mutex_);
  Forgotten ClearSome(TenantId tenant, CacheId cache, uint64_t blocks_max, FreedSlots* freed)
      ABSL_LOCKS_EXCLUDED(mutex_);

  // How soon the stripe's next victim should go, and its oldest protected block: the lowest of all stripes goes first.
  // kNothing when there is none. As of the last change; takes no lock.
  static constexpr uint64_t kNothing = UINT64_MAX;
  uint64_t victim_rank() const { return victim_rank_.load(std::memory_order_relaxed); }
  uint64_t protected_rank() const { return protected_rank_.load(std::memory_order_relaxed); }
  // Unprotects the oldest protected blocks up to this rank, as long as `weight_excess` is above 0; they count as used
  // at `tick`. Returns what they weighed.
  uint64_t Unprotect(uint64_t rank_max, uint64_t weight_excess, uint64_t tick) ABSL_LOCKS_EXCLUDED(mutex_);
  // Forgets the first block in the policy's order that nobody reads. Blocks that are read on the way there count as
  // used now; after kPinnedStepsMax of them it gives up.
  static constexpr int kPinnedStepsMax = 64;
  Forgotten EvictNext(uint64_t tick, FreedSlots* freed) ABSL_LOCKS_EXCLUDED(mutex_);

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
  // Any block with this hash, whatever its key: what is worth fetching before keys are compared.
  struct HashOnly {
    uint32_t hash = 0;
  };
  struct RefHash {
    using is_transparent = void;
    size_t operator()(const HashOnly& key) const { return absl::Hash<uint32_t>()(key.hash); }
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
    bool operator()(const BlockRef& ref, const HashOnly& key) const { return ref.hash == key.hash; }
    bool operator()(const HashOnly& key, const BlockRef& ref) const { return ref.hash == key.hash; }
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
  BlockPresence PresenceOf(BlockId block, const PartRange& range) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Prefetch(std::span<const Probe> probes) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void UseBlock(BlockId block, Use use, uint64_t tick) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  uint32_t WeightOf(BlockId block) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status CheckRoomIn(BlockId block, const PartRange& range) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void AddBlock(BlockId block, uint64_t hash, UseTime now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void AddPart(BlockId block, uint32_t slot, uint64_t hash, UseTime now, FreedSlots* freed)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void RenameBlock(BlockId block, BlockId name, uint64_t hash) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void CountPart(uint32_t slot, bool added) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ForgetPart(uint32_t slot, FreedSlots* freed) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Forgotten ForgetBlock(BlockId block, FreedSlots* freed) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Tells the other stripes what they need to know. At the end of each change.
  void Publish() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  uint64_t PinsOf(BlockId block) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  SlotTable* const table_;
  const std::span<BlockNode> nodes_;
  const std::span<EvictionLink> links_;
  IndexWeights* const weights_;
  std::atomic<uint64_t> victim_rank_ = kNothing;
  std::atomic<uint64_t> protected_rank_ = kNothing;

  mutable Mutex mutex_;
  absl::flat_hash_set<BlockRef, RefHash, RefEqual> blocks_ ABSL_GUARDED_BY(mutex_);
  const std::unique_ptr<EvictionPolicy> order_ ABSL_PT_GUARDED_BY(mutex_);
  uint64_t weight_ ABSL_GUARDED_BY(mutex_) = 0;  // As published.
  uint64_t protected_weight_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::flat_hash_map<uint64_t, Cache> caches_ ABSL_GUARDED_BY(mutex_);  // By CacheName; none without blocks.
};

}  // namespace nqkv
