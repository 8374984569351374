// What a BlockStore without limits would hold: the simplest code that gives the right answers.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "kernels/block_layout.h"
#include "storage/block_key.h"
#include "storage/stats.h"

namespace nqkv {

// Whether every single cell of `needed` lies in a part.
bool CoversCellByCell(const std::vector<PartRange>& parts, const PartRange& needed);

// Not thread-safe.
class StoreModel {
 public:
  struct Part {
    PartRange range;
    std::string bytes;
  };
  using Block = std::vector<Part>;

  // False when the parts cover the range already. Parts inside the new one leave.
  bool Put(const BlockKey& key, const PartRange& range, std::string bytes);
  bool Covers(const BlockKey& key, const PartRange& range) const;
  // Null when the block has no such part.
  const Part* FindPart(const BlockKey& key, const PartRange& range) const;
  // Empty when the block is unknown.
  const Block& FindBlock(const BlockKey& key) const;

  // Blocks removed.
  uint64_t Delete(const BlockKey& key);
  uint64_t Clear(TenantId tenant, CacheId cache);

  // blocks, parts and stored_bytes.
  CacheStats StatsOf(TenantId tenant, CacheId cache) const;
  std::vector<BlockKey> Keys() const;

 private:
  using Name = std::pair<std::pair<TenantId, CacheId>, std::pair<uint16_t, std::string>>;
  static Name NameOf(const BlockKey& key);

  const Block none_ = {};
  std::map<Name, std::pair<BlockKey, Block>> blocks_;
};

}  // namespace nqkv
