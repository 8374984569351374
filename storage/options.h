// How the store is set up. Plain values; the service's flags fill them.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"

namespace nqkv {

struct StorageOptions {
  static constexpr uint64_t kHostBytesMin = 1 << 20;

  uint64_t host_bytes = uint64_t{1} << 30;  // The arena, its slot table included.
  // Where the arena lives: empty for anonymous memory, else a file (on tmpfs) that is created with mode 0600, locked,
  // and fully allocated at start.
  std::string arena_path;
  // The file outlives the process, and blocks in it are found again after a restart with the same options.
  bool warm_restart = false;
  bool prefault = false;   // Touch every page at start.
  bool huge_pages = true;  // Ask for huge pages; anonymous memory only, a hint.
  // The slot table has an entry of 128 bytes for each that many bytes of the arena: parts that are smaller on average
  // fill the table before they fill the memory. A power of two, 1 KiB to 1 MiB.
  uint64_t bytes_per_slot = 16 << 10;
  uint32_t index_stripes = 16;  // A power of two, at most 1024.
  std::string eviction_policy = "slru";

  // INVALID_ARGUMENT naming the option.
  absl::Status Validate() const;
};

}  // namespace nqkv
