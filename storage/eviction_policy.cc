#include "storage/eviction_policy.h"

#include "storage/lru_policy.h"

namespace nqkv {

bool IsEvictionPolicy(absl::string_view name) { return name == "lru"; }

std::unique_ptr<EvictionPolicy> MakeEvictionPolicy(absl::string_view, std::span<EvictionLink> links) {
  return std::make_unique<LruPolicy>(links);
}

}  // namespace nqkv
