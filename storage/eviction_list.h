// Blocks from oldest to newest, as a doubly linked list through the links that all policies share.
#pragma once

#include <cstdint>
#include <span>

#include "storage/eviction_policy.h"

namespace nqkv {

// A block is in at most one list. Not thread-safe.
class EvictionList {
 public:
  explicit EvictionList(std::span<EvictionLink> links) : links_(links) {}

  bool empty() const { return oldest_ == kNoBlock; }
  BlockId oldest() const { return oldest_; }
  BlockId newest() const { return newest_; }
  uint64_t weight() const { return weight_; }

  void PushNewest(BlockId block);
  void PushOldest(BlockId block);
  // Precondition of the rest: the block is in this list.
  void Remove(BlockId block);
  // `name` takes the place of `block`, and all of its link.
  void Rename(BlockId block, BlockId name);
  void Reweigh(BlockId block, uint32_t weight);

  // By walking.
  uint64_t CountBlocks() const;

 private:
  BlockId& NewerOf(BlockId block) { return block == kNoBlock ? oldest_ : links_[block].newer; }
  BlockId& OlderOf(BlockId block) { return block == kNoBlock ? newest_ : links_[block].older; }
  void PushBetween(BlockId older, BlockId block, BlockId newer);

  std::span<EvictionLink> links_;
  BlockId oldest_ = kNoBlock;
  BlockId newest_ = kNoBlock;
  uint64_t weight_ = 0;
};

}  // namespace nqkv
