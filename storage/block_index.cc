#include "storage/block_index.h"

#include <algorithm>
#include <array>
#include <utility>

#include "kernels/status_macros.h"

namespace nqkv {
namespace {

constexpr uint32_t kStripesSampled = 16;  // They tell their ranks without a lock.

}  // namespace

BlockIndex::BlockIndex(SlotTable* table, uint32_t stripe_count, absl::string_view eviction_policy)
    : nodes_(table->slot_count()), links_(table->slot_count()) {
  // Room for every slot, so that no table grows, and stalls a stripe, while it serves.
  const size_t blocks_expected = table->slot_count() / stripe_count * 5 / 4;
  for (uint32_t stripe = 0; stripe < stripe_count; ++stripe) {
    stripes_.push_back(std::make_unique<IndexStripe>(
        IndexStripe::Shared{.table = table, .nodes = nodes_, .links = links_, .weights = &weights_}, eviction_policy,
        blocks_expected));
  }
}

absl::Status BlockIndex::CheckRoom(const BlockKey& key, const PartRange& range) const {
  const uint64_t hash = HashOf(key);
  return StripeOf(hash).CheckRoom({key, hash}, range);
}

// Up to kBatchKeys keys, sorted by stripe.
class BlockIndex::Batch {
 public:
  Batch(const BlockIndex& index, std::span<const BlockKey> keys) : starts_(index.stripe_count() + 1) {
    std::array<uint64_t, kBatchKeys> hashes;
    for (size_t place = 0; place < keys.size(); ++place) {
      hashes[place] = HashOf(keys[place]);
      ++starts_[index.StripeNumberOf(hashes[place]) + 1];
    }
    for (size_t stripe = 1; stripe < starts_.size(); ++stripe) starts_[stripe] += starts_[stripe - 1];
    absl::InlinedVector<uint32_t, kStripesInline> next = starts_;
    for (uint32_t place = 0; place < keys.size(); ++place) {
      probes_[next[index.StripeNumberOf(hashes[place])]++] = {&keys[place], hashes[place], place};
    }
  }

  std::span<const Probe> ProbesOf(uint32_t stripe) const {
    return std::span(probes_).subspan(starts_[stripe], starts_[stripe + 1] - starts_[stripe]);
  }

 private:
  static constexpr size_t kStripesInline = 65;

  std::array<Probe, kBatchKeys> probes_;
  absl::InlinedVector<uint32_t, kStripesInline> starts_;  // By stripe: of its probes.
};

absl::Status BlockIndex::Commit(uint32_t slot, const BlockKey& key, uint32_t seconds, FreedSlots* freed) {
  const uint64_t hash = HashOf(key);
  return StripeOf(hash).Commit(slot, hash, {.tick = Tick(), .seconds = seconds}, freed);
}

absl::Status BlockIndex::Restore(uint32_t slot, const BlockKey& key, FreedSlots* freed) {
  // Committing what is committed changes nothing but the index.
  return Commit(slot, key, 0, freed);
}

BlockPresence BlockIndex::Find(const BlockKey& key, const PartRange& range) const {
  const uint64_t hash = HashOf(key);
  return StripeOf(hash).Find({key, hash}, range);
}

size_t BlockIndex::CountPrefix(std::span<const BlockKey> keys, const PartRange& range,
                               std::vector<BlockPresence>* presences) const {
  std::array<BlockPresence, kBatchKeys> found;
  size_t count = 0;
  while (count < keys.size()) {
    const std::span<const BlockKey> part = keys.subspan(count, std::min(kBatchKeys, keys.size() - count));
    const Batch batch(*this, part);
    for (uint32_t stripe = 0; stripe < stripe_count(); ++stripe) {
      const std::span<const Probe> probes = batch.ProbesOf(stripe);
      if (!probes.empty()) stripes_[stripe]->FindAll(probes, range, found.data());
    }
    const auto end = found.begin() + static_cast<ptrdiff_t>(part.size());
    const auto missed = std::find_if(found.begin(), end, [](const BlockPresence& one) { return !one.present; });
    if (presences != nullptr) presences->insert(presences->end(), found.begin(), missed);
    count += static_cast<size_t>(missed - found.begin());
    if (missed != end) break;
  }
  return count;
}

std::vector<PartPin> BlockIndex::Get(const BlockKey& key, const PartRange& range) const {
  const uint64_t hash = HashOf(key);
  return StripeOf(hash).Get({key, hash}, range);
}

void BlockIndex::UseAll(std::span<const BlockKey> keys, Use use, uint32_t seconds) {
  const uint64_t newest = Tick(keys.size());
  for (size_t end = keys.size(); end > 0;) {
    const size_t begin = end - std::min(kBatchKeys, end);
    const Batch batch(*this, keys.subspan(begin, end - begin));
    for (uint32_t stripe = 0; stripe < stripe_count(); ++stripe) {
      const std::span<const Probe> probes = batch.ProbesOf(stripe);
      if (!probes.empty()) stripes_[stripe]->UseAll(probes, use, {.tick = newest - begin, .seconds = seconds});
    }
    end = begin;
    if (use == Use::kTouch) BalanceProtected(2 * kBatchKeys);
  }
}

// Unprotects the oldest of all protected blocks until their share is right, or the work is enough for one call.
void BlockIndex::BalanceProtected(size_t rounds_max) {
  for (size_t round = 0; round < rounds_max; ++round) {
    const uint64_t held = weights_.protected_blocks.load(std::memory_order_relaxed);
    const uint64_t held_max = weights_.all.load(std::memory_order_relaxed) / EvictionPolicy::kProtectedShare;
    if (held <= held_max) return;
    const Lowest lowest = SampleLowest(&IndexStripe::protected_rank);
    if (lowest.stripe == nullptr) return;
    lowest.stripe->Unprotect(lowest.next_rank, held - held_max, Tick());
  }
}

Forgotten BlockIndex::Delete(const BlockKey& key, FreedSlots* freed) {
  const uint64_t hash = HashOf(key);
  return StripeOf(hash).Delete({key, hash}, freed);
}

Forgotten BlockIndex::Evict(const BlockKey& key, FreedSlots* freed) {
  const uint64_t hash = HashOf(key);
  return StripeOf(hash).Evict({key, hash}, freed);
}

uint64_t BlockIndex::CountPins(const BlockKey& key) const {
  const uint64_t hash = HashOf(key);
  return StripeOf(hash).CountPins({key, hash});
}

Forgotten BlockIndex::ClearSome(uint32_t stripe, TenantId tenant, CacheId cache, uint64_t blocks_max,
                                FreedSlots* freed) {
  return stripes_[stripe]->ClearSome(tenant, cache, blocks_max, freed);
}

Forgotten BlockIndex::EvictOldest(FreedSlots* freed) {
  if (IndexStripe* stripe = SampleLowest(&IndexStripe::victim_rank).stripe) {
    const Forgotten evicted = stripe->EvictNext(Tick(), freed);
    if (evicted.blocks > 0) return evicted;
  }
  // The samples were empty or full of readers: any block will do. Each stripe gets twice as many steps as it has
  // blocks, in which every block becomes the policy's next victim.
  for (const auto& stripe : stripes_) {
    const uint64_t rounds = 2 * stripe->block_count() / IndexStripe::kPinnedStepsMax + 1;
    for (uint64_t round = 0; round < rounds; ++round) {
      const Forgotten evicted = stripe->EvictNext(Tick(), freed);
      if (evicted.blocks > 0) return evicted;
    }
  }
  return {};
}

BlockIndex::Lowest BlockIndex::SampleLowest(uint64_t (IndexStripe::*rank)() const) {
  uint64_t first = 0;
  uint64_t step = 1;
  if (stripe_count() > kStripesSampled) {
    // Mixed, since a plain sequence always puts the same stripes into one sample: each such set of stripes would then
    // be evicted from as often as the others, however many blocks fell to it. (The last step of MurmurHash3.)
    first = samples_.fetch_add(1, std::memory_order_relaxed) * 0x9e3779b97f4a7c15;
    first = (first ^ (first >> 33)) * 0xff51afd7ed558ccd;
    first ^= first >> 33;
    step = (first >> 32) | 1;  // Odd: it never visits a stripe twice within a sample, as their count is a power of two.
  }
  Lowest lowest = {.stripe = nullptr, .next_rank = IndexStripe::kNothing};
  uint64_t lowest_rank = IndexStripe::kNothing;
  for (uint32_t sample = 0; sample < std::min(kStripesSampled, stripe_count()); ++sample) {
    IndexStripe* stripe = stripes_[(first + sample * step) % stripe_count()].get();
    const uint64_t stripe_rank = (stripe->*rank)();
    if (stripe_rank < lowest_rank) {
      lowest.stripe = stripe;
      lowest.next_rank = std::exchange(lowest_rank, stripe_rank);
    } else {
      lowest.next_rank = std::min(lowest.next_rank, stripe_rank);
    }
  }
  return lowest;
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
