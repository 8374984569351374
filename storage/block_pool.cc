#include "storage/block_pool.h"

#include <algorithm>
#include <cassert>
#include <limits>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

namespace nqkv {
namespace {

// A usual slab is at least that large, so that small blocks do not cost a slab each.
constexpr uint32_t kSlabPagesLow = 4;
constexpr uint32_t kSlabPagesHigh = 64;
// It wastes at most 1/64 of its pages behind its last slot; the smallest worth having 1/8.
constexpr uint64_t kWasteShift = 6;
constexpr uint64_t kWasteShiftMax = 3;
// Slabs and free runs among which the cheapest is chosen, so that the choice takes tens of microseconds in any arena.
constexpr size_t kSegmentsMax = 1024;

}  // namespace

struct BlockPool::Slab {
  uint32_t first_page = 0;
  uint32_t pages = 0;
  SizeClass size_class = 0;
  bool draining = false;
  uint64_t filled = 0;               // When a slot was taken last, by the pool's clock.
  std::vector<uint32_t> owners;      // By slot.
  std::vector<uint32_t> free_slots;  // A stack.

  uint32_t used_slots() const { return static_cast<uint32_t>(owners.size() - free_slots.size()); }
};

namespace {

constexpr uint32_t kNoOwner = UINT32_MAX;

// The pages that the most slots need which fit into `pages` pages; 0 when none fits.
uint32_t FilledPages(uint32_t pages, uint64_t slot_bytes) {
  const uint64_t slot_count = pages * BlockPool::kPageBytes / slot_bytes;
  return static_cast<uint32_t>((slot_count * slot_bytes + BlockPool::kPageBytes - 1) / BlockPool::kPageBytes);
}

bool WastesAtMost(uint64_t waste_shift, uint32_t pages, uint64_t slot_bytes) {
  const uint64_t slab_bytes = pages * BlockPool::kPageBytes;
  return slab_bytes >= slot_bytes && slab_bytes % slot_bytes <= slab_bytes >> waste_shift;
}

}  // namespace

BlockPool::BlockPool(uint64_t begin, uint64_t bytes)
    : begin_(begin), page_count_(static_cast<uint32_t>(bytes / kPageBytes)) {
  MutexLock lock(&mutex_);
  slabs_.resize(page_count_);
  first_page_of_.resize(page_count_);
  if (page_count_ > 0) free_runs_.emplace(0, page_count_);
  for (SizeClass size_class = 0; size_class < SizeClassCount(); ++size_class) {
    if (SlotBytes(size_class) > capacity_bytes()) break;
    classes_.push_back({.shape = ShapeOf(SlotBytes(size_class))});
  }
}

BlockPool::~BlockPool() = default;

uint64_t BlockPool::slot_bytes_max() const {
  if (capacity_bytes() < SlotBytes(0)) return 0;
  if (capacity_bytes() >= kSlotBytesMax) return kSlotBytesMax;
  const SizeClass size_class = SizeClassOf(capacity_bytes());
  return SlotBytes(size_class) > capacity_bytes() ? SlotBytes(size_class - 1) : SlotBytes(size_class);
}

BlockPool::Shape BlockPool::ShapeOf(uint64_t slot_bytes) const {
  const uint32_t one_slot = PagesFor(slot_bytes);
  const uint32_t lowest = std::max(one_slot, std::clamp(page_count_ / 1024, kSlabPagesLow, kSlabPagesHigh));
  const uint32_t highest = std::min(page_count_, std::max(lowest, page_count_ / 32));
  Shape shape = {.pages = std::min(lowest, highest), .pages_min = one_slot};
  while (shape.pages < highest && !WastesAtMost(kWasteShift, shape.pages, slot_bytes)) ++shape.pages;
  shape.pages = FilledPages(shape.pages, slot_bytes);
  while (shape.pages_min < shape.pages && !WastesAtMost(kWasteShiftMax, shape.pages_min, slot_bytes)) ++shape.pages_min;
  return shape;
}

std::optional<uint64_t> BlockPool::Allocate(uint64_t bytes, uint32_t owner, uint32_t* slab_pages_before) {
  const SizeClass size_class = SizeClassOf(bytes);
  MutexLock lock(&mutex_);
  Class& slots = classes_[size_class];
  Slab* slab = slots.open.empty() ? AddSlab(size_class) : slabs_[*slots.open.begin()].get();
  if (slab == nullptr) return std::nullopt;
  const uint32_t index = slab->free_slots.back();
  slab->free_slots.pop_back();
  if (slab->free_slots.empty()) slots.open.erase(slab->first_page);
  slab->owners[index] = owner;
  slab->filled = ++allocations_;
  ++slots.used_slots;
  used_bytes_ += SlotBytes(size_class);
  const uint64_t place = index * SlotBytes(size_class);
  if (slab_pages_before != nullptr) *slab_pages_before = static_cast<uint32_t>(place / kPageBytes);
  return begin_ + slab->first_page * kPageBytes + place;
}

void BlockPool::Free(uint64_t offset) {
  MutexLock lock(&mutex_);
  const uint64_t place = offset - begin_;
  Slab* slab = slabs_[first_page_of_[place / kPageBytes]].get();
  const uint64_t slot_bytes = SlotBytes(slab->size_class);
  const auto index = static_cast<uint32_t>((place - slab->first_page * kPageBytes) / slot_bytes);
  assert(slab->owners[index] != kNoOwner);
  slab->owners[index] = kNoOwner;
  slab->free_slots.push_back(index);
  --classes_[slab->size_class].used_slots;
  used_bytes_ -= slot_bytes;
  if (slab->draining) return;
  if (slab->used_slots() == 0) {
    RemoveSlab(slab);
  } else {
    classes_[slab->size_class].open.insert(slab->first_page);
  }
}

BlockPool::Slab* BlockPool::AddSlab(SizeClass size_class) {
  const Run run = FindRun(size_class);
  if (run.pages == 0) return nullptr;
  TakeFreePages(run.first_page, run.pages);
  return PlaceSlab(size_class, run);
}

BlockPool::Slab* BlockPool::PlaceSlab(SizeClass size_class, const Run& run) {
  auto slab = std::make_unique<Slab>();
  slab->first_page = run.first_page;
  slab->pages = run.pages;
  slab->size_class = size_class;
  const auto slot_count = static_cast<uint32_t>(run.pages * kPageBytes / SlotBytes(size_class));
  slab->owners.assign(slot_count, kNoOwner);
  for (uint32_t index = slot_count; index-- > 0;) slab->free_slots.push_back(index);
  std::fill_n(first_page_of_.begin() + run.first_page, run.pages, run.first_page);
  Class& slots = classes_[size_class];
  slots.open.insert(run.first_page);
  slots.slabs.insert(run.first_page);
  slots.slots += slot_count;
  slabs_[run.first_page] = std::move(slab);
  return slabs_[run.first_page].get();
}

bool BlockPool::Restore(std::span<Restored> slots) {
  std::sort(slots.begin(), slots.end(), [](const Restored& a, const Restored& b) { return a.offset < b.offset; });
  if (!CanRestore(slots)) return false;
  MutexLock lock(&mutex_);
  free_runs_.clear();
  uint32_t free_page = 0;
  for (size_t first = 0; first < slots.size();) {
    const uint32_t page = SlabPageOf(slots[first]);
    size_t last = first;
    while (last < slots.size() && SlabPageOf(slots[last]) == page) ++last;
    RestoreSlab(slots.subspan(first, last - first));
    if (page > free_page) free_runs_.emplace(free_page, page - free_page);
    free_page = page + slabs_[page]->pages;
    first = last;
  }
  if (page_count_ > free_page) free_runs_.emplace(free_page, page_count_ - free_page);
  return true;
}

uint32_t BlockPool::SlabPageOf(const Restored& slot) const {
  return static_cast<uint32_t>((slot.offset - begin_) / kPageBytes) - slot.slab_pages_before;
}

// A slab ends with the last page that a slot of it needs; the pages behind it are free.
bool BlockPool::CanRestore(std::span<const Restored> slots) const {
  uint64_t end = begin_;       // Of the last slot.
  uint64_t slab_end_page = 0;  // Of the pages it needs.
  const Restored* last = nullptr;
  for (const Restored& slot : slots) {
    if (slot.offset < end || slot.offset >= begin_ + capacity_bytes()) return false;
    const uint64_t slot_bytes = SlotBytes(slot.size_class);
    const uint64_t page = (slot.offset - begin_) / kPageBytes;
    if (slot_bytes > begin_ + capacity_bytes() - slot.offset || slot.slab_pages_before > page) return false;
    const uint64_t slab_page = SlabPageOf(slot);
    if ((slot.offset - begin_ - slab_page * kPageBytes) % slot_bytes != 0) return false;
    const bool same_slab = last != nullptr && SlabPageOf(*last) == slab_page;
    if (same_slab ? slot.size_class != last->size_class : slab_page < slab_end_page) return false;
    end = slot.offset + slot_bytes;
    slab_end_page = (end - begin_ + kPageBytes - 1) / kPageBytes;
    last = &slot;
  }
  return true;
}

void BlockPool::RestoreSlab(std::span<const Restored> slots) {
  const uint32_t first_page = SlabPageOf(slots.front());
  const SizeClass size_class = slots.front().size_class;
  const uint64_t slot_bytes = SlotBytes(size_class);
  const uint64_t slab_begin = begin_ + first_page * kPageBytes;
  const auto pages =
      static_cast<uint32_t>((slots.back().offset + slot_bytes - slab_begin + kPageBytes - 1) / kPageBytes);
  Slab* slab = PlaceSlab(size_class, {first_page, pages});
  for (const Restored& slot : slots) slab->owners[(slot.offset - slab_begin) / slot_bytes] = slot.owner;
  std::erase_if(slab->free_slots, [&](uint32_t index) { return slab->owners[index] != kNoOwner; });
  if (slab->free_slots.empty()) classes_[size_class].open.erase(first_page);
  classes_[size_class].used_slots += slots.size();
  used_bytes_ += slots.size() * slot_bytes;
}

void BlockPool::RemoveSlab(Slab* slab) {
  Class& slots = classes_[slab->size_class];
  slots.open.erase(slab->first_page);
  slots.slabs.erase(slab->first_page);
  slots.slots -= slab->owners.size();
  AddFreePages(slab->first_page, slab->pages);
  slabs_[slab->first_page].reset();
}

// The tightest free run that holds a usual slab, else what is worth having of the longest one.
BlockPool::Run BlockPool::FindRun(SizeClass size_class) const {
  const Shape& shape = classes_[size_class].shape;
  Run tightest, longest;
  for (const auto& [first_page, pages] : free_runs_) {
    if (pages >= shape.pages && (tightest.pages == 0 || pages < tightest.pages)) tightest = {first_page, pages};
    if (pages > longest.pages) longest = {first_page, pages};
    if (tightest.pages == shape.pages) break;
  }
  if (tightest.pages != 0) return {tightest.first_page, shape.pages};
  if (longest.pages < shape.pages_min) return {};
  const uint64_t slot_bytes = SlotBytes(size_class);
  while (longest.pages > shape.pages_min && !WastesAtMost(kWasteShiftMax, longest.pages, slot_bytes)) --longest.pages;
  longest.pages = FilledPages(longest.pages, slot_bytes);
  return longest;
}

void BlockPool::AddFreePages(uint32_t first_page, uint32_t pages) {
  auto next = free_runs_.lower_bound(first_page);
  if (next != free_runs_.end() && next->first == first_page + pages) {
    pages += next->second;
    next = free_runs_.erase(next);
  }
  if (next != free_runs_.begin()) {
    auto previous = std::prev(next);
    if (previous->first + previous->second == first_page) {
      previous->second += pages;
      return;
    }
  }
  free_runs_.emplace(first_page, pages);
}

// Takes the front of the free run that starts at `first_page`.
void BlockPool::TakeFreePages(uint32_t first_page, uint32_t pages) {
  const auto run = free_runs_.find(first_page);
  const uint32_t rest = run->second - pages;
  free_runs_.erase(run);
  if (rest > 0) free_runs_.emplace(first_page + pages, rest);
}

// Bytes that would be lost, worth less the longer the slab has not been filled: what lives there is then old, or rare.
double BlockPool::CostOf(const Slab& slab) const {
  const double used_bytes = static_cast<double>(slab.used_slots() * SlotBytes(slab.size_class));
  return used_bytes / static_cast<double>(1 + allocations_ - slab.filled);
}

// The slab or free run that holds `page`, and those behind it, at most `count_max` of them.
std::vector<BlockPool::Segment> BlockPool::SegmentsFrom(uint32_t page, size_t count_max) const {
  auto free_run = free_runs_.upper_bound(page);
  if (free_run != free_runs_.begin() && std::prev(free_run)->first + std::prev(free_run)->second > page) {
    page = (--free_run)->first;
  } else {
    page = first_page_of_[page];
  }
  std::vector<Segment> segments;
  while (page < page_count_ && segments.size() < count_max) {
    const bool is_free = free_run != free_runs_.end() && free_run->first == page;
    const Slab* slab = is_free ? nullptr : slabs_[page].get();
    segments.push_back({.first_page = page,
                        .pages = is_free ? (free_run++)->second : slab->pages,
                        .slab = slab,
                        .cost = is_free ? 0 : CostOf(*slab)});
    page += segments.back().pages;
  }
  return segments;
}

// Slides a window over neighbours. Whether owners can leave is asked only where the window is the cheapest so far.
BlockPool::Run BlockPool::CheapestRun(std::span<const Segment> segments, uint32_t pages,
                                      absl::FunctionRef<bool(uint32_t)> movable) {
  Run best;
  double best_cost = std::numeric_limits<double>::infinity();
  size_t first = 0;    // The window is [first, last].
  size_t checked = 0;  // Segments of the window before this one can be emptied.
  Run window;
  double cost = 0;
  for (size_t last = 0; last < segments.size(); ++last) {
    window.pages += segments[last].pages;
    cost += segments[last].cost;
    while (window.pages - segments[first].pages >= pages) {
      window.pages -= segments[first].pages;
      cost -= segments[first++].cost;
    }
    if (window.pages < pages || cost >= best_cost) continue;
    checked = std::max(checked, first);
    while (checked <= last && CanEmpty(segments[checked], movable)) ++checked;
    if (checked > last) {
      best = {segments[first].first_page, window.pages};
      best_cost = cost;
    } else {
      // No window over that segment will do.
      first = ++checked;
      last = first - 1;
      window = {};
      cost = 0;
    }
  }
  return best;
}

bool BlockPool::CanEmpty(const Segment& segment, absl::FunctionRef<bool(uint32_t)> movable) {
  if (segment.slab == nullptr) return true;
  return !segment.slab->draining && std::all_of(segment.slab->owners.begin(), segment.slab->owners.end(),
                                                [&](uint32_t owner) { return owner == kNoOwner || movable(owner); });
}

std::optional<BlockPool::Drain> BlockPool::BeginDrain(uint64_t bytes, absl::FunctionRef<bool(uint32_t owner)> movable) {
  MutexLock lock(&mutex_);
  const uint32_t pages = classes_[SizeClassOf(bytes)].shape.pages_min;
  const std::vector<Segment> segments = SegmentsFrom(next_drain_page_, kSegmentsMax);
  next_drain_page_ = (segments.back().first_page + segments.back().pages) % page_count_;
  Run run = CheapestRun(segments, pages, movable);
  if (run.pages == 0) run = CheapestRun(SegmentsFrom(0, page_count_), pages, movable);
  if (run.pages == 0) return std::nullopt;
  Drain drain = {.first_page = run.first_page, .pages = run.pages, .owners = {}};
  for (uint32_t page = run.first_page; page < run.first_page + run.pages; ++page) {
    Slab* slab = slabs_[page].get();
    if (slab == nullptr) continue;
    slab->draining = true;
    classes_[slab->size_class].open.erase(slab->first_page);
    std::copy_if(slab->owners.begin(), slab->owners.end(), std::back_inserter(drain.owners),
                 [](uint32_t owner) { return owner != kNoOwner; });
  }
  return drain;
}

void BlockPool::EndDrain(const Drain& drain) {
  MutexLock lock(&mutex_);
  for (uint32_t page = drain.first_page; page < drain.first_page + drain.pages; ++page) {
    Slab* slab = slabs_[page].get();
    if (slab == nullptr || !slab->draining) continue;
    slab->draining = false;
    if (slab->used_slots() == 0) {
      RemoveSlab(slab);
    } else if (!slab->free_slots.empty()) {
      classes_[slab->size_class].open.insert(slab->first_page);
    }
  }
}

std::optional<uint32_t> BlockPool::FindOwner(uint64_t bytes, absl::FunctionRef<bool(uint32_t owner)> movable) const {
  MutexLock lock(&mutex_);
  return OwnerIn(SizeClassOf(bytes), movable);
}

std::optional<uint32_t> BlockPool::OwnerIn(SizeClass size_class, absl::FunctionRef<bool(uint32_t)> movable) const {
  for (const uint32_t page : classes_[size_class].slabs) {
    const Slab& slab = *slabs_[page];
    const auto owner = std::find_if(slab.owners.begin(), slab.owners.end(),
                                    [&](uint32_t slot) { return slot != kNoOwner && movable(slot); });
    if (owner != slab.owners.end()) return *owner;
  }
  return std::nullopt;
}

bool BlockPool::CanMakeRoom(uint64_t bytes, absl::FunctionRef<bool(uint32_t owner)> movable) const {
  MutexLock lock(&mutex_);
  const SizeClass size_class = SizeClassOf(bytes);
  if (OwnerIn(size_class, movable).has_value()) return true;  // Nearly always, and at once.
  if (!classes_[size_class].open.empty() || FindRun(size_class).pages > 0) return true;
  uint32_t pages = 0;
  for (const Segment& segment : SegmentsFrom(0, page_count_)) {
    pages = CanEmpty(segment, movable) ? pages + segment.pages : 0;
    if (pages >= classes_[size_class].shape.pages_min) return true;
  }
  return false;
}

void BlockPool::AddStats(StoreStats* stats) const {
  MutexLock lock(&mutex_);
  stats->used_bytes = used_bytes_;
  for (const auto& [first_page, pages] : free_runs_) stats->free_bytes += pages * kPageBytes;
  for (size_t size_class = 0; size_class < classes_.size(); ++size_class) {
    const Class& slots = classes_[size_class];
    if (slots.slabs.empty()) continue;
    stats->classes.push_back({.slot_bytes = SlotBytes(static_cast<SizeClass>(size_class)),
                              .slabs = slots.slabs.size(),
                              .slots = slots.slots,
                              .used_slots = slots.used_slots});
  }
}

uint64_t BlockPool::used_bytes() const {
  MutexLock lock(&mutex_);
  return used_bytes_;
}

std::vector<BlockPool::Taken> BlockPool::TakenSlots() const {
  MutexLock lock(&mutex_);
  std::vector<Taken> taken;
  for (const auto& slab : slabs_) {
    if (slab == nullptr) continue;
    const uint64_t slot_bytes = SlotBytes(slab->size_class);
    for (uint32_t index = 0; index < slab->owners.size(); ++index) {
      if (slab->owners[index] == kNoOwner) continue;
      taken.push_back({.owner = slab->owners[index],
                       .offset = begin_ + slab->first_page * kPageBytes + index * slot_bytes,
                       .slot_bytes = slot_bytes});
    }
  }
  return taken;
}

std::string BlockPool::FindInconsistency() const {
  MutexLock lock(&mutex_);
  uint64_t used_bytes = 0;
  auto free_run = free_runs_.begin();
  for (uint32_t page = 0; page < page_count_;) {
    if (free_run != free_runs_.end() && free_run->first == page) {
      page += (free_run++)->second;
      continue;
    }
    const Slab* slab = slabs_[page].get();
    if (slab == nullptr) return absl::StrCat("page ", page, " is neither free nor in a slab");
    if (slab->draining) return absl::StrCat("the slab at page ", page, " is being drained for ever");
    if (slab->used_slots() == 0) return absl::StrCat("the slab at page ", page, " is empty");
    const bool is_open = classes_[slab->size_class].open.contains(page);
    if (is_open == slab->free_slots.empty()) return absl::StrCat("the slab at page ", page, " is listed wrongly");
    used_bytes += slab->used_slots() * SlotBytes(slab->size_class);
    page += slab->pages;
  }
  if (free_run != free_runs_.end()) return absl::StrCat("the free run at page ", free_run->first, " is in a slab");
  if (used_bytes != used_bytes_) return absl::StrCat("slabs hold ", used_bytes, " bytes, counted ", used_bytes_);
  return "";
}

}  // namespace nqkv
