#include "storage/eviction_list.h"

namespace nqkv {

void EvictionList::PushNewest(BlockId block) { PushBetween(newest_, block, kNoBlock); }

void EvictionList::PushOldest(BlockId block) { PushBetween(kNoBlock, block, oldest_); }

void EvictionList::PushBetween(BlockId older, BlockId block, BlockId newer) {
  links_[block].older = older;
  links_[block].newer = newer;
  NewerOf(older) = block;
  OlderOf(newer) = block;
  weight_ += links_[block].weight;
}

void EvictionList::Remove(BlockId block) {
  EvictionLink& link = links_[block];
  NewerOf(link.older) = link.newer;
  OlderOf(link.newer) = link.older;
  weight_ -= link.weight;
  // The oldest leave one after the other: the one after next is fetched while there is time.
  if (link.older == kNoBlock && oldest_ != kNoBlock && links_[oldest_].newer != kNoBlock) {
    __builtin_prefetch(&links_[links_[oldest_].newer], 1);
  }
  link.older = kNoBlock;
  link.newer = kNoBlock;
}

void EvictionList::Rename(BlockId block, BlockId name) {
  const EvictionLink link = links_[block];
  NewerOf(link.older) = name;
  OlderOf(link.newer) = name;
  links_[block] = {};
  links_[name] = link;
}

void EvictionList::Reweigh(BlockId block, uint32_t weight) {
  weight_ += weight;
  weight_ -= links_[block].weight;
  links_[block].weight = weight & EvictionPolicy::kWeightMax;
}

uint64_t EvictionList::CountBlocks() const {
  uint64_t count = 0;
  for (BlockId block = oldest_; block != kNoBlock; block = links_[block].newer) ++count;
  return count;
}

}  // namespace nqkv
