// Decodes planes out of stored parts: what a reader asks for, whatever shards wrote it.
#pragma once

#include <cstddef>
#include <span>

#include "absl/status/status.h"
#include "kernels/block_format.h"
#include "kernels/block_layout.h"

namespace nqkv {

struct PlaneRangeRequest {
  const GroupLayout* group = nullptr;
  size_t plane = 0;                  // Index into group->planes.
  PartRange needed;                  // Its heads are decoded; its layers contain the plane's.
  std::span<const BlockView> parts;  // Of one block; may overlap. Together they cover `needed`.
  Dtype dtype = Dtype::kFloat16;     // Of the target.
  // [tokens][needed.heads()][channels] without gaps: PlaneRangeBytes() bytes.
  std::byte* target = nullptr;
  bool streaming = false;  // As in DecodeArgs.
  bool checked = false;    // The caller has checked the CRCs of the parts' planes; they are not checked again.
};

size_t PlaneRangeBytes(const PlaneRangeRequest& request);

// Decodes one plane. Each stored plane that is used has its CRC checked first, unless it is `checked`. Thread-safe,
// keeps nothing.
//
// Errors (the target's content is then unspecified):
//   DATA_LOSS            a stored plane does not have its CRC; layer and role are named.
//   FAILED_PRECONDITION  a part is not of this group, or the parts do not cover the range: the caller mixed up blocks.
absl::Status DecodePlaneRange(const PlaneRangeRequest& request);

}  // namespace nqkv
