#include "tests/support/store_model.h"

#include <algorithm>

namespace nqkv {
namespace {

bool HasCell(const std::vector<PartRange>& parts, uint16_t layer, uint16_t head) {
  return std::any_of(parts.begin(), parts.end(), [&](const PartRange& part) {
    return part.layer_begin <= layer && layer < part.layer_end && part.head_begin <= head && head < part.head_end;
  });
}

std::vector<PartRange> RangesOf(const StoreModel::Block& block) {
  std::vector<PartRange> ranges;
  for (const StoreModel::Part& part : block) ranges.push_back(part.range);
  return ranges;
}

}  // namespace

bool CoversCellByCell(const std::vector<PartRange>& parts, const PartRange& needed) {
  for (uint16_t layer = needed.layer_begin; layer < needed.layer_end; ++layer) {
    for (uint16_t head = needed.head_begin; head < needed.head_end; ++head) {
      if (!HasCell(parts, layer, head)) return false;
    }
  }
  return true;
}

StoreModel::Name StoreModel::NameOf(const BlockKey& key) {
  return {{key.tenant(), key.cache()}, {key.layer_group(), std::string(key.bytes())}};
}

bool StoreModel::Put(const BlockKey& key, const PartRange& range, std::string bytes) {
  if (Covers(key, range)) return false;
  auto& [stored_key, block] = blocks_[NameOf(key)];
  stored_key = key;
  std::erase_if(block, [&](const Part& part) { return range.Contains(part.range); });
  block.push_back({.range = range, .bytes = std::move(bytes)});
  return true;
}

bool StoreModel::Covers(const BlockKey& key, const PartRange& range) const {
  return CoversCellByCell(RangesOf(FindBlock(key)), range);
}

const StoreModel::Part* StoreModel::FindPart(const BlockKey& key, const PartRange& range) const {
  for (const Part& part : FindBlock(key)) {
    if (part.range == range) return &part;
  }
  return nullptr;
}

const StoreModel::Block& StoreModel::FindBlock(const BlockKey& key) const {
  const auto found = blocks_.find(NameOf(key));
  return found == blocks_.end() ? none_ : found->second.second;
}

uint64_t StoreModel::Delete(const BlockKey& key) { return blocks_.erase(NameOf(key)); }

uint64_t StoreModel::Clear(TenantId tenant, CacheId cache) {
  return std::erase_if(blocks_, [&](const auto& entry) { return entry.first.first == std::pair(tenant, cache); });
}

CacheStats StoreModel::StatsOf(TenantId tenant, CacheId cache) const {
  CacheStats stats;
  for (const auto& [name, entry] : blocks_) {
    if (name.first != std::pair(tenant, cache)) continue;
    stats.blocks += 1;
    stats.parts += entry.second.size();
    for (const Part& part : entry.second) stats.stored_bytes += part.bytes.size();
  }
  return stats;
}

std::vector<BlockKey> StoreModel::Keys() const {
  std::vector<BlockKey> keys;
  for (const auto& [name, entry] : blocks_) keys.push_back(entry.first);
  return keys;
}

}  // namespace nqkv
