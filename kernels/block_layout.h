// What a block is made of: the planes of a layer group, and the part of them that one shard holds.
//
// Plain values, no ownership; safe to copy and to share between threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace nqkv {

// Numbers are part of the block format (FORMAT.md) and equal those of the wire contract.
enum class Dtype : uint8_t { kFloat16 = 1, kBfloat16 = 2, kFloat32 = 3 };
enum class PlaneRole : uint8_t { kKey = 1, kValue = 2, kLatent = 3, kRope = 4 };

constexpr size_t DtypeBytes(Dtype dtype) { return dtype == Dtype::kFloat32 ? 4 : 2; }

// One layer's K, V, latent or rotary keys, for the whole model.
struct PlaneSpec {
  uint16_t layer = 0;
  PlaneRole role = PlaneRole::kKey;
  uint16_t heads = 0;     // 1 to 1024
  uint16_t channels = 0;  // A head's width: a multiple of 8, 8 to 8192.
  Dtype dtype = Dtype::kFloat16;

  bool operator==(const PlaneSpec&) const = default;
};

// The planes that share a block size, by layer and then by role. All have the same number of heads.
struct GroupLayout {
  uint16_t id = 0;
  uint16_t block_tokens = 0;  // 1 to 1024
  std::vector<PlaneSpec> planes;

  uint16_t heads() const { return planes.empty() ? 0 : planes.front().heads; }
  bool operator==(const GroupLayout&) const = default;
};

// A rectangle of a block: layers [layer_begin, layer_end) and heads [head_begin, head_end).
struct PartRange {
  uint16_t layer_begin = 0;
  uint16_t layer_end = 0;
  uint16_t head_begin = 0;
  uint16_t head_end = 0;

  uint16_t heads() const { return head_end - head_begin; }
  bool empty() const { return layer_begin >= layer_end || head_begin >= head_end; }
  bool Contains(const PartRange& inner) const {
    return layer_begin <= inner.layer_begin && inner.layer_end <= layer_end && head_begin <= inner.head_begin &&
           inner.head_end <= head_end;
  }
  bool operator==(const PartRange&) const = default;
};

// The smallest range that holds every plane of the group.
PartRange WholeRange(const GroupLayout& group);

// Indexes into `group.planes` of the planes whose layer lies in `range`: [first, last).
struct PlaneSpan {
  size_t first = 0;
  size_t last = 0;
};
PlaneSpan PlanesIn(const GroupLayout& group, const PartRange& range);

// One plane as the codecs see it: [tokens][heads][channels].
struct PlaneShape {
  uint32_t tokens = 0;
  uint32_t heads = 0;
  uint32_t channels = 0;
  Dtype dtype = Dtype::kFloat16;

  uint64_t elements() const { return uint64_t{tokens} * heads * channels; }
  uint64_t raw_bytes() const { return elements() * DtypeBytes(dtype); }
  bool operator==(const PlaneShape&) const = default;
};

inline PlaneShape ShapeOf(const GroupLayout& group, const PlaneSpec& plane, const PartRange& range) {
  return {.tokens = group.block_tokens, .heads = range.heads(), .channels = plane.channels, .dtype = plane.dtype};
}

// Raw bytes of the part, in the planes' own dtypes.
uint64_t RawBytes(const GroupLayout& group, const PartRange& range);

}  // namespace nqkv
