#include "kernels/block_decoder.h"

#include <algorithm>
#include <optional>

#include "absl/strings/str_cat.h"
#include "kernels/status_macros.h"

namespace nqkv {

namespace {

// The part that holds `head` of the plane and most of the heads behind it.
const BlockView* PartFor(const PlaneRangeRequest& request, uint16_t layer, uint16_t head) {
  const BlockView* best = nullptr;
  for (const BlockView& part : request.parts) {
    const PartRange& range = part.header().range;
    if (layer < range.layer_begin || layer >= range.layer_end) continue;
    if (head < range.head_begin || head >= range.head_end) continue;
    if (best == nullptr || range.head_end > best->header().range.head_end) best = &part;
  }
  return best;
}

std::optional<PlaneEntry> EntryOf(const PlaneRangeRequest& request, const BlockView& part) {
  const GroupLayout& group = *request.group;
  const PlaneSpan span = PlanesIn(group, part.header().range);
  const size_t index = request.plane - span.first;
  if (part.header().tokens != group.block_tokens || part.plane_count() != span.last - span.first) return std::nullopt;
  const PlaneEntry entry = part.plane(index);
  const PlaneSpec& spec = group.planes[request.plane];
  if (entry.layer != spec.layer || entry.role != spec.role || entry.channels != spec.channels) return std::nullopt;
  return entry;
}

}  // namespace

size_t PlaneRangeBytes(const PlaneRangeRequest& request) {
  const PlaneSpec& spec = request.group->planes[request.plane];
  return size_t{request.group->block_tokens} * request.needed.heads() * spec.channels * DtypeBytes(request.dtype);
}

absl::Status DecodePlaneRange(const PlaneRangeRequest& request) {
  const PlaneSpec& spec = request.group->planes[request.plane];
  const size_t row_bytes = spec.channels * DtypeBytes(request.dtype);
  uint16_t head = request.needed.head_begin;
  while (head < request.needed.head_end) {
    const BlockView* part = PartFor(request, spec.layer, head);
    if (part == nullptr) {
      return absl::FailedPreconditionError(absl::StrCat("block: no part holds layer ", spec.layer, ", head ", head));
    }
    const std::optional<PlaneEntry> entry = EntryOf(request, *part);
    if (!entry.has_value()) {
      return absl::FailedPreconditionError(absl::StrCat("block: a part does not have the group's layer ", spec.layer));
    }
    if (!request.checked) NQKV_RETURN_IF_ERROR(part->CheckPlane(*entry));
    const PartRange& stored = part->header().range;
    const uint16_t end = std::min(stored.head_end, request.needed.head_end);
    DecodePlane({.encoded = part->plane_bytes(*entry),
                 .shape = part->shape(*entry),
                 .codec = entry->codec,
                 .head_begin = uint32_t{head} - stored.head_begin,
                 .head_end = uint32_t{end} - stored.head_begin,
                 .dtype = request.dtype,
                 .target = request.target + (head - request.needed.head_begin) * row_bytes,
                 .token_stride = static_cast<ptrdiff_t>(request.needed.heads() * row_bytes),
                 .head_stride = static_cast<ptrdiff_t>(row_bytes),
                 .streaming = request.streaming});
    head = end;
  }
  return absl::OkStatus();
}

}  // namespace nqkv
