// Owners of slots: a handle pins committed parts for reading, a reservation owns a part that is being written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "kernels/block_layout.h"
#include "storage/block_key.h"

namespace nqkv {

class SlotTable;
class BlockStore;

// One pinned part. Move-only; dropping it unpins with one atomic decrement and, when the part is gone, one push on the
// list of slots to free: no lock, so it may happen on any thread, in a transport's callback too.
class PartPin {
 public:
  PartPin() = default;
  PartPin(SlotTable* table, uint32_t slot) : table_(table), slot_(slot) {}
  PartPin(PartPin&& other) noexcept : table_(std::exchange(other.table_, nullptr)), slot_(other.slot_) {}
  PartPin& operator=(PartPin&& other) noexcept;
  ~PartPin() { Reset(); }

  void Reset();

  uint32_t slot() const { return slot_; }  // No other pinned part has it.
  PartRange range() const;
  std::span<const std::byte> bytes() const;

 private:
  SlotTable* table_ = nullptr;
  uint32_t slot_ = 0;
};

// The pinned parts that together cover what was asked for. While it lives, their bytes stay and do not change.
class BlockHandle {
 public:
  BlockHandle() = default;
  explicit BlockHandle(std::vector<PartPin> parts) : parts_(std::move(parts)) {}

  std::span<const PartPin> parts() const { return parts_; }
  std::vector<PartPin> TakeParts() && { return std::move(parts_); }

 private:
  std::vector<PartPin> parts_;
};

// Memory for a part that nobody can see yet. Dropping it gives the memory back. Not thread-safe; move-only.
class Reservation {
 public:
  Reservation() = default;
  Reservation(Reservation&& other) noexcept;
  Reservation& operator=(Reservation&& other) noexcept;
  ~Reservation() { Reset(); }

  void Reset();

  std::span<std::byte> bytes() const { return bytes_; }
  const BlockKey& key() const { return key_; }
  const PartRange& range() const { return range_; }
  bool valid() const { return owner_ != nullptr; }

 private:
  friend class BlockStore;
  Reservation(BlockStore* owner, uint32_t slot, const BlockKey& key, const PartRange& range, std::span<std::byte> bytes)
      : owner_(owner), slot_(slot), key_(key), range_(range), bytes_(bytes) {}

  BlockStore* owner_ = nullptr;
  uint32_t slot_ = 0;
  BlockKey key_;
  PartRange range_;
  std::span<std::byte> bytes_;
};

}  // namespace nqkv
