// Which planes a request's range holds, and how large they are; from the spec alone.
#pragma once

#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "client/nqkv.h"

namespace nqkv::client {

// One plane of a range, contiguous: [tokens][heads][channels].
struct PlanePiece {
  PlaneSpec spec;  // Of the whole model.
  uint32_t tokens = 0;
  uint32_t heads = 0;  // Within the range.

  uint64_t token_bytes() const { return uint64_t{heads} * spec.channels * DtypeBytes(spec.dtype); }
  uint64_t bytes() const { return tokens * token_bytes(); }
};

// The planes of `layer_group` in the range, by layer and then by role. What is unset is what the shard holds, as the
// server said when the cache was opened.
//
// Errors:
//   INVALID_ARGUMENT  an unknown layer group, or a range that is empty or lies outside the group.
absl::StatusOr<std::vector<PlanePiece>> PlanesOf(const CacheSpec& spec, const CacheInfo& info, uint32_t layer_group,
                                                 const std::optional<Range>& layers, const std::optional<Range>& heads);

}  // namespace nqkv::client
