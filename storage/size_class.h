// The sizes that slots come in: multiples of 64 bytes, at most 3 % apart from 2 KiB on.
#pragma once

#include <cstdint>

namespace nqkv {

using SizeClass = uint16_t;

inline constexpr uint64_t kSlotAlignment = 64;
// The largest slot. The block format has 32-bit offsets, so no block is larger than that.
inline constexpr uint64_t kSlotBytesMax = (uint64_t{1} << 32) - kSlotAlignment;

// How many classes there are; they are numbered from 0 by size.
SizeClass SizeClassCount();

// The smallest class that holds `bytes`. Precondition: 1 <= bytes <= kSlotBytesMax.
SizeClass SizeClassOf(uint64_t bytes);

// Bytes of a slot of the class.
uint64_t SlotBytes(SizeClass size_class);

}  // namespace nqkv
