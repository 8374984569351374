// Planes for tests: made of a seed, so that a failure can be repeated.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "kernels/codec.h"
#include "kernels/codec_path.h"

namespace nqkv {

// Memory for one plane with the strides of [tokens][heads][channels] plus gaps that codecs must leave alone.
struct Plane {
  PlaneShape shape;
  ptrdiff_t token_stride = 0;
  ptrdiff_t head_stride = 0;
  std::vector<std::byte> bytes;

  Plane(const PlaneShape& plane_shape, size_t gap_bytes = 0);

  std::byte* row(size_t token, size_t head) {
    return bytes.data() + static_cast<ptrdiff_t>(token) * token_stride + static_cast<ptrdiff_t>(head) * head_stride;
  }
  const std::byte* row(size_t token, size_t head) const { return const_cast<Plane*>(this)->row(token, head); }
  float at(size_t token, size_t head, size_t channel) const;
  void set(size_t token, size_t head, size_t channel, float value);
};

// Calls `value(token, head, channel)` for every element.
Plane FilledPlane(const PlaneShape& shape, const std::function<float(size_t, size_t, size_t)>& value,
                  size_t gap_bytes = 0);
// Normal distribution.
Plane NormalPlane(const PlaneShape& shape, uint32_t seed, float deviation = 0.8f, size_t gap_bytes = 0);

struct Encoded {
  std::vector<std::byte> bytes;
  EncodeResult result;
};
Encoded Encode(const Plane& plane, const PlaneCodec& codec);
Encoded EncodeReference(const Plane& plane, const PlaneCodec& codec);
Encoded EncodeOn(CodecPath path, const Plane& plane, const PlaneCodec& codec);

// Those of kPlaneCodecs that planes of this shape can have.
std::vector<PlaneCodec> CodecsFor(const PlaneShape& shape);

// Decodes all heads.
Plane Decode(const std::vector<std::byte>& encoded, const PlaneShape& shape, const PlaneCodec& codec, Dtype dtype);

inline constexpr PlaneCodec kRawCodec = {.id = CodecId::kRaw};
constexpr PlaneCodec Nqkv4(uint16_t scale_group) { return {.id = CodecId::kNqkv4, .scale_group = scale_group}; }
constexpr PlaneCodec Nqkv4h(uint16_t scale_group, uint8_t strong_channels = 0) {
  return {.id = CodecId::kNqkv4h, .scale_group = scale_group, .strong_channels = strong_channels};
}
inline constexpr PlaneCodec kQ8Channel = {.id = CodecId::kQ8, .scale_group = 0};
inline constexpr PlaneCodec kQ8Token = {.id = CodecId::kQ8, .scale_group = 128};
inline constexpr PlaneCodec kRowCodec = {.id = CodecId::kNqkv4, .scale_group = 256, .layout = PlaneLayout::kRow};

}  // namespace nqkv
