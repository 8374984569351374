#include "client/block_planes.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace nqkv::client {
namespace {

const LayerGroup* FindGroup(const CacheSpec& spec, uint32_t id) {
  const auto it = std::find_if(spec.layer_groups.begin(), spec.layer_groups.end(),
                               [&](const LayerGroup& group) { return group.id == id; });
  return it == spec.layer_groups.end() ? nullptr : &*it;
}

// What the shard holds of the group; all of it when the server did not say.
GroupSizes HeldOf(const CacheInfo& info, const LayerGroup& group) {
  for (const GroupSizes& sizes : info.sizes) {
    if (sizes.layer_group == group.id && sizes.layers.end > 0 && sizes.heads.end > 0) return sizes;
  }
  GroupSizes all;
  all.layers = {.begin = 0, .end = UINT32_MAX};
  all.heads = {.begin = 0, .end = group.planes.empty() ? 0 : group.planes.front().heads};
  return all;
}

}  // namespace

absl::StatusOr<std::vector<PlanePiece>> PlanesOf(const CacheSpec& spec, const CacheInfo& info, uint32_t layer_group,
                                                 const std::optional<Range>& layers,
                                                 const std::optional<Range>& heads) {
  const LayerGroup* group = FindGroup(spec, layer_group);
  if (group == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("layer_group: the spec has no group ", layer_group));
  }
  const GroupSizes held = HeldOf(info, *group);
  const Range layer_range = layers.value_or(held.layers);
  const Range head_range = heads.value_or(held.heads);
  std::vector<PlanePiece> planes;
  for (const PlaneSpec& plane : group->planes) {
    if (plane.layer < layer_range.begin || plane.layer >= layer_range.end) continue;
    if (head_range.begin >= head_range.end || head_range.end > plane.heads) {
      return absl::InvalidArgumentError(absl::StrCat("heads: [", head_range.begin, ", ", head_range.end,
                                                     ") does not lie in the ", plane.heads, " heads"));
    }
    planes.push_back({.spec = plane, .tokens = group->block_tokens, .heads = head_range.end - head_range.begin});
  }
  if (planes.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("layers: group ", layer_group, " has none in [", layer_range.begin, ", ", layer_range.end, ")"));
  }
  return planes;
}

}  // namespace nqkv::client
