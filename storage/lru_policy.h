// Forgets the block that was used least recently. Kept for comparison with SlruPolicy.
#pragma once

#include "storage/eviction_list.h"
#include "storage/eviction_policy.h"

namespace nqkv {

class LruPolicy : public EvictionPolicy {
 public:
  explicit LruPolicy(std::span<EvictionLink> links) : links_(links), blocks_(links) {}

  void Insert(BlockId block, uint32_t weight, uint64_t now) override;
  void Touch(BlockId block, uint64_t now) override;
  void Settle(BlockId block, uint64_t now) override { Touch(block, now); }
  void Demote(BlockId block) override;
  void Remove(BlockId block) override;
  void Rename(BlockId block, BlockId name) override { blocks_.Rename(block, name); }
  void Reweigh(BlockId block, uint32_t weight) override { blocks_.Reweigh(block, weight); }
  std::optional<Victim> Next() const override;
  uint64_t weight() const override { return blocks_.weight(); }
  uint64_t CountBlocks() const override { return blocks_.CountBlocks(); }

 private:
  std::span<EvictionLink> links_;
  EvictionList blocks_;
};

}  // namespace nqkv
