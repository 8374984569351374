// Counts of the store. Plain values.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace nqkv {

struct SizeClassStats {
  uint64_t slot_bytes = 0;
  uint64_t slabs = 0;
  uint64_t slots = 0;
  uint64_t used_slots = 0;
};

// How long evicted blocks had not been used.
struct AgeStats {
  static constexpr std::array<uint32_t, 8> kBoundsSeconds = {1, 10, 60, 300, 1800, 7200, 28'800, 86'400};

  std::array<uint64_t, kBoundsSeconds.size() + 1> counts = {};  // Of ages up to each bound, and above the last.
  uint64_t sum_seconds = 0;
};

struct StoreStats {
  uint64_t capacity_bytes = 0;  // Of the arena, without its slot table.
  uint64_t used_bytes = 0;      // Slots that are taken, rounding included: committed, reserved, and gone but pinned.
  uint64_t stored_bytes = 0;    // Encoded bytes of committed parts.
  uint64_t raw_bytes = 0;       // What the committed parts were before encoding.
  uint64_t reserved_bytes = 0;  // Of used_bytes: reserved and not committed.
  uint64_t blocks = 0;          // With at least one committed part.
  uint64_t parts = 0;           // Committed.
  uint64_t pinned_parts = 0;    // Held by at least one handle, gone ones included.
  uint64_t pinned_bytes = 0;
  uint64_t evicted_blocks_total = 0;
  uint64_t evicted_bytes_total = 0;
  AgeStats evicted_ages;  // One a block evicted.
  uint64_t damaged_blocks_total = 0;
  uint64_t rejected_reservations_total = 0;
  uint64_t free_bytes = 0;              // Of pages that belong to no class.
  std::vector<SizeClassStats> classes;  // Those in use.
};

struct CacheStats {
  uint64_t blocks = 0;
  uint64_t parts = 0;
  uint64_t used_bytes = 0;
  uint64_t stored_bytes = 0;
  uint64_t raw_bytes = 0;

  bool operator==(const CacheStats&) const = default;
};

}  // namespace nqkv
