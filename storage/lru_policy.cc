#include "storage/lru_policy.h"

namespace nqkv {

void LruPolicy::Insert(BlockId block, uint64_t now) {
  links_[block] = {.newer = kNoBlock, .older = newest_, .used = now};
  NewerOf(newest_) = block;
  newest_ = block;
}

void LruPolicy::Touch(BlockId block, uint64_t now) {
  Remove(block);
  Insert(block, now);
}

void LruPolicy::Remove(BlockId block) {
  const EvictionLink link = links_[block];
  NewerOf(link.older) = link.newer;
  OlderOf(link.newer) = link.older;
  links_[block] = {};
}

void LruPolicy::Rename(BlockId block, BlockId name) {
  const EvictionLink link = links_[block];
  NewerOf(link.older) = name;
  OlderOf(link.newer) = name;
  links_[block] = {};
  links_[name] = link;
}

std::optional<EvictionPolicy::Victim> LruPolicy::Next() const {
  if (oldest_ == kNoBlock) return std::nullopt;
  return Victim{.block = oldest_, .used = links_[oldest_].used};
}

uint64_t LruPolicy::CountBlocks() const {
  uint64_t count = 0;
  for (BlockId block = oldest_; block != kNoBlock; block = links_[block].newer) ++count;
  return count;
}

}  // namespace nqkv
