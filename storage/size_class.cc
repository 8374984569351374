#include "storage/size_class.h"

#include <algorithm>
#include <array>

namespace nqkv {
namespace {

constexpr uint64_t NextSlotBytes(uint64_t slot_bytes) {
  const uint64_t larger = slot_bytes * 103 / 100 / kSlotAlignment * kSlotAlignment;
  return std::min(std::max(larger, slot_bytes + kSlotAlignment), kSlotBytesMax);
}

constexpr size_t CountClasses() {
  size_t count = 1;
  for (uint64_t slot_bytes = kSlotAlignment; slot_bytes < kSlotBytesMax; slot_bytes = NextSlotBytes(slot_bytes))
    ++count;
  return count;
}

constexpr auto MakeClasses() {
  std::array<uint64_t, CountClasses()> classes = {};
  uint64_t slot_bytes = kSlotAlignment;
  for (uint64_t& entry : classes) {
    entry = slot_bytes;
    slot_bytes = NextSlotBytes(slot_bytes);
  }
  return classes;
}

constexpr auto kClasses = MakeClasses();

}  // namespace

SizeClass SizeClassCount() { return kClasses.size(); }

SizeClass SizeClassOf(uint64_t bytes) {
  return static_cast<SizeClass>(std::lower_bound(kClasses.begin(), kClasses.end(), bytes) - kClasses.begin());
}

uint64_t SlotBytes(SizeClass size_class) { return kClasses[size_class]; }

}  // namespace nqkv
