// Which number stands for which cache in the keys of stored blocks, kept in the arena beside them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "storage/block_key.h"

namespace nqkv {

// A digest, such as a SHA-256: equal ones stand for the same.
using Digest = std::array<uint8_t, 32>;

// Not thread-safe. What is killed between two calls leaves every name as it was, or not there.
class CacheDirectory {
 public:
  static constexpr size_t kNamesMax = 1024;
  static uint64_t Bytes() { return kNamesMax * sizeof(Entry); }

  // `memory` has Bytes() bytes, aligned to 8, which are a predecessor's if `restored`; it outlives the directory. Gives
  // no number up to `id_used_max`, which blocks may bear that have no name here.
  CacheDirectory(std::span<std::byte> memory, bool restored, CacheId id_used_max);

  struct Named {
    CacheId id = 0;
    std::optional<CacheId> given_up;  // Its blocks are nobody's from now on.
    bool spec_changed = false;        // `given_up` was this name's, with another spec.
  };
  // The number of the cache with this name and spec: the one it had, or a new one. Where all entries are taken a name
  // gives way that was not asked for since the start; where there is none, the new number will not be known again.
  Named Name(const Digest& name, const Digest& spec);

 private:
  struct Entry {
    uint32_t id = 0;  // 0: free. Written last.
    Digest name = {};
    Digest spec = {};
  };

  void Write(size_t index, CacheId id, const Digest& name, const Digest& spec);

  const std::span<Entry> entries_;
  std::vector<bool> asked_for_;  // By entry: since the start.
  CacheId next_id_ = 1;
};

}  // namespace nqkv
