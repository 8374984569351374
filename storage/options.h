// How the store is set up. Plain values; the service's flags fill them.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"

namespace nqkv {

struct StorageOptions {
  uint64_t host_bytes = uint64_t{1} << 30;  // The arena, its slot table included.
  // Where the arena lives: empty for anonymous memory, else a file (on tmpfs) that is created with mode 0600, locked,
  // and fully allocated at start.
  std::string arena_path;
  bool prefault = false;        // Touch every page at start.
  uint32_t index_stripes = 16;  // A power of two.
  std::string eviction_policy = "lru";

  // INVALID_ARGUMENT naming the option.
  absl::Status Validate() const;
};

}  // namespace nqkv
