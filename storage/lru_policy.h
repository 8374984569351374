// Forgets the block that was used least recently.
#pragma once

#include "storage/eviction_policy.h"

namespace nqkv {

// A doubly linked list through the shared links, oldest block to newest.
class LruPolicy : public EvictionPolicy {
 public:
  explicit LruPolicy(std::span<EvictionLink> links) : links_(links) {}

  void Insert(BlockId block, uint64_t now) override;
  void Touch(BlockId block, uint64_t now) override;
  void Remove(BlockId block) override;
  void Rename(BlockId block, BlockId name) override;
  std::optional<Victim> Next() const override;
  uint64_t CountBlocks() const override;

 private:
  BlockId& NewerOf(BlockId block) { return block == kNoBlock ? oldest_ : links_[block].newer; }
  BlockId& OlderOf(BlockId block) { return block == kNoBlock ? newest_ : links_[block].older; }

  std::span<EvictionLink> links_;
  BlockId oldest_ = kNoBlock;
  BlockId newest_ = kNoBlock;
};

}  // namespace nqkv
