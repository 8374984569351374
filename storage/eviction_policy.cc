#include "storage/eviction_policy.h"

#include "storage/lru_policy.h"
#include "storage/slru_policy.h"

namespace nqkv {

bool IsEvictionPolicy(absl::string_view name) { return name == "lru" || name == "slru"; }

absl::string_view EvictionPolicyNames() { return "lru and slru"; }

std::unique_ptr<EvictionPolicy> MakeEvictionPolicy(absl::string_view name, std::span<EvictionLink> links) {
  if (name == "lru") return std::make_unique<LruPolicy>(links);
  return std::make_unique<SlruPolicy>(links);
}

}  // namespace nqkv
