#include "service/convert.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "kernels/status_macros.h"
#include "proto/key_chain.h"
#include "proto/rpc_status.h"
#include "storage/block_key.h"

namespace nqkv {
namespace {

constexpr size_t kNameBytesMax = 128;
constexpr size_t kTextBytesMax = 256;
constexpr size_t kDigestBytesMax = 64;
constexpr int kGroupsMax = 64;
constexpr int kPlanesMax = 4'096;  // In a spec: more than any model has.
constexpr uint32_t kLayerMax = 65'534;
constexpr uint32_t kHeadsMax = 1'024;
constexpr uint32_t kChannelsMax = 8'192;
constexpr uint32_t kTokensMax = 1'024;

absl::Status CheckSize(const std::string& path, size_t bytes, size_t max) {
  if (bytes <= max) return absl::OkStatus();
  return FieldError(path, absl::StrCat(bytes, " bytes, at most ", max));
}

absl::Status CheckNumber(const std::string& path, uint32_t value, uint32_t min, uint32_t max) {
  if (value >= min && value <= max) return absl::OkStatus();
  return FieldError(path, absl::StrCat(value, " is not within ", min, " to ", max));
}

absl::Status CheckRole(v1::LayerGroupKind kind, v1::PlaneRole role, const std::string& path) {
  if (role == v1::PLANE_ROLE_UNSPECIFIED) return FieldError(path, "required");
  const bool attention = role == v1::PLANE_ROLE_KEY || role == v1::PLANE_ROLE_VALUE;
  if (attention == (kind == v1::LAYER_GROUP_KIND_FULL)) return absl::OkStatus();
  return FieldError(path, absl::StrCat(v1::PlaneRole_Name(role), " does not belong into a group of kind ",
                                       v1::LayerGroupKind_Name(kind)));
}

absl::StatusOr<PlaneSpec> PlaneFromProto(const v1::PlaneSpec& plane, v1::LayerGroupKind kind, const std::string& path) {
  NQKV_RETURN_IF_ERROR(CheckNumber(path + ".layer", plane.layer(), 0, kLayerMax));
  NQKV_RETURN_IF_ERROR(CheckRole(kind, plane.role(), path + ".role"));
  NQKV_RETURN_IF_ERROR(CheckNumber(path + ".heads", plane.heads(), 1, kHeadsMax));
  NQKV_RETURN_IF_ERROR(CheckNumber(path + ".channels", plane.channels(), 8, kChannelsMax));
  if (plane.channels() % 8 != 0) {
    return FieldError(path + ".channels", absl::StrCat(plane.channels(), " is not a multiple of 8"));
  }
  NQKV_ASSIGN_OR_RETURN(const std::optional<Dtype> dtype, DtypeFromProto(plane.dtype(), path + ".dtype"));
  if (!dtype.has_value()) return FieldError(path + ".dtype", "required");
  return PlaneSpec{.layer = static_cast<uint16_t>(plane.layer()),
                   .role = static_cast<PlaneRole>(plane.role()),
                   .heads = static_cast<uint16_t>(plane.heads()),
                   .channels = static_cast<uint16_t>(plane.channels()),
                   .dtype = *dtype};
}

// What is asked of a plane beside its neighbours.
absl::Status CheckPlaneInGroup(const GroupLayout& layout, const PlaneSpec& plane, const SpecBounds& bounds,
                               const std::string& path) {
  const PlaneShape shape = {layout.block_tokens, plane.heads, plane.channels, plane.dtype};
  if (shape.raw_bytes() > bounds.plane_raw_bytes_max) {
    return FieldError(path, absl::StrCat("one block's plane takes ", shape.raw_bytes(), " bytes, at most ",
                                         bounds.plane_raw_bytes_max, " here"));
  }
  if (layout.planes.empty()) return absl::OkStatus();
  if (plane.heads != layout.heads()) {
    return FieldError(path + ".heads",
                      absl::StrCat(plane.heads, ", but ", layout.heads(),
                                   " in the planes before: all planes of a group have the same heads"));
  }
  const PlaneSpec& previous = layout.planes.back();
  const auto place = std::pair(plane.layer, plane.role);
  const auto previous_place = std::pair(previous.layer, previous.role);
  if (place == previous_place) return FieldError(path, "the same layer and role as the plane before");
  if (place < previous_place) return FieldError(path, "planes must come by layer and then by role");
  return absl::OkStatus();
}

// Each layer needs the planes without which attention cannot run.
absl::Status CheckLayersWhole(const GroupLayout& layout, v1::LayerGroupKind kind, const std::string& path) {
  absl::flat_hash_map<uint16_t, uint32_t> roles;
  for (const PlaneSpec& plane : layout.planes) roles[plane.layer] |= 1u << static_cast<uint32_t>(plane.role);
  const std::vector<PlaneRole> needed = kind == v1::LAYER_GROUP_KIND_FULL
                                            ? std::vector<PlaneRole>{PlaneRole::kKey, PlaneRole::kValue}
                                            : std::vector<PlaneRole>{PlaneRole::kLatent};
  for (const PlaneSpec& plane : layout.planes) {
    for (const PlaneRole role : needed) {
      if ((roles[plane.layer] >> static_cast<uint32_t>(role) & 1) != 0) continue;
      return FieldError(path, absl::StrCat("layer ", plane.layer, " has no plane of role ",
                                           v1::PlaneRole_Name(static_cast<v1::PlaneRole>(role))));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<GroupLayout> GroupFromProto(const v1::LayerGroup& group, const SpecBounds& bounds,
                                           const std::string& path) {
  if (group.kind() == v1::LAYER_GROUP_KIND_UNSPECIFIED) return FieldError(path + ".kind", "required");
  if (group.kind() != v1::LAYER_GROUP_KIND_FULL && group.kind() != v1::LAYER_GROUP_KIND_MLA) {
    return NotBuiltYet(absl::StrCat(path, ".kind ", v1::LayerGroupKind_Name(group.kind())));
  }
  NQKV_RETURN_IF_ERROR(CheckNumber(path + ".id", group.id(), 0, UINT16_MAX));
  NQKV_RETURN_IF_ERROR(CheckNumber(path + ".block_tokens", group.block_tokens(), 1, kTokensMax));
  if (group.planes_size() == 0) return FieldError(path + ".planes", "required");
  GroupLayout layout = {.id = static_cast<uint16_t>(group.id()),
                        .block_tokens = static_cast<uint16_t>(group.block_tokens())};
  for (int i = 0; i < group.planes_size(); ++i) {
    const std::string plane_path = absl::StrCat(path, ".planes[", i, "]");
    NQKV_ASSIGN_OR_RETURN(const PlaneSpec plane, PlaneFromProto(group.planes(i), group.kind(), plane_path));
    NQKV_RETURN_IF_ERROR(CheckPlaneInGroup(layout, plane, bounds, plane_path));
    layout.planes.push_back(plane);
  }
  NQKV_RETURN_IF_ERROR(CheckLayersWhole(layout, group.kind(), path + ".planes"));
  const uint64_t raw_bytes = RawBytes(layout, WholeRange(layout));
  if (raw_bytes > bounds.block_raw_bytes_max) {
    return FieldError(path, absl::StrCat("one block takes ", raw_bytes, " bytes before encoding, at most ",
                                         bounds.block_raw_bytes_max, " here"));
  }
  return layout;
}

absl::Status CheckSpecTexts(const v1::CacheSpec& spec) {
  if (spec.model().empty()) return FieldError("spec.model", "required");
  NQKV_RETURN_IF_ERROR(CheckSize("spec.model", spec.model().size(), kTextBytesMax));
  NQKV_RETURN_IF_ERROR(CheckSize("spec.revision", spec.revision().size(), kTextBytesMax));
  NQKV_RETURN_IF_ERROR(CheckSize("spec.rope_digest", spec.rope_digest().size(), kDigestBytesMax));
  NQKV_RETURN_IF_ERROR(CheckSize("spec.adapter_digest", spec.adapter_digest().size(), kDigestBytesMax));
  return CheckSize("spec.key_scheme", spec.key_scheme().size(), kTextBytesMax);
}

// Group ids, and each (layer, role), stand once in the whole spec.
absl::Status CheckUnique(const std::vector<GroupLayout>& groups) {
  for (size_t i = 1; i < groups.size(); ++i) {
    for (size_t j = 0; j < i; ++j) {
      if (groups[i].id == groups[j].id) {
        return FieldError(absl::StrCat("spec.layer_groups[", i, "].id"),
                          absl::StrCat(groups[i].id, " is the id of layer_groups[", j, "] too"));
      }
    }
  }
  absl::flat_hash_set<std::pair<uint16_t, uint8_t>> seen;
  for (size_t i = 0; i < groups.size(); ++i) {
    for (size_t p = 0; p < groups[i].planes.size(); ++p) {
      const PlaneSpec& plane = groups[i].planes[p];
      if (seen.emplace(plane.layer, static_cast<uint8_t>(plane.role)).second) continue;
      return FieldError(absl::StrCat("spec.layer_groups[", i, "].planes[", p, "]"),
                        absl::StrCat("layer ", plane.layer, " has a plane of this role before"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckBound(const std::string& path, float value) {
  if (std::isfinite(value) && value >= 0) return absl::OkStatus();
  return FieldError(path, absl::StrCat(value, " is not a bound: it must be finite and not negative"));
}

struct TensorSplit {
  uint32_t rank = 0;
  uint32_t size = 1;
};

absl::StatusOr<TensorSplit> SplitFromProto(uint32_t rank, uint32_t size, const std::string& name) {
  size = std::max(size, 1u);
  if (rank >= size) {
    return FieldError(absl::StrCat("shard.", name, "_rank"), absl::StrCat(rank, " of ", size, " ranks"));
  }
  return TensorSplit{rank, size};
}

// Heads are split evenly; with more ranks than heads, ranks share a head.
absl::StatusOr<PartRange> TensorPart(const TensorSplit& split, const GroupLayout& group) {
  PartRange part = WholeRange(group);
  const uint32_t heads = part.heads();
  const bool even = heads >= split.size ? heads % split.size == 0 : split.size % heads == 0;
  if (!even) {
    return FieldError("shard.tensor_size", absl::StrCat("the ", heads, " heads of layer group ", group.id,
                                                        " cannot be split evenly over ", split.size, " ranks"));
  }
  const uint32_t share = std::max(heads / split.size, 1u);
  part.head_begin = static_cast<uint16_t>(uint64_t{split.rank} * heads / split.size);
  part.head_end = static_cast<uint16_t>(part.head_begin + share);
  return part;
}

absl::Status CheckRange(const v1::Range& range, uint32_t begin, uint32_t end, const std::string& path) {
  if (range.begin() >= range.end()) {
    return FieldError(path, absl::StrCat("[", range.begin(), ", ", range.end(), ") is empty"));
  }
  if (range.begin() >= begin && range.end() <= end) return absl::OkStatus();
  return FieldError(path, absl::StrCat("[", range.begin(), ", ", range.end(), ") is not within [", begin, ", ", end,
                                       ") of the layer group"));
}

std::string Joined(absl::string_view path, absl::string_view field) {
  return path.empty() ? std::string(field) : absl::StrCat(path, ".", field);
}

template <typename Value>
void Compare(const char* name, const Value& present, const Value& asked, std::vector<std::string>* differing) {
  if (present != asked) differing->push_back(absl::StrCat(name, " (", present, ", asked for ", asked, ")"));
}

}  // namespace

absl::Status CheckCacheName(absl::string_view name) {
  if (name.empty()) return FieldError("name", "required");
  NQKV_RETURN_IF_ERROR(CheckSize("name", name.size(), kNameBytesMax));
  for (const char c : name) {
    if (absl::ascii_isalnum(static_cast<unsigned char>(c)) ||
        absl::string_view("._/:-").find(c) != absl::string_view::npos)
      continue;
    return FieldError("name", "only letters, digits and . _ / : - may stand in it");
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<GroupLayout>> GroupsFromSpec(const v1::CacheSpec& spec, const SpecBounds& bounds) {
  NQKV_RETURN_IF_ERROR(CheckSpecTexts(spec));
  if (spec.layer_groups_size() == 0) return FieldError("spec.layer_groups", "required");
  if (spec.layer_groups_size() > kGroupsMax) {
    return FieldError("spec.layer_groups", absl::StrCat(spec.layer_groups_size(), " groups, at most ", kGroupsMax));
  }
  int64_t planes = 0;
  for (const v1::LayerGroup& group : spec.layer_groups()) planes += group.planes_size();
  if (planes > kPlanesMax) {
    return FieldError("spec.layer_groups", absl::StrCat(planes, " planes in all, at most ", kPlanesMax));
  }
  std::vector<GroupLayout> groups;
  for (int i = 0; i < spec.layer_groups_size(); ++i) {
    NQKV_ASSIGN_OR_RETURN(GroupLayout group,
                          GroupFromProto(spec.layer_groups(i), bounds, absl::StrCat("spec.layer_groups[", i, "]")));
    groups.push_back(std::move(group));
  }
  NQKV_RETURN_IF_ERROR(CheckUnique(groups));
  return groups;
}

absl::StatusOr<CodecPolicy> PolicyFromProto(const v1::CodecPolicy& policy) {
  CodecPolicy result;
  if (policy.codec() != v1::CODEC_UNSPECIFIED) result.codec = static_cast<CodecChoice>(policy.codec());
  if (policy.layout() == v1::PLANE_LAYOUT_ROW) {
    if (result.codec != CodecChoice::kNqkv4) return FieldError("policy.layout", "ROW needs codec NQKV4");
    result.layout = PlaneLayout::kRow;
    result.scale_group = 256;
  }
  if (policy.scale_group() != 0) {
    const uint32_t group = policy.scale_group();
    if (group != 64 && group != 128 && group != 256) {
      return FieldError("policy.scale_group", absl::StrCat(group, " is none of 64, 128, 256"));
    }
    if (result.layout == PlaneLayout::kRow && group != 256) {
      return FieldError("policy.scale_group", absl::StrCat(group, ", but layout ROW has 256 only"));
    }
    result.scale_group = static_cast<uint16_t>(group);
  }
  NQKV_RETURN_IF_ERROR(CheckBound("policy.floor_error_max", policy.floor_error_max()));
  NQKV_RETURN_IF_ERROR(CheckBound("policy.token_norm_error_max", policy.token_norm_error_max()));
  if (policy.floor_error_max() > 0) result.floor_error_max = policy.floor_error_max();
  if (policy.token_norm_error_max() > 0) result.token_norm_error_max = policy.token_norm_error_max();
  result.allow_non_finite = policy.allow_non_finite();
  NQKV_RETURN_IF_ERROR(result.Validate());
  return result;
}

v1::CodecPolicy ToProto(const CodecPolicy& policy) {
  v1::CodecPolicy result;
  result.set_codec(static_cast<v1::Codec>(policy.codec));
  result.set_scale_group(policy.scale_group);
  result.set_layout(static_cast<v1::PlaneLayout>(policy.layout));
  result.set_floor_error_max(policy.floor_error_max);
  result.set_token_norm_error_max(policy.token_norm_error_max);
  result.set_allow_non_finite(policy.allow_non_finite);
  return result;
}

std::vector<std::string> DifferingFields(const CodecPolicy& present, const CodecPolicy& asked) {
  std::vector<std::string> differing;
  const v1::CodecPolicy a = ToProto(present);
  const v1::CodecPolicy b = ToProto(asked);
  Compare("policy.codec", v1::Codec_Name(a.codec()), v1::Codec_Name(b.codec()), &differing);
  Compare("policy.scale_group", a.scale_group(), b.scale_group(), &differing);
  Compare("policy.layout", v1::PlaneLayout_Name(a.layout()), v1::PlaneLayout_Name(b.layout()), &differing);
  Compare("policy.floor_error_max", a.floor_error_max(), b.floor_error_max(), &differing);
  Compare("policy.token_norm_error_max", a.token_norm_error_max(), b.token_norm_error_max(), &differing);
  Compare("policy.allow_non_finite", a.allow_non_finite(), b.allow_non_finite(), &differing);
  return differing;
}

absl::StatusOr<std::vector<PartRange>> ShardFromProto(const v1::ShardSpec& shard, std::span<const GroupLayout> groups) {
  if (shard.context_size() > 1) return NotBuiltYet("shard.context_size above 1");
  NQKV_RETURN_IF_ERROR(SplitFromProto(shard.context_rank(), shard.context_size(), "context").status());
  NQKV_ASSIGN_OR_RETURN(const TensorSplit tensor, SplitFromProto(shard.tensor_rank(), shard.tensor_size(), "tensor"));
  NQKV_ASSIGN_OR_RETURN(const TensorSplit pipeline,
                        SplitFromProto(shard.pipeline_rank(), shard.pipeline_size(), "pipeline"));
  if (pipeline.size > 1 && shard.parts_size() == 0) {
    return FieldError("shard.parts", "required with pipeline_size above 1: they say which layers the rank holds");
  }
  std::vector<PartRange> held(groups.size());
  std::vector<bool> named(groups.size());
  for (int i = 0; i < shard.parts_size(); ++i) {
    const v1::ShardPart& part = shard.parts(i);
    const std::string path = absl::StrCat("shard.parts[", i, "]");
    const auto group = std::find_if(groups.begin(), groups.end(),
                                    [&](const GroupLayout& candidate) { return candidate.id == part.layer_group(); });
    if (group == groups.end()) {
      return FieldError(path + ".layer_group", absl::StrCat("the spec has no layer group ", part.layer_group()));
    }
    const size_t index = static_cast<size_t>(group - groups.begin());
    if (named[index]) return FieldError(path + ".layer_group", absl::StrCat(part.layer_group(), " is named twice"));
    named[index] = true;
    PartRange otherwise = WholeRange(*group);
    if (!part.has_heads()) {
      NQKV_ASSIGN_OR_RETURN(otherwise, TensorPart(tensor, *group));
    }
    NQKV_ASSIGN_OR_RETURN(held[index],
                          PartFromProto(part.has_layers() ? &part.layers() : nullptr,
                                        part.has_heads() ? &part.heads() : nullptr, otherwise, *group, path));
  }
  for (size_t i = 0; i < groups.size(); ++i) {
    if (named[i] || pipeline.size > 1) continue;  // A pipeline stage holds nothing of a group that it does not name.
    NQKV_ASSIGN_OR_RETURN(held[i], TensorPart(tensor, groups[i]));
  }
  return held;
}

absl::StatusOr<PartRange> PartFromProto(const v1::Range* layers, const v1::Range* heads, const PartRange& held,
                                        const GroupLayout& group, absl::string_view path) {
  const PartRange whole = WholeRange(group);
  PartRange part = held;
  if (layers != nullptr) {
    NQKV_RETURN_IF_ERROR(CheckRange(*layers, whole.layer_begin, whole.layer_end, Joined(path, "layers")));
    part.layer_begin = static_cast<uint16_t>(layers->begin());
    part.layer_end = static_cast<uint16_t>(layers->end());
  }
  if (heads != nullptr) {
    NQKV_RETURN_IF_ERROR(CheckRange(*heads, whole.head_begin, whole.head_end, Joined(path, "heads")));
    part.head_begin = static_cast<uint16_t>(heads->begin());
    part.head_end = static_cast<uint16_t>(heads->end());
  }
  if (part.empty()) {
    return FieldError(Joined(path, part.layer_begin >= part.layer_end ? "layers" : "heads"),
                      absl::StrCat("required: the shard holds nothing of layer group ", group.id));
  }
  part = SnapLayers(part, group);
  if (part.empty()) {
    return FieldError(Joined(path, "layers"), absl::StrCat("no plane of layer group ", group.id, " lies in the range"));
  }
  return part;
}

PartRange SnapLayers(const PartRange& range, const GroupLayout& group) {
  const PartRange whole = WholeRange(group);
  const auto snap = [&](uint16_t layer) {
    const auto plane =
        std::lower_bound(group.planes.begin(), group.planes.end(), layer,
                         [](const PlaneSpec& candidate, uint16_t wanted) { return candidate.layer < wanted; });
    return plane == group.planes.end() ? whole.layer_end : plane->layer;
  };
  PartRange snapped = range;
  snapped.layer_begin = snap(range.layer_begin);
  snapped.layer_end = snap(range.layer_end);
  return snapped;
}

absl::StatusOr<std::optional<Dtype>> DtypeFromProto(v1::Dtype dtype, absl::string_view path) {
  switch (dtype) {
    case v1::DTYPE_UNSPECIFIED:
      return std::nullopt;
    case v1::DTYPE_FLOAT16:
    case v1::DTYPE_BFLOAT16:
    case v1::DTYPE_FLOAT32:
      return static_cast<Dtype>(dtype);
    default:
      return NotBuiltYet(absl::StrCat(path, " ", v1::Dtype_Name(dtype)));
  }
}

absl::Status CheckKeys(const google::protobuf::RepeatedPtrField<std::string>& keys, absl::string_view path) {
  absl::flat_hash_map<absl::string_view, int> seen;
  seen.reserve(static_cast<size_t>(keys.size()));
  for (int i = 0; i < keys.size(); ++i) {
    const std::string& key = keys[i];
    if (key.empty() || key.size() > BlockKey::kBytesMax) {
      return FieldError(absl::StrCat(path, "[", i, "]"),
                        absl::StrCat(key.size(), " bytes, 1 to ", BlockKey::kBytesMax, " make a key"));
    }
    const auto [it, inserted] = seen.emplace(key, i);
    if (!inserted) {
      return FieldError(absl::StrCat(path, "[", i, "]"), absl::StrCat("the same key as ", path, "[", it->second, "]"));
    }
  }
  return absl::OkStatus();
}

v1::Range ToRange(uint32_t begin, uint32_t end) {
  v1::Range range;
  range.set_begin(begin);
  range.set_end(end);
  return range;
}

SpecFingerprint ToFingerprint(absl::string_view bytes16) {
  SpecFingerprint fingerprint = {};
  std::memcpy(fingerprint.data(), bytes16.data(), std::min(bytes16.size(), fingerprint.size()));
  return fingerprint;
}

}  // namespace nqkv
