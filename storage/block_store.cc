#include "storage/block_store.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cassert>
#include <chrono>
#include <cstring>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/status_macros.h"
#include "storage/block_index.h"
#include "storage/block_pool.h"
#include "storage/cache_directory.h"
#include "storage/slot_table.h"

namespace nqkv {
namespace {

constexpr size_t kScopeBytesMax = 32;
// How many of the oldest blocks leave, wherever they lie, before a place is made where the cost is least.
constexpr int kEvictionsMax = 16;
// How often a place is made before a reservation gives up: others may have taken each.
constexpr int kDrainsMax = 16;
// A committed part moves to a smaller slot when that saves at least this share, one in so many, of its slot.
constexpr uint64_t kShrinkShare = 8;
// Blocks that Clear forgets under one lock.
constexpr uint64_t kClearStepBlocks = 64;

// What a file holds, as far as its layout goes. Another layout of the table, or of the blocks, needs another number.
std::string LabelOf(uint32_t slot_count, uint64_t pool_bytes) {
  return absl::StrCat("blocks 1: ", slot_count, " slots of ", sizeof(SlotEntry), " bytes, ", pool_bytes,
                      " bytes for blocks");
}

// Memory before the pool.
struct HeadBytes {
  uint64_t table = 0;
  uint64_t directory = 0;
  uint64_t sum() const { return table + directory; }
};

HeadBytes HeadBytesOf(uint32_t slot_count, bool warm_restart) {
  return {.table = SlotTable::TableBytes(slot_count), .directory = warm_restart ? CacheDirectory::Bytes() : 0};
}

}  // namespace

class BlockStore::Impl {
 public:
  Impl(std::unique_ptr<Arena> arena, uint32_t slot_count, uint64_t pool_bytes, const StorageOptions& options,
       const Clock* clock)
      : clock_(clock != nullptr ? clock : &machine_clock_),
        start_(clock_->Now()),
        table_(SlotTable::Create(std::move(arena), slot_count)),
        pool_(HeadBytesOf(slot_count, options.warm_restart).sum(), pool_bytes),
        index_(table_.get(), options.index_stripes, options.eviction_policy) {}
  ~Impl() { assert(reserved_bytes_.load() == 0); }

  // Takes in what the table has committed, and the names of caches.
  void Restore(bool warm_restart);
  std::optional<CacheDirectory::Named> Name(const Digest& name, const Digest& spec);
  const RestartReport& restart_report() const { return restart_report_; }

  SlotTable& table() { return *table_; }
  BlockPool& pool() { return pool_; }
  BlockIndex& index() { return index_; }

  absl::StatusOr<uint32_t> TakeSlot(const BlockKey& key, const PartRange& range, uint64_t bytes);
  void AbandonSlot(uint32_t slot);
  absl::Status CommitSlot(uint32_t slot, const BlockKey& key, uint64_t bytes, const PartInfo& info);
  void FreeSlots(const FreedSlots& slots);
  void FreeUnpinned();
  bool EvictOldest();
  bool CanMakeRoom(uint64_t bytes);
  bool MakeRoom(uint64_t bytes);
  // Since the start.
  uint32_t Seconds() const {
    return static_cast<uint32_t>(std::chrono::duration_cast<std::chrono::seconds>(clock_->Now() - start_).count());
  }

  void CountRejected() { rejected_reservations_.fetch_add(1, std::memory_order_relaxed); }
  void CountDamaged(uint64_t blocks) { damaged_blocks_.fetch_add(blocks, std::memory_order_relaxed); }
  StoreStats Stats();
  absl::Status CheckConsistency();

 private:
  void RestoreBlocks();
  bool IsMovable(uint32_t slot);
  bool TryPlace(uint32_t slot, uint64_t bytes);
  void Shrink(uint32_t slot, uint64_t bytes);
  void EvictOwner(uint32_t slot);
  void CountEvicted(const Forgotten& evicted);
  absl::Status CheckSlots(const std::vector<uint32_t>& committed);

  const SteadyClock machine_clock_;
  const Clock* const clock_;
  const std::chrono::nanoseconds start_;
  RestartReport restart_report_;
  Mutex directory_mutex_;
  std::optional<CacheDirectory> directory_ ABSL_GUARDED_BY(directory_mutex_);  // With warm_restart only.
  const SlotTablePointer table_;                                               // Lives on when handles are left.
  BlockPool pool_;
  BlockIndex index_;
  Mutex drain_mutex_;  // One drain at a time: two would fight for the same pages.
  std::atomic<uint64_t> reserved_bytes_ = 0;
  std::atomic<uint64_t> evicted_blocks_ = 0;
  std::atomic<uint64_t> evicted_bytes_ = 0;
  std::array<std::atomic<uint64_t>, std::tuple_size_v<decltype(AgeStats::counts)>> evicted_ages_ = {};
  std::atomic<uint64_t> evicted_ages_sum_ = 0;  // Seconds.
  std::atomic<uint64_t> damaged_blocks_ = 0;
  std::atomic<uint64_t> rejected_reservations_ = 0;
};

// A reserved slot with memory for `bytes` bytes.
absl::StatusOr<uint32_t> BlockStore::Impl::TakeSlot(const BlockKey& key, const PartRange& range, uint64_t bytes) {
  uint32_t slot = kNoSlot;
  int evictions = 0;
  int drains = 0;
  bool room_can_be_made = false;
  while (true) {
    FreeUnpinned();
    if (slot == kNoSlot) slot = table_->Acquire();
    if (slot != kNoSlot && TryPlace(slot, bytes)) break;
    const bool table_is_full = slot == kNoSlot;
    bool made_room = false;
    // Asked before anything is evicted, so that a refusal costs nothing.
    room_can_be_made = room_can_be_made || CanMakeRoom(bytes);
    if (room_can_be_made && (table_is_full || evictions < kEvictionsMax)) {
      ++evictions;
      made_room = EvictOldest();
    }
    if (room_can_be_made && !made_room && !table_is_full && drains < kDrainsMax) {
      ++drains;
      made_room = MakeRoom(bytes);
    }
    if (made_room) continue;
    if (slot != kNoSlot) table_->Release(slot);
    return absl::ResourceExhaustedError(
        absl::StrCat("no room for ", bytes, " bytes: what is not free is being read or written"));
  }
  SlotEntry& entry = table_->entry(slot);
  entry.key = key;
  entry.range = range;
  entry.bytes = static_cast<uint32_t>(bytes);
  reserved_bytes_.fetch_add(SlotBytes(entry.size_class), std::memory_order_relaxed);
  return slot;
}

bool BlockStore::Impl::TryPlace(uint32_t slot, uint64_t bytes) {
  uint32_t slab_pages_before = 0;
  const std::optional<uint64_t> offset = pool_.Allocate(bytes, slot, &slab_pages_before);
  if (!offset.has_value()) return false;
  table_->entry(slot).SetPlace(*offset, slab_pages_before);
  table_->entry(slot).size_class = SizeClassOf(bytes);
  return true;
}

void BlockStore::Impl::AbandonSlot(uint32_t slot) {
  reserved_bytes_.fetch_sub(SlotBytes(table_->entry(slot).size_class), std::memory_order_relaxed);
  FreeSlots({slot});
}

// Moves a part that needs far less than was reserved for it to a slot of its size. Where there is none it stays:
// evicting for it would lose more than it saves.
void BlockStore::Impl::Shrink(uint32_t slot, uint64_t bytes) {
  SlotEntry& entry = table_->entry(slot);
  const uint64_t slot_bytes = SlotBytes(entry.size_class);
  const SizeClass size_class = SizeClassOf(bytes);
  if (SlotBytes(size_class) > slot_bytes - slot_bytes / kShrinkShare) return;
  uint32_t slab_pages_before = 0;
  const std::optional<uint64_t> offset = pool_.Allocate(bytes, slot, &slab_pages_before);
  if (!offset.has_value()) return;
  const std::byte* source = table_->memory(slot);
  const uint64_t source_offset = entry.offset();
  entry.SetPlace(*offset, slab_pages_before);
  entry.size_class = size_class;
  std::memcpy(table_->memory(slot), source, bytes);
  pool_.Free(source_offset);
  reserved_bytes_.fetch_sub(slot_bytes - SlotBytes(size_class), std::memory_order_relaxed);
}

absl::Status BlockStore::Impl::CommitSlot(uint32_t slot, const BlockKey& key, uint64_t bytes, const PartInfo& info) {
  Shrink(slot, bytes);
  SlotEntry& entry = table_->entry(slot);
  entry.bytes = static_cast<uint32_t>(bytes);
  entry.raw_bytes = info.raw_bytes;
  entry.scope_tag = ScopeTag(info.scope);
  entry.provenance = info.provenance;
  entry.floor_error = info.floor_error;
  entry.token_norm_error = info.token_norm_error;
  // Once committed, the entry may be anybody's.
  const uint64_t slot_bytes = SlotBytes(entry.size_class);
  FreedSlots freed;
  NQKV_RETURN_IF_ERROR(index_.Commit(slot, key, Seconds(), &freed));
  if (info.expected_reuse > 0 && info.expected_reuse <= PartInfo::kLowReuse) {
    index_.UseAll({&key, 1}, Use::kDemote, Seconds());
  }
  reserved_bytes_.fetch_sub(slot_bytes, std::memory_order_relaxed);
  FreeSlots(freed);
  return absl::OkStatus();
}

void BlockStore::Impl::FreeSlots(const FreedSlots& slots) {
  for (const uint32_t slot : slots) {
    pool_.Free(table_->entry(slot).offset());
    table_->Release(slot);
  }
}

// Frees what readers have let go of since the last time.
void BlockStore::Impl::FreeUnpinned() {
  uint32_t slot = table_->TakeSlotsToFree();
  while (slot != kNoSlot) {
    const uint32_t next = table_->NextToFree(slot);
    FreeSlots({slot});
    slot = next;
  }
}

bool BlockStore::Impl::EvictOldest() {
  FreedSlots freed;
  const Forgotten evicted = index_.EvictOldest(&freed);
  FreeSlots(freed);
  CountEvicted(evicted);
  return evicted.blocks > 0;
}

// Whether somebody can leave so that `bytes` bytes fit. Others may read what could leave by then.
bool BlockStore::Impl::CanMakeRoom(uint64_t bytes) {
  if (table_->pinned_parts() == 0 && reserved_bytes_.load(std::memory_order_relaxed) == 0) return true;
  return pool_.CanMakeRoom(bytes, [this](uint32_t slot) { return IsMovable(slot); });
}

// Whether the block that the slot belongs to could be evicted. Called under the pool's lock: no stripe's lock is held
// while the pool is called, so the two cannot wait for each other.
bool BlockStore::Impl::IsMovable(uint32_t slot) {
  const SlotEntry& entry = table_->entry(slot);
  if (entry.state() != SlotState::kCommitted || entry.pins() != 0) return false;
  if (!entry.has_siblings.load(std::memory_order_relaxed)) return true;
  if (!table_->TryPin(slot)) return false;  // The key is sure to be this part's while it is pinned.
  const bool movable = index_.CountPins(entry.key) <= 1;
  table_->Unpin(slot);
  return movable;
}

// Empties the pages that are cheapest to empty; where readers and writers leave no such pages, one slot of the right
// size.
bool BlockStore::Impl::MakeRoom(uint64_t bytes) {
  MutexLock lock(&drain_mutex_);
  const auto movable = [this](uint32_t slot) { return IsMovable(slot); };
  if (const auto drain = pool_.BeginDrain(bytes, movable)) {
    for (const uint32_t slot : drain->owners) EvictOwner(slot);
    pool_.EndDrain(*drain);
    return true;
  }
  const std::optional<uint32_t> neighbour = pool_.FindOwner(bytes, movable);
  if (neighbour.has_value()) EvictOwner(*neighbour);
  return neighbour.has_value();
}

// Forgets the block that the slot belongs to, unless the slot is free, or the block is being read or written by now.
void BlockStore::Impl::EvictOwner(uint32_t slot) {
  if (!table_->TryPin(slot)) return;
  const BlockKey key = table_->entry(slot).key;
  table_->Unpin(slot);
  FreedSlots freed;
  CountEvicted(index_.Evict(key, &freed));
  FreeSlots(freed);
}

void BlockStore::Impl::CountEvicted(const Forgotten& evicted) {
  if (evicted.blocks == 0) return;
  const uint32_t now = Seconds();
  const uint32_t age = now - std::min(now, evicted.used_seconds);
  const auto& bounds = AgeStats::kBoundsSeconds;
  const auto bound = std::lower_bound(bounds.begin(), bounds.end(), age);
  evicted_ages_[static_cast<size_t>(bound - bounds.begin())].fetch_add(1, std::memory_order_relaxed);
  evicted_ages_sum_.fetch_add(age, std::memory_order_relaxed);
  evicted_blocks_.fetch_add(evicted.blocks, std::memory_order_relaxed);
  evicted_bytes_.fetch_add(evicted.stored_bytes, std::memory_order_relaxed);
}

StoreStats BlockStore::Impl::Stats() {
  FreeUnpinned();
  StoreStats stats;
  stats.capacity_bytes = pool_.capacity_bytes();
  stats.reserved_bytes = reserved_bytes_.load(std::memory_order_relaxed);
  stats.pinned_parts = table_->pinned_parts();
  stats.pinned_bytes = table_->pinned_bytes();
  stats.evicted_blocks_total = evicted_blocks_.load(std::memory_order_relaxed);
  stats.evicted_bytes_total = evicted_bytes_.load(std::memory_order_relaxed);
  for (size_t i = 0; i < evicted_ages_.size(); ++i) {
    stats.evicted_ages.counts[i] = evicted_ages_[i].load(std::memory_order_relaxed);
  }
  stats.evicted_ages.sum_seconds = evicted_ages_sum_.load(std::memory_order_relaxed);
  stats.damaged_blocks_total = damaged_blocks_.load(std::memory_order_relaxed);
  stats.rejected_reservations_total = rejected_reservations_.load(std::memory_order_relaxed);
  index_.AddStats(&stats);
  pool_.AddStats(&stats);
  return stats;
}

absl::Status BlockStore::Impl::CheckConsistency() {
  FreeUnpinned();
  std::vector<uint32_t> committed;
  NQKV_RETURN_IF_ERROR(index_.CheckConsistency(&committed));
  const std::string pool_finding = pool_.FindInconsistency();
  if (!pool_finding.empty()) return absl::InternalError(pool_finding);
  return CheckSlots(committed);
}

// Compares the states in the table with what the index found and what the pool gave out.
absl::Status BlockStore::Impl::CheckSlots(const std::vector<uint32_t>& committed) {
  uint64_t counts[4] = {};
  uint64_t pinned_parts = 0;
  uint64_t pinned_bytes = 0;
  for (uint32_t slot = 0; slot < table_->slot_count(); ++slot) {
    const SlotEntry& entry = table_->entry(slot);
    ++counts[static_cast<size_t>(entry.state())];
    if (entry.pins() == 0) continue;
    pinned_parts += 1;
    pinned_bytes += entry.bytes;
  }
  uint64_t reserved_bytes = 0;
  const std::vector<BlockPool::Taken> taken = pool_.TakenSlots();
  for (const BlockPool::Taken& place : taken) {
    const SlotEntry& entry = table_->entry(place.owner);
    if (entry.offset() != place.offset || SlotBytes(entry.size_class) != place.slot_bytes) {
      return absl::InternalError(absl::StrCat("slot ", place.owner, " does not lie where the pool put it"));
    }
    if (entry.state() == SlotState::kFree) return absl::InternalError(absl::StrCat("slot ", place.owner, " is lost"));
    if (entry.state() == SlotState::kReserved) reserved_bytes += place.slot_bytes;
  }
  const auto differs = [](absl::string_view what, uint64_t found, uint64_t counted) {
    return found == counted ? absl::OkStatus()
                            : absl::InternalError(absl::StrCat(what, ": found ", found, ", counted ", counted));
  };
  NQKV_RETURN_IF_ERROR(differs("slots in the pool", taken.size(), table_->slot_count() - counts[0]));
  NQKV_RETURN_IF_ERROR(differs("committed parts", counts[size_t(SlotState::kCommitted)], committed.size()));
  NQKV_RETURN_IF_ERROR(differs("free entries", counts[size_t(SlotState::kFree)], table_->free_count()));
  NQKV_RETURN_IF_ERROR(differs("reserved bytes", reserved_bytes, reserved_bytes_.load()));
  NQKV_RETURN_IF_ERROR(differs("pinned parts", pinned_parts, table_->pinned_parts()));
  return differs("pinned bytes", pinned_bytes, table_->pinned_bytes());
}

void BlockStore::Impl::Restore(bool warm_restart) {
  Arena& arena = table_->arena();
  restart_report_.discarded = arena.discarded();
  if (arena.restored()) RestoreBlocks();
  if (!warm_restart) return;
  CacheId id_max = 0;
  for (uint32_t slot = 0; slot < table_->slot_count() && arena.restored(); ++slot) {
    const SlotEntry& entry = table_->entry(slot);
    if (entry.state() == SlotState::kCommitted) id_max = std::max(id_max, entry.key.cache());
  }
  const HeadBytes head = HeadBytesOf(table_->slot_count(), warm_restart);
  MutexLock lock(&directory_mutex_);
  directory_.emplace(arena.bytes().subspan(head.table, head.directory), arena.restored(), id_max);
  arena.SetValid(true);  // Every entry of either is free, or what it was.
}

std::optional<CacheDirectory::Named> BlockStore::Impl::Name(const Digest& name, const Digest& spec) {
  MutexLock lock(&directory_mutex_);
  if (!directory_.has_value()) return std::nullopt;
  return directory_->Name(name, spec);
}

void BlockStore::Impl::RestoreBlocks() {
  std::vector<BlockPool::Restored> slots;
  for (uint32_t slot = 0; slot < table_->slot_count(); ++slot) {
    const SlotEntry& entry = table_->entry(slot);
    if (entry.state() != SlotState::kCommitted) continue;
    slots.push_back({slot, entry.offset(), entry.slab_pages_before(), entry.size_class});
  }
  if (!pool_.Restore(slots)) {
    restart_report_.discarded = "its slot table contradicts itself";
    for (const BlockPool::Restored& slot : slots) table_->Release(slot.owner);
    return;
  }
  for (const BlockPool::Restored& slot : slots) {
    FreedSlots freed;
    const absl::Status status = index_.Restore(slot.owner, table_->entry(slot.owner).key, &freed);
    if (!status.ok()) freed.push_back(slot.owner);  // Killed while one part took the place of another.
    FreeSlots(freed);
  }
  restart_report_.restored_parts = slots.size();
}

absl::StatusOr<std::unique_ptr<BlockStore>> BlockStore::Create(const StorageOptions& options, const Clock* clock) {
  NQKV_RETURN_IF_ERROR(options.Validate());
  const auto slot_count =
      static_cast<uint32_t>(std::min<uint64_t>(options.host_bytes / options.bytes_per_slot, kNoSlot - 1));
  const uint64_t pool_bytes = options.host_bytes - HeadBytesOf(slot_count, options.warm_restart).sum();
  const ArenaOptions arena_options = {.bytes = options.host_bytes,
                                      .path = options.arena_path,
                                      .prefault = options.prefault,
                                      .huge_pages = options.huge_pages,
                                      .label = options.warm_restart ? LabelOf(slot_count, pool_bytes) : ""};
  NQKV_ASSIGN_OR_RETURN(std::unique_ptr<Arena> arena, Arena::Create(arena_options));
  auto impl = std::make_unique<Impl>(std::move(arena), slot_count, pool_bytes, options, clock);
  impl->Restore(options.warm_restart);
  return std::unique_ptr<BlockStore>(new BlockStore(std::move(impl)));
}

BlockStore::BlockStore(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
BlockStore::~BlockStore() = default;

const BlockStore::RestartReport& BlockStore::restart_report() const { return impl_->restart_report(); }

absl::Status BlockStore::CheckRoom(const BlockKey& key, const PartRange& range) const {
  return impl_->index().CheckRoom(key, range);
}

uint64_t BlockStore::part_bytes_max() const { return impl_->pool().slot_bytes_max(); }

absl::StatusOr<Reservation> BlockStore::Reserve(const BlockKey& key, const PartRange& range, uint64_t bytes) {
  if (range.empty()) return absl::InvalidArgumentError("the range is empty");
  if (bytes == 0) return absl::InvalidArgumentError("0 bytes");
  if (bytes > impl_->pool().slot_bytes_max()) {
    impl_->CountRejected();
    return absl::ResourceExhaustedError(absl::StrCat(bytes,
                                                     " bytes are more than the store can ever hold in one piece, ",
                                                     impl_->pool().slot_bytes_max(), " bytes"));
  }
  const absl::Status room = impl_->index().CheckRoom(key, range);
  if (absl::IsResourceExhausted(room)) impl_->CountRejected();
  if (absl::IsAlreadyExists(room)) Settle({&key, 1});
  NQKV_RETURN_IF_ERROR(room);
  const absl::StatusOr<uint32_t> slot = impl_->TakeSlot(key, range, bytes);
  if (!slot.ok()) impl_->CountRejected();
  NQKV_RETURN_IF_ERROR(slot.status());
  const uint64_t slot_bytes = SlotBytes(impl_->table().entry(*slot).size_class);
  return Reservation(this, *slot, key, range, {impl_->table().memory(*slot), slot_bytes});
}

absl::Status BlockStore::Commit(Reservation reservation, uint64_t bytes, const PartInfo& info) {
  if (reservation.owner_ != this) return absl::InvalidArgumentError("the reservation is empty or another store's");
  if (bytes == 0 || bytes > reservation.bytes_.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("commit of ", bytes, " bytes; the reservation has ", reservation.bytes_.size()));
  }
  if (info.scope.size() > kScopeBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("scope has ", info.scope.size(), " bytes; at most ", kScopeBytesMax));
  }
  if (!(info.expected_reuse >= 0 && info.expected_reuse <= 1)) {
    return absl::InvalidArgumentError(absl::StrCat("expected_reuse is ", info.expected_reuse, "; 0 to 1"));
  }
  NQKV_RETURN_IF_ERROR(impl_->CommitSlot(reservation.slot_, reservation.key_, bytes, info));
  reservation.owner_ = nullptr;  // The slot is the index's now.
  return absl::OkStatus();
}

void BlockStore::Abandon(uint32_t slot) { impl_->AbandonSlot(slot); }

BlockPresence BlockStore::Find(const BlockKey& key, const PartRange& range) const {
  return impl_->index().Find(key, range);
}

size_t BlockStore::MatchPrefix(std::span<const BlockKey> keys, const PartRange& range,
                               std::vector<BlockPresence>* blocks) {
  if (blocks != nullptr) blocks->clear();
  const size_t matched = impl_->index().CountPrefix(keys, range, blocks);
  Touch(keys.first(matched));
  return matched;
}

void BlockStore::Touch(std::span<const BlockKey> keys) { impl_->index().UseAll(keys, Use::kTouch, impl_->Seconds()); }

void BlockStore::Settle(std::span<const BlockKey> keys) { impl_->index().UseAll(keys, Use::kSettle, impl_->Seconds()); }

void BlockStore::Demote(std::span<const BlockKey> keys) { impl_->index().UseAll(keys, Use::kDemote, impl_->Seconds()); }

absl::StatusOr<BlockHandle> BlockStore::Get(const BlockKey& key, const PartRange& range) {
  std::vector<PartPin> parts = impl_->index().Get(key, range);
  if (parts.empty()) return absl::NotFoundError("the block is not present for the range");
  return BlockHandle(std::move(parts));
}

std::optional<CacheDirectory::Named> BlockStore::NameCache(const Digest& name, const Digest& spec) {
  return impl_->Name(name, spec);
}

BlockStore::Removed BlockStore::Delete(const BlockKey& key) {
  FreedSlots freed;
  const Removed removed = impl_->index().Delete(key, &freed);
  impl_->FreeSlots(freed);
  return removed;
}

BlockStore::Removed BlockStore::Clear(TenantId tenant, CacheId cache) {
  Removed sum;
  for (uint32_t stripe = 0; stripe < impl_->index().stripe_count(); ++stripe) {
    // A writer who is as quick as we are must not keep us here.
    const uint64_t steps_max = impl_->index().block_count(stripe) / kClearStepBlocks + 1;
    for (uint64_t step = 0; step < steps_max; ++step) {
      FreedSlots freed;
      const Removed removed = impl_->index().ClearSome(stripe, tenant, cache, kClearStepBlocks, &freed);
      impl_->FreeSlots(freed);
      sum.blocks += removed.blocks;
      sum.stored_bytes += removed.stored_bytes;
      if (removed.blocks < kClearStepBlocks) break;
    }
  }
  return sum;
}

void BlockStore::DropDamaged(const BlockKey& key) { impl_->CountDamaged(Delete(key).blocks); }

StoreStats BlockStore::Stats() const { return impl_->Stats(); }

CacheStats BlockStore::StatsOf(TenantId tenant, CacheId cache) const { return impl_->index().StatsOf(tenant, cache); }

absl::Status BlockStore::CheckConsistency() const { return impl_->CheckConsistency(); }

}  // namespace nqkv
