// The wire contract's messages <-> the structs of kernels, and the checks that stand between.
//
// Every error is INVALID_ARGUMENT with the field's path, or UNIMPLEMENTED for what is not built yet. Nothing here keeps
// state; all functions are thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/block_format.h"
#include "kernels/block_layout.h"
#include "kernels/codec_plan.h"
#include "nqkv/v1/kv_cache.pb.h"

namespace nqkv {

// Names of caches: 1 to 128 of [A-Za-z0-9._/:-].
absl::Status CheckCacheName(absl::string_view name);

struct SpecBounds {
  uint64_t block_raw_bytes_max = 0;  // Of one block of a layer group.
  uint64_t plane_raw_bytes_max = 0;  // Of one plane of it.
};
// The layer groups of a spec, checked: dimensions, kinds, roles, order, duplicates, sizes.
absl::StatusOr<std::vector<GroupLayout>> GroupsFromSpec(const v1::CacheSpec& spec, const SpecBounds& bounds);

// Defaults filled in.
absl::StatusOr<CodecPolicy> PolicyFromProto(const v1::CodecPolicy& policy);
v1::CodecPolicy ToProto(const CodecPolicy& policy);
// "codec (CODEC_AUTO, asked for CODEC_RAW)", one a differing field.
std::vector<std::string> DifferingFields(const CodecPolicy& present, const CodecPolicy& asked);

// What a worker holds of each of `groups`, in their order; an empty range where it holds nothing.
absl::StatusOr<std::vector<PartRange>> ShardFromProto(const v1::ShardSpec& shard, std::span<const GroupLayout> groups);

// The part that a request's optional ranges name; what is unset comes from `held`. Snapped (SnapLayers) and not empty.
absl::StatusOr<PartRange> PartFromProto(const v1::Range* layers, const v1::Range* heads, const PartRange& held,
                                        const GroupLayout& group, absl::string_view path);

// The same planes by the layer numbers that the group has: [0, 1) is [0, 4) in a group of layers 0, 4, 8. So ranges
// that hold the same planes are equal, and parts that hold all planes cover the whole range.
PartRange SnapLayers(const PartRange& range, const GroupLayout& group);

// Unset: none.
absl::StatusOr<std::optional<Dtype>> DtypeFromProto(v1::Dtype dtype, absl::string_view path);

// Checks keys for size and for one given twice; `path` names the repeated field.
absl::Status CheckKeys(const google::protobuf::RepeatedPtrField<std::string>& keys, absl::string_view path);

v1::Range ToRange(uint32_t begin, uint32_t end);
SpecFingerprint ToFingerprint(absl::string_view bytes16);

}  // namespace nqkv
