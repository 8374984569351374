#include "tests/service/model_blocks.h"

#include <cmath>
#include <cstring>
#include <span>

#include "absl/strings/str_cat.h"
#include "kernels/float_format.h"

namespace nqkv {
namespace {

// A well mixed function of place and seed (splitmix64's finisher): no state, so any part can be made alone.
uint64_t Mix(uint64_t value) {
  value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9u;
  value = (value ^ value >> 27) * 0x94d049bb133111ebu;
  return value ^ value >> 31;
}

float NormalAt(uint32_t seed, size_t plane, size_t token, size_t head, size_t channel) {
  uint64_t place = Mix(seed + 1);
  for (const size_t step : {plane, token, head, channel}) place = Mix(place * 0x9e3779b97f4a7c15u + step);
  const double u1 = (static_cast<double>(place >> 40) + 1) / 16777217.0;
  const double u2 = static_cast<double>(place & 0xffffff) / 16777216.0;
  return static_cast<float>(0.8 * std::sqrt(-2 * std::log(u1)) * std::cos(6.283185307179586 * u2));
}

std::string RawPlane(const PlaneShape& shape, uint32_t head_begin, size_t plane, uint32_t seed) {
  std::string bytes(shape.elements() * 2, '\0');
  size_t offset = 0;
  for (size_t token = 0; token < shape.tokens; ++token) {
    for (size_t head = 0; head < shape.heads; ++head) {
      for (size_t channel = 0; channel < shape.channels; ++channel, offset += 2) {
        const uint16_t half = FloatToFloat16(NormalAt(seed, plane, token, head_begin + head, channel));
        std::memcpy(bytes.data() + offset, &half, sizeof(half));
      }
    }
  }
  return bytes;
}

std::string RoundTripPlane(const PlaneShape& shape, const std::string& raw, const PlaneCodec& codec, Dtype dtype) {
  std::vector<std::byte> encoded(EncodedBytes(codec, shape));
  const auto row = [&](Dtype of) { return static_cast<ptrdiff_t>(shape.channels * DtypeBytes(of)); };
  EncodePlaneReference({.source = reinterpret_cast<const std::byte*>(raw.data()),
                        .token_stride = row(shape.dtype) * shape.heads,
                        .head_stride = row(shape.dtype),
                        .shape = shape,
                        .codec = codec,
                        .encoded = encoded});
  std::string decoded(shape.elements() * DtypeBytes(dtype), '\0');
  DecodePlaneReference({.encoded = encoded,
                        .shape = shape,
                        .codec = codec,
                        .head_begin = 0,
                        .head_end = shape.heads,
                        .dtype = dtype,
                        .target = reinterpret_cast<std::byte*>(decoded.data()),
                        .token_stride = row(dtype) * shape.heads,
                        .head_stride = row(dtype)});
  return decoded;
}

}  // namespace

v1::CacheSpec ModelSpec(const ModelShape& shape) {
  v1::CacheSpec spec;
  spec.set_model("test/model");
  v1::LayerGroup* group = spec.add_layer_groups();
  group->set_kind(v1::LAYER_GROUP_KIND_FULL);
  group->set_block_tokens(shape.block_tokens);
  for (uint32_t layer = 0; layer < shape.layers; ++layer) {
    for (const v1::PlaneRole role : {v1::PLANE_ROLE_KEY, v1::PLANE_ROLE_VALUE}) {
      v1::PlaneSpec* plane = group->add_planes();
      plane->set_layer(layer);
      plane->set_role(role);
      plane->set_heads(shape.heads);
      plane->set_channels(shape.channels);
      plane->set_dtype(shape.dtype);
    }
  }
  return spec;
}

GroupLayout ModelLayout(const ModelShape& shape) {
  GroupLayout layout = {.id = 0, .block_tokens = static_cast<uint16_t>(shape.block_tokens)};
  for (uint32_t layer = 0; layer < shape.layers; ++layer) {
    for (const PlaneRole role : {PlaneRole::kKey, PlaneRole::kValue}) {
      layout.planes.push_back({.layer = static_cast<uint16_t>(layer),
                               .role = role,
                               .heads = static_cast<uint16_t>(shape.heads),
                               .channels = static_cast<uint16_t>(shape.channels),
                               .dtype = static_cast<Dtype>(shape.dtype)});
    }
  }
  return layout;
}

std::string RawPart(const GroupLayout& group, const PartRange& range, uint32_t seed) {
  std::string bytes;
  const PlaneSpan span = PlanesIn(group, range);
  for (size_t plane = span.first; plane < span.last; ++plane) {
    bytes += RawPlane(ShapeOf(group, group.planes[plane], range), range.head_begin, plane, seed);
  }
  return bytes;
}

std::string RawBlock(const GroupLayout& group, uint32_t seed) { return RawPart(group, WholeRange(group), seed); }

std::string RoundTrip(const GroupLayout& group, const PartRange& range, uint32_t seed, const PlaneCodec& codec,
                      Dtype dtype) {
  std::string bytes;
  const PlaneSpan span = PlanesIn(group, range);
  for (size_t plane = span.first; plane < span.last; ++plane) {
    const PlaneShape shape = ShapeOf(group, group.planes[plane], range);
    bytes += RoundTripPlane(shape, RawPlane(shape, range.head_begin, plane, seed), codec, dtype);
  }
  return bytes;
}

std::string KeyOf(int number) { return absl::StrCat("key ", number); }

v1::PutRequest PutMessageOf(uint64_t cache_id, uint32_t shard_id, const std::vector<PutBlock>& blocks) {
  v1::PutRequest request;
  request.set_cache_id(cache_id);
  request.set_shard_id(shard_id);
  for (const PutBlock& block : blocks) {
    v1::PutChunk* chunk = request.add_chunks();
    chunk->set_block(block.number);
    chunk->mutable_begin()->set_key(block.key);
    chunk->mutable_begin()->set_payload_bytes(block.payload.size());
    chunk->set_bytes(block.payload.size());
    request.mutable_payload()->append(block.payload);
  }
  return request;
}

}  // namespace nqkv
