#include "kernels/block_layout.h"

#include <algorithm>

namespace nqkv {

PartRange WholeRange(const GroupLayout& group) {
  if (group.planes.empty()) return {};
  PartRange range{.layer_begin = group.planes.front().layer, .head_end = group.heads()};
  for (const PlaneSpec& plane : group.planes) {
    range.layer_begin = std::min(range.layer_begin, plane.layer);
    range.layer_end = std::max<uint16_t>(range.layer_end, static_cast<uint16_t>(plane.layer + 1));
  }
  return range;
}

PlaneSpan PlanesIn(const GroupLayout& group, const PartRange& range) {
  const auto by_layer = [](const PlaneSpec& plane, uint16_t layer) { return plane.layer < layer; };
  const auto begin = group.planes.begin();
  const auto first = std::lower_bound(begin, group.planes.end(), range.layer_begin, by_layer);
  const auto last = std::lower_bound(first, group.planes.end(), range.layer_end, by_layer);
  return {.first = static_cast<size_t>(first - begin), .last = static_cast<size_t>(last - begin)};
}

uint64_t RawBytes(const GroupLayout& group, const PartRange& range) {
  const PlaneSpan span = PlanesIn(group, range);
  uint64_t bytes = 0;
  for (size_t i = span.first; i < span.last; ++i) bytes += ShapeOf(group, group.planes[i], range).raw_bytes();
  return bytes;
}

}  // namespace nqkv
