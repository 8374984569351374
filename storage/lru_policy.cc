#include "storage/lru_policy.h"

namespace nqkv {

void LruPolicy::Insert(BlockId block, uint32_t weight, uint64_t now) {
  links_[block] = {.used = now, .weight = weight & kWeightMax};
  blocks_.PushNewest(block);
}

void LruPolicy::Touch(BlockId block, uint64_t now) {
  blocks_.Remove(block);
  links_[block].used = now;
  blocks_.PushNewest(block);
}

void LruPolicy::Demote(BlockId block) {
  blocks_.Remove(block);
  links_[block].used = 0;
  blocks_.PushOldest(block);
}

void LruPolicy::Remove(BlockId block) {
  blocks_.Remove(block);
  links_[block] = {};
}

std::optional<EvictionPolicy::Victim> LruPolicy::Next() const {
  if (blocks_.empty()) return std::nullopt;
  return Victim{.block = blocks_.oldest(), .used = links_[blocks_.oldest()].used};
}

}  // namespace nqkv
