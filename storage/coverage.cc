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

// The layers at which a range begins or ends, sorted: between two neighbours the set of ranges does not change.
absl::InlinedVector<uint16_t, 32> LayerEdges(const Ranges& ranges) {
  absl::InlinedVector<uint16_t, 32> edges;
  for (const PartRange& range : ranges) {
    edges.push_back(range.layer_begin);
    edges.push_back(range.layer_end);
  }
  std::sort(edges.begin(), edges.end());
  edges.erase(std::unique(edges.begin(), edges.end()), edges.end());
  return edges;
}

// Whether the ranges, sorted by their first head, leave no head of `needed` out at this layer.
bool CoversHeadsAt(const Ranges& ranges, uint16_t layer, const PartRange& needed) {
  uint16_t reached = needed.head_begin;
  for (const PartRange& range : ranges) {
    if (range.head_begin > reached) break;
    if (range.layer_begin <= layer && layer < range.layer_end) reached = std::max(reached, range.head_end);
  }
  return reached >= needed.head_end;
}

// `ranges` lie within `needed`.
bool CoversTogether(Ranges ranges, const PartRange& needed) {
  uint64_t area = 0;
  for (const PartRange& range : ranges) area += Area(range);
  if (area < Area(needed)) return false;

  std::sort(ranges.begin(), ranges.end(),
            [](const PartRange& a, const PartRange& b) { return a.head_begin < b.head_begin; });
  const auto edges = LayerEdges(ranges);
  if (edges.front() != needed.layer_begin || edges.back() != needed.layer_end) return false;
  return std::all_of(edges.begin(), edges.end() - 1,
                     [&](uint16_t layer) { return CoversHeadsAt(ranges, layer, needed); });
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
  if (overlapping.size() < 2 || !CoversTogether(std::move(clipped), needed)) return {};
  return overlapping;
}

}  // namespace nqkv
