#include "storage/coverage.h"

#include <algorithm>

namespace nqkv {
namespace {

using Ranges = absl::InlinedVector<PartRange, 16>;

uint64_t Area(const PartRange& range) {
  return uint64_t{range.heads()} * static_cast<uint64_t>(range.layer_end - range.layer_begin);
}

PartRange Intersect(const PartRange& a, const PartRange& b) {
  return {.layer_begin = std::max(a.layer_begin, b.layer_begin),
          .layer_end = std::min(a.layer_end, b.layer_end),
          .head_begin = std::max(a.head_begin, b.head_begin),
          .head_end = std::min(a.head_end, b.head_end)};
}

// Where a part begins or ends, in the order of layers.
struct Edge {
  uint16_t layer = 0;
  bool begins = false;
  PartRange range;
};

absl::InlinedVector<Edge, 32> EdgesOf(const Ranges& ranges) {
  absl::InlinedVector<Edge, 32> edges;
  for (const PartRange& range : ranges) {
    edges.push_back({.layer = range.layer_begin, .begins = true, .range = range});
    edges.push_back({.layer = range.layer_end, .begins = false, .range = range});
  }
  std::sort(edges.begin(), edges.end(), [](const Edge& a, const Edge& b) { return a.layer < b.layer; });
  return edges;
}

// Walks through the layers and counts for each head the parts that hold it; `ranges` lie within `needed`. Between two
// edges nothing changes. Takes time with the edges times the heads: a thousand parts take tens of microseconds, where
// comparing parts with each other took milliseconds.
bool CoversTogether(const Ranges& ranges, const PartRange& needed) {
  uint64_t area = 0;
  for (const PartRange& range : ranges) area += Area(range);
  if (area < Area(needed)) return false;

  absl::InlinedVector<uint16_t, 64> holders(needed.heads(), 0);
  size_t uncovered_heads = holders.size();
  const auto edges = EdgesOf(ranges);
  if (edges.front().layer != needed.layer_begin) return false;
  for (size_t index = 0; index < edges.size(); ++index) {
    const auto& [layer, begins, range] = edges[index];
    for (uint16_t head = range.head_begin; head < range.head_end; ++head) {
      uint16_t& count = holders[head - needed.head_begin];
      uncovered_heads -= begins && count == 0;
      count = begins ? count + 1 : count - 1;
      uncovered_heads += !begins && count == 0;
    }
    const bool layer_is_done = index + 1 == edges.size() || edges[index + 1].layer != layer;
    if (layer_is_done && layer < needed.layer_end && uncovered_heads > 0) return false;
  }
  return true;
}

}  // namespace

bool Covers(std::span<const PartRange> parts, const PartRange& needed) {
  return needed.empty() || !PartsFor(parts, needed).empty();
}

PartSet PartsFor(std::span<const PartRange> parts, const PartRange& needed) {
  if (needed.empty()) return {};
  PartSet overlapping;
  Ranges clipped;
  for (uint32_t index = 0; index < parts.size(); ++index) {
    if (parts[index].Contains(needed)) return {index};
    const PartRange common = Intersect(parts[index], needed);
    if (common.empty()) continue;
    overlapping.push_back(index);
    clipped.push_back(common);
  }
  if (overlapping.size() < 2 || !CoversTogether(clipped, needed)) return {};
  return overlapping;
}

}  // namespace nqkv
