// Cuts the arena into slabs and slabs into slots of equal size.
//
// A slab is a run of pages that serves one size class; an empty one goes back to the free pages. The pool hands out
// places and never touches memory. It knows for each slot who holds it, so that its owner can be asked to leave when a
// run of pages must be emptied for another class. Thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/container/btree_map.h"
#include "absl/container/btree_set.h"
#include "absl/functional/function_ref.h"
#include "storage/mutex.h"
#include "storage/size_class.h"
#include "storage/stats.h"

namespace nqkv {

class BlockPool {
 public:
  static constexpr uint64_t kPageBytes = 16 << 10;

  // Serves [begin, begin + bytes), in whole pages from `begin` on. Precondition: `begin` is a multiple of
  // kSlotAlignment.
  BlockPool(uint64_t begin, uint64_t bytes);
  ~BlockPool();

  uint64_t capacity_bytes() const { return uint64_t{page_count_} * kPageBytes; }
  // The largest slot that an empty pool can serve.
  uint64_t slot_bytes_max() const;

  // Takes a slot of at least `bytes` bytes for `owner` and returns its place; none when there is no room. Tells by how
  // many pages it lies behind the start of its slab. Precondition: 1 <= bytes <= slot_bytes_max().
  std::optional<uint64_t> Allocate(uint64_t bytes, uint32_t owner, uint32_t* slab_pages_before = nullptr)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // Precondition: Allocate returned `offset`, and it was not freed since.
  void Free(uint64_t offset) ABSL_LOCKS_EXCLUDED(mutex_);

  // Neighbouring pages that are about to be emptied. Nothing is allocated there until EndDrain.
  struct Drain {
    uint32_t first_page = 0;
    uint32_t pages = 0;
    std::vector<uint32_t> owners;  // Of the slots taken there.
  };
  // Chooses the pages that are cheapest to empty so that a slot of `bytes` bytes fits there: those with few bytes in
  // use that were filled long ago. `movable` says whether an owner can leave; it is called under the pool's lock, must
  // be quick and must not call the pool. None when no such run exists.
  std::optional<Drain> BeginDrain(uint64_t bytes, absl::FunctionRef<bool(uint32_t owner)> movable)
      ABSL_LOCKS_EXCLUDED(mutex_);
  void EndDrain(const Drain& drain) ABSL_LOCKS_EXCLUDED(mutex_);
  // Whether Allocate, BeginDrain or FindOwner would find something.
  bool CanMakeRoom(uint64_t bytes, absl::FunctionRef<bool(uint32_t owner)> movable) const ABSL_LOCKS_EXCLUDED(mutex_);
  // An owner that can leave and whose slot would do for `bytes` bytes; `movable` as above.
  std::optional<uint32_t> FindOwner(uint64_t bytes, absl::FunctionRef<bool(uint32_t owner)> movable) const
      ABSL_LOCKS_EXCLUDED(mutex_);

  // Fills used_bytes, free_bytes and classes.
  void AddStats(StoreStats* stats) const ABSL_LOCKS_EXCLUDED(mutex_);
  uint64_t used_bytes() const ABSL_LOCKS_EXCLUDED(mutex_);

  // A slot that a predecessor of this pool gave out.
  struct Restored {
    uint32_t owner = 0;
    uint64_t offset = 0;
    uint32_t slab_pages_before = 0;
    SizeClass size_class = 0;
  };
  // Takes just these slots in an empty pool. False, and the pool is still empty, when no pool can have given them out:
  // they overlap, lie outside, or their slabs contradict each other. Sorts `slots`.
  bool Restore(std::span<Restored> slots) ABSL_LOCKS_EXCLUDED(mutex_);

  // Owner and place of each slot taken; for checks.
  struct Taken {
    uint32_t owner = 0;
    uint64_t offset = 0;
    uint64_t slot_bytes = 0;
  };
  std::vector<Taken> TakenSlots() const ABSL_LOCKS_EXCLUDED(mutex_);
  // Whether slabs and free pages add up to all pages; the empty string when they do.
  std::string FindInconsistency() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Slab;
  struct Run {
    uint32_t first_page = 0;
    uint32_t pages = 0;
  };
  // A slab or a free run, and what emptying it costs.
  struct Segment {
    uint32_t first_page = 0;
    uint32_t pages = 0;
    const Slab* slab = nullptr;  // Null: free.
    double cost = 0;
  };
  // How the slabs of a class are cut.
  struct Shape {
    uint32_t pages = 0;      // Of a usual slab.
    uint32_t pages_min = 0;  // Of the smallest slab worth having when there is no room for a usual one.
  };
  struct Class {
    Shape shape;
    absl::btree_set<uint32_t> slabs;  // First pages.
    absl::btree_set<uint32_t> open;   // Of those with a free slot that are not being drained.
    uint64_t slots = 0;
    uint64_t used_slots = 0;
  };

  static uint32_t PagesFor(uint64_t bytes) { return static_cast<uint32_t>((bytes + kPageBytes - 1) / kPageBytes); }
  Shape ShapeOf(uint64_t slot_bytes) const;
  bool CanRestore(std::span<const Restored> slots) const;
  uint32_t SlabPageOf(const Restored& slot) const;
  void RestoreSlab(std::span<const Restored> slots) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Slab* PlaceSlab(SizeClass size_class, const Run& run) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Slab* AddSlab(SizeClass size_class) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void RemoveSlab(Slab* slab) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Run FindRun(SizeClass size_class) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void AddFreePages(uint32_t first_page, uint32_t pages) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void TakeFreePages(uint32_t first_page, uint32_t pages) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  double CostOf(const Slab& slab) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::vector<Segment> SegmentsFrom(uint32_t page, size_t count_max) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  static Run CheapestRun(std::span<const Segment> segments, uint32_t pages, absl::FunctionRef<bool(uint32_t)> movable);
  std::optional<uint32_t> OwnerIn(SizeClass size_class, absl::FunctionRef<bool(uint32_t)> movable) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  static bool CanEmpty(const Segment& segment, absl::FunctionRef<bool(uint32_t)> movable);

  const uint64_t begin_;
  const uint32_t page_count_;

  mutable Mutex mutex_;
  std::vector<Class> classes_ ABSL_GUARDED_BY(mutex_);                     // Those that fit into the arena.
  std::vector<std::unique_ptr<Slab>> slabs_ ABSL_GUARDED_BY(mutex_);       // By first page.
  std::vector<uint32_t> first_page_of_ ABSL_GUARDED_BY(mutex_);            // By page: the first page of its slab.
  absl::btree_map<uint32_t, uint32_t> free_runs_ ABSL_GUARDED_BY(mutex_);  // First page -> pages.
  uint64_t used_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t allocations_ ABSL_GUARDED_BY(mutex_) = 0;  // The pool's clock.
  uint32_t next_drain_page_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace nqkv
