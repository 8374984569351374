#include "storage/index_stripe.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/status_macros.h"
#include "storage/block_index.h"

namespace nqkv {

IndexStripe::IndexStripe(const Shared& shared, absl::string_view eviction_policy, size_t blocks_expected)
    : table_(shared.table),
      nodes_(shared.nodes),
      links_(shared.links),
      weights_(shared.weights),
      blocks_(0, RefHash(), RefEqual{shared.table}),
      order_(MakeEvictionPolicy(eviction_policy, shared.links)) {
  MutexLock lock(&mutex_);
  blocks_.reserve(blocks_expected);
}

absl::Status IndexStripe::CheckRoom(const HashedKey& key, const PartRange& range) const {
  MutexLock lock(&mutex_);
  return CheckRoomIn(FindBlock(key), range);
}

absl::Status IndexStripe::Commit(uint32_t slot, uint64_t hash, UseTime now, FreedSlots* freed) {
  const SlotEntry& entry = table_->entry(slot);
  MutexLock lock(&mutex_);
  const BlockId block = FindBlock({entry.key, hash});
  NQKV_RETURN_IF_ERROR(CheckRoomIn(block, entry.range));
  table_->Commit(slot);
  if (block == kNoBlock) {
    AddBlock(slot, hash, now);
  } else {
    AddPart(block, slot, hash, now, freed);
  }
  Publish();
  return absl::OkStatus();
}

BlockPresence IndexStripe::Find(const HashedKey& key, const PartRange& range) const {
  MutexLock lock(&mutex_);
  const BlockId block = FindBlock(key);
  return block == kNoBlock ? BlockPresence() : PresenceOf(block, range);
}

void IndexStripe::FindAll(std::span<const Probe> probes, const PartRange& range, BlockPresence* presences) const {
  MutexLock lock(&mutex_);
  Prefetch(probes);
  for (const Probe& probe : probes) {
    const BlockId block = FindBlock({*probe.key, probe.hash});
    presences[probe.place] = block == kNoBlock ? BlockPresence() : PresenceOf(block, range);
  }
}

// The table's groups first, then what they point to: two waits for memory, whatever the number of probes.
void IndexStripe::Prefetch(std::span<const Probe> probes) const {
  for (const Probe& probe : probes) blocks_.prefetch(HashOnly{static_cast<uint32_t>(probe.hash)});
  for (const Probe& probe : probes) {
    const auto found = blocks_.find(HashOnly{static_cast<uint32_t>(probe.hash)});
    if (found == blocks_.end()) continue;
    const char* entry = reinterpret_cast<const char*>(&table_->entry(found->block));
    __builtin_prefetch(entry);
    __builtin_prefetch(entry + 64);
    __builtin_prefetch(&nodes_[found->block], 1);
    __builtin_prefetch(&links_[found->block], 1);
  }
}

BlockPresence IndexStripe::PresenceOf(BlockId block, const PartRange& range) const {
  BlockPresence presence;
  const auto add = [&](uint32_t slot) {
    const SlotEntry& entry = table_->entry(slot);
    presence.present = true;
    presence.stored_bytes += entry.bytes;
    presence.provenance = std::max(presence.provenance, entry.provenance);
    presence.floor_error = std::max(presence.floor_error, entry.floor_error);
    presence.token_norm_error = std::max(presence.token_norm_error, entry.token_norm_error);
  };
  if (nodes_[block].next_part == kNoSlot) {  // Nearly always.
    if (!range.empty() && table_->entry(block).range.Contains(range)) add(block);
    return presence;
  }
  const Parts parts = PartsOf(block);
  for (const uint32_t index : PartsFor(parts.ranges, range)) add(parts.slots[index]);
  return presence;
}

std::vector<PartPin> IndexStripe::Get(const HashedKey& key, const PartRange& range) const {
  MutexLock lock(&mutex_);
  const BlockId block = FindBlock(key);
  if (block == kNoBlock) return {};
  const Parts parts = PartsOf(block);
  const PartSet needed = PartsFor(parts.ranges, range);
  std::vector<PartPin> pins;
  pins.reserve(needed.size());
  for (const uint32_t index : needed) {
    table_->Pin(parts.slots[index]);
    pins.emplace_back(table_, parts.slots[index]);
  }
  return pins;
}

void IndexStripe::UseAll(std::span<const Probe> probes, Use use, UseTime newest) {
  absl::InlinedVector<BlockId, 16> found;
  MutexLock lock(&mutex_);
  Prefetch(probes);
  for (const Probe& probe : probes) {
    const BlockId block = FindBlock({*probe.key, probe.hash});
    found.push_back(block);
    if (block == kNoBlock) continue;
    // Its neighbours in the order are written too.
    const EvictionLink& link = links_[block];
    if (link.newer != kNoBlock) __builtin_prefetch(&links_[link.newer], 1);
    if (link.older != kNoBlock) __builtin_prefetch(&links_[link.older], 1);
  }
  for (size_t index = probes.size(); index-- > 0;) {
    if (found[index] == kNoBlock) continue;
    UseBlock(found[index], use, newest.tick - probes[index].place);
    nodes_[found[index]].used_seconds = newest.seconds;
  }
  Publish();
}

void IndexStripe::UseBlock(BlockId block, Use use, uint64_t tick) {
  switch (use) {
    case Use::kTouch:
      return order_->Touch(block, tick);
    case Use::kSettle:
      return order_->Settle(block, tick);
    case Use::kDemote:
      return order_->Demote(block);
  }
}

Forgotten IndexStripe::Delete(const HashedKey& key, FreedSlots* freed) {
  MutexLock lock(&mutex_);
  const BlockId block = FindBlock(key);
  if (block == kNoBlock) return {};
  const Forgotten forgotten = ForgetBlock(block, freed);
  Publish();
  return forgotten;
}

Forgotten IndexStripe::Evict(const HashedKey& key, FreedSlots* freed) {
  MutexLock lock(&mutex_);
  const BlockId block = FindBlock(key);
  if (block == kNoBlock || PinsOf(block) > 0) return {};
  const Forgotten evicted = ForgetBlock(block, freed);
  Publish();
  return evicted;
}

uint64_t IndexStripe::CountPins(const HashedKey& key) const {
  MutexLock lock(&mutex_);
  const BlockId block = FindBlock(key);
  return block == kNoBlock ? 0 : PinsOf(block);
}

Forgotten IndexStripe::ClearSome(TenantId tenant, CacheId cache, uint64_t blocks_max, FreedSlots* freed) {
  MutexLock lock(&mutex_);
  Forgotten sum;
  while (sum.blocks < blocks_max) {
    const auto found = caches_.find(CacheName(tenant, cache));
    if (found == caches_.end()) break;
    const Forgotten block = ForgetBlock(found->second.newest, freed);
    sum.blocks += block.blocks;
    sum.stored_bytes += block.stored_bytes;
  }
  Publish();
  return sum;
}

Forgotten IndexStripe::EvictNext(uint64_t tick, FreedSlots* freed) {
  MutexLock lock(&mutex_);
  Forgotten evicted;
  for (int step = 0; step < kPinnedStepsMax; ++step) {
    const auto victim = order_->Next();
    if (!victim.has_value()) break;
    if (PinsOf(victim->block) == 0) {
      evicted = ForgetBlock(victim->block, freed);
      break;
    }
    // Protects it, so that a stripe full of readers gives up what it protects and nobody reads.
    order_->Touch(victim->block, tick);
    if (order_->protected_weight() > order_->weight() / EvictionPolicy::kProtectedShare) order_->Unprotect(tick);
  }
  Publish();
  return evicted;
}

uint64_t IndexStripe::Unprotect(uint64_t rank_max, uint64_t weight_excess, uint64_t tick) {
  MutexLock lock(&mutex_);
  const uint64_t before = order_->protected_weight();
  while (before - order_->protected_weight() < weight_excess) {
    const auto oldest = order_->OldestProtected();
    if (!oldest.has_value() || oldest->used > rank_max) break;
    order_->Unprotect(tick);
  }
  Publish();
  return before - order_->protected_weight();
}

void IndexStripe::Publish() {
  // A protected victim goes after all that are not.
  constexpr uint64_t kProtectedRank = uint64_t{1} << 63;
  const auto victim = order_->Next();
  const auto oldest = order_->OldestProtected();
  victim_rank_.store(!victim.has_value() ? kNothing : victim->used | (victim->is_protected ? kProtectedRank : 0),
                     std::memory_order_relaxed);
  protected_rank_.store(!oldest.has_value() ? kNothing : oldest->used, std::memory_order_relaxed);
  if (const uint64_t weight = order_->weight(); weight != weight_) {
    weights_->all.fetch_add(weight - weight_, std::memory_order_relaxed);
    weight_ = weight;
  }
  if (const uint64_t weight = order_->protected_weight(); weight != protected_weight_) {
    weights_->protected_blocks.fetch_add(weight - protected_weight_, std::memory_order_relaxed);
    protected_weight_ = weight;
  }
}

void IndexStripe::AddStats(StoreStats* stats) const {
  MutexLock lock(&mutex_);
  for (const auto& [name, cache] : caches_) {
    stats->blocks += cache.stats.blocks;
    stats->parts += cache.stats.parts;
    stats->stored_bytes += cache.stats.stored_bytes;
    stats->raw_bytes += cache.stats.raw_bytes;
  }
}

void IndexStripe::AddStatsOf(TenantId tenant, CacheId cache, CacheStats* stats) const {
  MutexLock lock(&mutex_);
  const auto found = caches_.find(CacheName(tenant, cache));
  if (found == caches_.end()) return;
  const CacheStats& here = found->second.stats;
  stats->blocks += here.blocks;
  stats->parts += here.parts;
  stats->used_bytes += here.used_bytes;
  stats->stored_bytes += here.stored_bytes;
  stats->raw_bytes += here.raw_bytes;
}

uint64_t IndexStripe::block_count() const {
  MutexLock lock(&mutex_);
  return blocks_.size();
}

BlockId IndexStripe::FindBlock(const HashedKey& key) const {
  const auto found = blocks_.find(key);
  return found == blocks_.end() ? kNoBlock : found->block;
}

IndexStripe::Parts IndexStripe::PartsOf(BlockId block) const {
  Parts parts;
  for (uint32_t slot = block; slot != kNoSlot; slot = nodes_[slot].next_part) {
    parts.slots.push_back(slot);
    parts.ranges.push_back(table_->entry(slot).range);
  }
  return parts;
}

absl::Status IndexStripe::CheckRoomIn(BlockId block, const PartRange& range) const {
  if (block == kNoBlock) return absl::OkStatus();
  const Parts parts = PartsOf(block);
  if (Covers(parts.ranges, range)) return absl::AlreadyExistsError("the block's parts cover the range already");
  if (parts.slots.size() >= BlockIndex::kPartsMax) {
    return absl::ResourceExhaustedError(absl::StrCat("the block has ", BlockIndex::kPartsMax, " parts already"));
  }
  return absl::OkStatus();
}

// In units of the slots' alignment, which is exact.
uint32_t IndexStripe::WeightOf(BlockId block) const {
  uint64_t weight = 0;
  for (uint32_t slot = block; slot != kNoSlot; slot = nodes_[slot].next_part) {
    weight += SlotBytes(table_->entry(slot).size_class) / kSlotAlignment;
  }
  return static_cast<uint32_t>(std::min<uint64_t>(weight, EvictionPolicy::kWeightMax));
}

void IndexStripe::AddBlock(BlockId block, uint64_t hash, UseTime now) {
  Cache& cache = caches_[CacheName(table_->entry(block).key)];
  nodes_[block] = {.older = cache.newest, .used_seconds = now.seconds};
  if (cache.newest != kNoBlock) nodes_[cache.newest].newer = block;
  cache.newest = block;
  cache.stats.blocks += 1;
  blocks_.insert({.block = block, .hash = static_cast<uint32_t>(hash)});
  order_->Insert(block, WeightOf(block), now.tick);
  CountPart(block, true);
}

// Adds the part behind the block's first one. Parts inside it leave, since nobody needs them any more.
void IndexStripe::AddPart(BlockId block, uint32_t slot, uint64_t hash, UseTime now, FreedSlots* freed) {
  const PartRange& range = table_->entry(slot).range;
  nodes_[slot] = {.next_part = nodes_[block].next_part};
  nodes_[block].next_part = slot;
  table_->entry(block).has_siblings.store(true, std::memory_order_relaxed);
  table_->entry(slot).has_siblings.store(true, std::memory_order_relaxed);
  CountPart(slot, true);
  nodes_[block].used_seconds = now.seconds;
  order_->Settle(block, now.tick);
  uint32_t previous = slot;
  while (nodes_[previous].next_part != kNoSlot) {
    const uint32_t part = nodes_[previous].next_part;
    if (range.Contains(table_->entry(part).range)) {
      nodes_[previous].next_part = nodes_[part].next_part;
      ForgetPart(part, freed);
    } else {
      previous = part;
    }
  }
  if (range.Contains(table_->entry(block).range)) {
    RenameBlock(block, slot, hash);
    ForgetPart(block, freed);
    block = slot;
  }
  order_->Reweigh(block, WeightOf(block));
}

// The second part becomes the first one. The first one is no part any more.
void IndexStripe::RenameBlock(BlockId block, BlockId name, uint64_t hash) {
  const BlockNode node = nodes_[block];
  nodes_[name].newer = node.newer;
  nodes_[name].older = node.older;
  nodes_[name].used_seconds = node.used_seconds;
  if (node.older != kNoBlock) nodes_[node.older].newer = name;
  if (node.newer != kNoBlock) {
    nodes_[node.newer].older = name;
  } else {
    caches_[CacheName(table_->entry(name).key)].newest = name;
  }
  order_->Rename(block, name);
  blocks_.erase(BlockRef{.block = block, .hash = static_cast<uint32_t>(hash)});
  blocks_.insert({.block = name, .hash = static_cast<uint32_t>(hash)});
}

void IndexStripe::CountPart(uint32_t slot, bool added) {
  const SlotEntry& entry = table_->entry(slot);
  CacheStats& stats = caches_[CacheName(entry.key)].stats;
  const uint64_t sign = added ? 1 : ~uint64_t{0};  // Modulo 2^64.
  stats.parts += sign;
  stats.used_bytes += sign * SlotBytes(entry.size_class);
  stats.stored_bytes += sign * entry.bytes;
  stats.raw_bytes += sign * entry.raw_bytes;
}

void IndexStripe::ForgetPart(uint32_t slot, FreedSlots* freed) {
  CountPart(slot, false);
  // From here on a pinned slot is its last reader's.
  if (table_->Forget(slot)) freed->push_back(slot);
}

Forgotten IndexStripe::ForgetBlock(BlockId block, FreedSlots* freed) {
  const BlockKey& key = table_->entry(block).key;
  const uint64_t name = CacheName(key);
  Cache& cache = caches_[name];
  const BlockNode node = nodes_[block];
  if (node.older != kNoBlock) nodes_[node.older].newer = node.newer;
  if (node.newer != kNoBlock) {
    nodes_[node.newer].older = node.older;
  } else {
    cache.newest = node.older;
  }
  order_->Remove(block);
  blocks_.erase(HashedKey{key, BlockIndex::HashOf(key)});
  cache.stats.blocks -= 1;
  const uint64_t stored_bytes_before = cache.stats.stored_bytes;
  for (uint32_t slot = block; slot != kNoSlot;) {
    const uint32_t next = nodes_[slot].next_part;
    ForgetPart(slot, freed);
    slot = next;
  }
  const Forgotten forgotten = {
      .blocks = 1, .stored_bytes = stored_bytes_before - cache.stats.stored_bytes, .used_seconds = node.used_seconds};
  if (cache.stats.blocks == 0) caches_.erase(name);
  return forgotten;
}

uint64_t IndexStripe::PinsOf(BlockId block) const {
  uint64_t pins = 0;
  for (uint32_t slot = block; slot != kNoSlot; slot = nodes_[slot].next_part) pins += table_->entry(slot).pins();
  return pins;
}

absl::Status IndexStripe::CheckConsistency(std::vector<uint32_t>* slots) const {
  MutexLock lock(&mutex_);
  if (order_->CountBlocks() != blocks_.size()) {
    return absl::InternalError(
        absl::StrCat("the eviction order has ", order_->CountBlocks(), " blocks, the index ", blocks_.size()));
  }
  absl::flat_hash_map<uint64_t, CacheStats> sums;
  for (const BlockRef& ref : blocks_) {
    const SlotEntry& first = table_->entry(ref.block);
    CacheStats& sum = sums[CacheName(first.key)];
    sum.blocks += 1;
    for (uint32_t slot = ref.block; slot != kNoSlot; slot = nodes_[slot].next_part) {
      const SlotEntry& entry = table_->entry(slot);
      if (entry.state() != SlotState::kCommitted) {
        return absl::InternalError(absl::StrCat("slot ", slot, " is in the index and not committed"));
      }
      if (!(entry.key == first.key))
        return absl::InternalError(absl::StrCat("slot ", slot, " has another block's key"));
      slots->push_back(slot);
      sum.parts += 1;
      sum.used_bytes += SlotBytes(entry.size_class);
      sum.stored_bytes += entry.bytes;
      sum.raw_bytes += entry.raw_bytes;
    }
  }
  if (sums.size() != caches_.size()) {
    return absl::InternalError(absl::StrCat(caches_.size(), " caches are counted, ", sums.size(), " have blocks"));
  }
  for (const auto& [name, cache] : caches_) {
    uint64_t listed = 0;
    for (BlockId block = cache.newest; block != kNoBlock; block = nodes_[block].older) ++listed;
    if (listed != cache.stats.blocks) {
      return absl::InternalError(absl::StrCat("a cache lists ", listed, " blocks and counts ", cache.stats.blocks));
    }
    if (!(sums[name] == cache.stats)) return absl::InternalError("a cache's counts are not the sums of its parts");
  }
  return absl::OkStatus();
}

}  // namespace nqkv
