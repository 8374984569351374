#include "storage/slru_policy.h"

namespace nqkv {

void SlruPolicy::Push(Segment segment, BlockId block, uint64_t now) {
  links_[block].segment = segment;
  links_[block].used = now;
  lists_[segment].PushNewest(block);
}

void SlruPolicy::Insert(BlockId block, uint32_t weight, uint64_t now) {
  links_[block] = {.weight = weight & kWeightMax};
  Push(kProbation, block, now);
}

void SlruPolicy::Touch(BlockId block, uint64_t now) {
  ListOf(block).Remove(block);
  Push(kProtected, block, now);
}

// It counts as used now, so that the probation list stays in the order of use.
void SlruPolicy::Unprotect(uint64_t now) {
  const BlockId block = lists_[kProtected].oldest();
  lists_[kProtected].Remove(block);
  Push(kProbation, block, now);
}

void SlruPolicy::Settle(BlockId block, uint64_t now) {
  EvictionList& list = ListOf(block);
  list.Remove(block);
  links_[block].used = now;
  list.PushNewest(block);
}

void SlruPolicy::Demote(BlockId block) {
  ListOf(block).Remove(block);
  links_[block].segment = kProbation;
  links_[block].used = 0;
  lists_[kProbation].PushOldest(block);
}

void SlruPolicy::Remove(BlockId block) {
  ListOf(block).Remove(block);
  links_[block] = {};
}

std::optional<EvictionPolicy::Victim> SlruPolicy::Next() const {
  return OldestOf(lists_[kProbation].empty() ? kProtected : kProbation);
}

std::optional<EvictionPolicy::Victim> SlruPolicy::OldestProtected() const { return OldestOf(kProtected); }

std::optional<EvictionPolicy::Victim> SlruPolicy::OldestOf(Segment segment) const {
  const BlockId block = lists_[segment].oldest();
  if (block == kNoBlock) return std::nullopt;
  return Victim{.block = block, .used = links_[block].used, .is_protected = segment == kProtected};
}

}  // namespace nqkv
