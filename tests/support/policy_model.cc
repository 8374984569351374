#include "tests/support/policy_model.h"

#include <algorithm>

namespace nqkv {

PolicyModel::PolicyModel(uint64_t capacity, uint64_t blocks, double protected_share)
    : capacity_(capacity),
      protected_max_(std::max<uint64_t>(1, static_cast<uint64_t>(static_cast<double>(capacity) * protected_share))),
      segmented_(protected_share > 0),
      entries_(blocks) {}

void PolicyModel::Add(Segment segment, uint32_t block) {
  std::list<uint32_t>& list = ListOf(segment);
  list.push_front(block);
  entries_[block] = {segment, list.begin()};
}

void PolicyModel::Remove(uint32_t block) {
  ListOf(entries_[block].segment).erase(entries_[block].place);
  entries_[block].segment = kAbsent;
}

void PolicyModel::Hit(uint32_t block) {
  Remove(block);
  Add(segmented_ ? kProtected : kProbation, block);
  while (protected_.size() > protected_max_) {
    const uint32_t oldest = protected_.back();
    Remove(oldest);
    Add(kProbation, oldest);
  }
}

void PolicyModel::Insert(uint32_t block) {
  if (probation_.size() + protected_.size() >= capacity_) {
    Remove(probation_.empty() ? protected_.back() : probation_.back());
  }
  Add(kProbation, block);
}

size_t PolicyModel::Serve(std::span<const uint32_t> blocks) {
  size_t hits = 0;
  while (hits < blocks.size() && entries_[blocks[hits]].segment != kAbsent) ++hits;
  const size_t count = std::min<size_t>(blocks.size(), capacity_);
  const size_t hit_count = std::min(hits, count);
  for (size_t i = hit_count; i-- > 0;) Hit(blocks[i]);
  for (size_t i = count; i-- > hit_count;) {
    entries_[blocks[i]].segment == kAbsent ? Insert(blocks[i]) : Hit(blocks[i]);
  }
  for (size_t i = hit_count; i-- > 0 && count > hit_count;) {
    const Segment segment = entries_[blocks[i]].segment;
    if (segment == kAbsent) continue;
    Remove(blocks[i]);
    Add(segment, blocks[i]);
  }
  return hits;
}

}  // namespace nqkv
