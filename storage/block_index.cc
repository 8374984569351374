#include "storage/block_index.h"

#include <algorithm>
#include <optional>

#include "kernels/status_macros.h"

namespace nqkv {
namespace {

constexpr uint32_t kStripesSampled = 4;

}  // namespace

BlockIndex::BlockIndex(SlotTable* table, uint32_t stripe_count, absl::string_view eviction_policy)
    : nodes_(table->slot_count()), links_(table->slot_count()) {
  // Room for every slot, so that no table grows, and stalls a stripe, while it serves.
  const size_t blocks_expected = table->slot_count() / stripe_count * 5 / 4;
  for (uint32_t stripe = 0; stripe < stripe_count; ++stripe) {
    stripes_.push_back(std::make_unique<IndexStripe>(
        IndexStripe::Shared{.table = table, .nodes = nodes_, .links = links_}, eviction_policy, blocks_expected));
  }
}

absl::Status BlockIndex::CheckRoom(const BlockKey& key, const PartRange& range) const {
  const uint64_t hash = HashOf(key);
  return StripeOf(hash).CheckRoom({key, hash}, range);
}

absl::Status BlockIndex::Commit(uint32_t slot, const BlockKey& key, FreedSlots* freed) {
  const uint64_t hash = HashOf(key);
  return StripeOf(hash).Commit(slot, hash, Now(), freed);
}

BlockPresence BlockIndex::Find(const BlockKey& key, const PartRange& range) const {
  const uint64_t hash = HashOf(key);
  return StripeOf(hash).Find({key, hash}, range);
}

std::vector<PartPin> BlockIndex::Get(const BlockKey& key, const PartRange& range) {
  const uint64_t hash = HashOf(key);
  return StripeOf(hash).Get({key, hash}, range, Now());
}

void BlockIndex::Touch(std::span<const BlockKey> keys) {
  for (auto key = keys.rbegin(); key != keys.rend(); ++key) {
    const uint64_t hash = HashOf(*key);
    StripeOf(hash).Touch({*key, hash}, Now());
  }
}

Forgotten BlockIndex::Delete(const BlockKey& key, FreedSlots* freed) {
  const uint64_t hash = HashOf(key);
  return StripeOf(hash).Delete({key, hash}, freed);
}

Forgotten BlockIndex::ClearSome(uint32_t stripe, TenantId tenant, CacheId cache, uint64_t blocks_max,
                                FreedSlots* freed) {
  return stripes_[stripe]->ClearSome(tenant, cache, blocks_max, freed);
}

Forgotten BlockIndex::EvictOldest(FreedSlots* freed) {
  if (IndexStripe* stripe = SampleVictim()) {
    const Forgotten evicted = stripe->EvictNext(Now(), freed);
    if (evicted.blocks > 0) return evicted;
  }
  // The samples were empty or full of readers: any block will do. Each stripe gets as many steps as it has blocks.
  for (const auto& stripe : stripes_) {
    const uint64_t rounds = stripe->block_count() / IndexStripe::kPinnedStepsMax + 1;
    for (uint64_t round = 0; round < rounds; ++round) {
      const Forgotten evicted = stripe->EvictNext(Now(), freed);
      if (evicted.blocks > 0) return evicted;
    }
  }
  return {};
}

// The stripe with the oldest victim of a few; none when they are empty.
IndexStripe* BlockIndex::SampleVictim() {
  IndexStripe* oldest = nullptr;
  uint64_t oldest_used = 0;
  const uint32_t count = std::min<uint32_t>(kStripesSampled, stripe_count());
  // Mixed, since a plain sequence always puts the same stripes into one sample: each such set of stripes would then be
  // evicted from as often as the others, however many blocks fell to it. (The last step of MurmurHash3.)
  uint64_t draw = samples_.fetch_add(1, std::memory_order_relaxed) * 0x9e3779b97f4a7c15;
  draw = (draw ^ (draw >> 33)) * 0xff51afd7ed558ccd;
  draw ^= draw >> 33;
  // An odd step never visits a stripe twice within a sample, where their count is a power of two.
  const uint64_t step = (draw >> 32) | 1;
  for (uint32_t sample = 0; sample < count; ++sample, draw += step) {
    IndexStripe* stripe = stripes_[draw % stripe_count()].get();
    const std::optional<uint64_t> used = stripe->NextVictimUsed();
    if (!used.has_value() || (oldest != nullptr && *used >= oldest_used)) continue;
    oldest = stripe;
    oldest_used = *used;
  }
  return oldest;
}

void BlockIndex::AddStats(StoreStats* stats) const {
  for (const auto& stripe : stripes_) stripe->AddStats(stats);
}

CacheStats BlockIndex::StatsOf(TenantId tenant, CacheId cache) const {
  CacheStats stats;
  for (const auto& stripe : stripes_) stripe->AddStatsOf(tenant, cache, &stats);
  return stats;
}

absl::Status BlockIndex::CheckConsistency(std::vector<uint32_t>* slots) const {
  for (const auto& stripe : stripes_) NQKV_RETURN_IF_ERROR(stripe->CheckConsistency(slots));
  return absl::OkStatus();
}

}  // namespace nqkv
