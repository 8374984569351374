// What the index tells of blocks. Plain values.
#pragma once

#include <cstdint>

namespace nqkv {

// What one block's parts add up to, for a needed range.
struct BlockPresence {
  bool present = false;
  uint64_t stored_bytes = 0;  // Of the parts that the range needs.
  uint8_t provenance = 1;     // The worst.
  float floor_error = 0;      // The worst.
  float token_norm_error = 0;
};

// What was forgotten, parts that are still being read included.
struct Forgotten {
  uint64_t blocks = 0;
  uint64_t stored_bytes = 0;
  uint32_t used_seconds = 0;  // When the last of them was used last, by the store's clock.
};

}  // namespace nqkv
