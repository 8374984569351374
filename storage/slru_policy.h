// Segmented least recently used: what was wanted again outlives what was wanted once.
//
// A block enters the probation list. When it is wanted again it moves to the protected list; what that has too much
// goes back to probation as its newest. Victims come from probation, and from the protected list only when probation is
// empty. On traces of chats and of coding agents a small protected share beats plain LRU where memory is short and
// costs nothing where it is not; SIEVE, LFU and TinyLFU lose there.
#pragma once

#include "storage/eviction_list.h"
#include "storage/eviction_policy.h"

namespace nqkv {

class SlruPolicy : public EvictionPolicy {
 public:
  explicit SlruPolicy(std::span<EvictionLink> links)
      : links_(links), lists_{EvictionList(links), EvictionList(links)} {}

  void Insert(BlockId block, uint32_t weight, uint64_t now) override;
  void Touch(BlockId block, uint64_t now) override;
  void Settle(BlockId block, uint64_t now) override;
  void Demote(BlockId block) override;
  void Remove(BlockId block) override;
  void Rename(BlockId block, BlockId name) override { ListOf(block).Rename(block, name); }
  void Reweigh(BlockId block, uint32_t weight) override { ListOf(block).Reweigh(block, weight); }
  std::optional<Victim> Next() const override;
  uint64_t weight() const override { return lists_[kProbation].weight() + lists_[kProtected].weight(); }
  uint64_t protected_weight() const override { return lists_[kProtected].weight(); }
  std::optional<Victim> OldestProtected() const override;
  void Unprotect(uint64_t now) override;
  uint64_t CountBlocks() const override { return lists_[0].CountBlocks() + lists_[1].CountBlocks(); }

 private:
  enum Segment : uint32_t { kProbation = 0, kProtected = 1 };

  EvictionList& ListOf(BlockId block) { return lists_[links_[block].segment]; }
  void Push(Segment segment, BlockId block, uint64_t now);
  std::optional<Victim> OldestOf(Segment segment) const;

  std::span<EvictionLink> links_;
  EvictionList lists_[2];  // By segment.
};

}  // namespace nqkv
