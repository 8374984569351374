#include "storage/block_handle.h"

#include "storage/block_store.h"
#include "storage/slot_table.h"

namespace nqkv {

PartPin& PartPin::operator=(PartPin&& other) noexcept {
  if (this != &other) {
    Reset();
    table_ = std::exchange(other.table_, nullptr);
    slot_ = other.slot_;
  }
  return *this;
}

void PartPin::Reset() {
  if (table_ != nullptr) std::exchange(table_, nullptr)->Unpin(slot_);
}

PartRange PartPin::range() const { return table_->entry(slot_).range; }

std::span<const std::byte> PartPin::bytes() const { return {table_->memory(slot_), table_->entry(slot_).bytes}; }

Reservation::Reservation(Reservation&& other) noexcept
    : owner_(std::exchange(other.owner_, nullptr)),
      slot_(other.slot_),
      key_(other.key_),
      range_(other.range_),
      bytes_(std::exchange(other.bytes_, {})) {}

Reservation& Reservation::operator=(Reservation&& other) noexcept {
  if (this != &other) {
    Reset();
    owner_ = std::exchange(other.owner_, nullptr);
    slot_ = other.slot_;
    key_ = other.key_;
    range_ = other.range_;
    bytes_ = std::exchange(other.bytes_, {});
  }
  return *this;
}

void Reservation::Reset() {
  if (owner_ != nullptr) std::exchange(owner_, nullptr)->Abandon(slot_);
  bytes_ = {};
}

}  // namespace nqkv
