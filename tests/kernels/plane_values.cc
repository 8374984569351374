#include "tests/kernels/plane_values.h"

#include <random>

#include "kernels/raw_codec.h"

namespace nqkv {

Plane::Plane(const PlaneShape& plane_shape, size_t gap_bytes)
    : shape(plane_shape),
      head_stride(static_cast<ptrdiff_t>(plane_shape.channels * DtypeBytes(plane_shape.dtype) + gap_bytes)) {
  token_stride = head_stride * static_cast<ptrdiff_t>(shape.heads) + static_cast<ptrdiff_t>(gap_bytes);
  bytes.assign(static_cast<size_t>(token_stride) * shape.tokens, std::byte{0x5a});
}

float Plane::at(size_t token, size_t head, size_t channel) const {
  return LoadElement(row(token, head), channel, shape.dtype);
}

void Plane::set(size_t token, size_t head, size_t channel, float value) {
  StoreElement(row(token, head), channel, shape.dtype, value);
}

Plane FilledPlane(const PlaneShape& shape, const std::function<float(size_t, size_t, size_t)>& value,
                  size_t gap_bytes) {
  Plane plane(shape, gap_bytes);
  for (size_t t = 0; t < shape.tokens; ++t) {
    for (size_t h = 0; h < shape.heads; ++h) {
      for (size_t c = 0; c < shape.channels; ++c) plane.set(t, h, c, value(t, h, c));
    }
  }
  return plane;
}

Plane NormalPlane(const PlaneShape& shape, uint32_t seed, float deviation, size_t gap_bytes) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, deviation);
  return FilledPlane(
      shape, [&](size_t, size_t, size_t) { return normal(random); }, gap_bytes);
}

namespace {

Encoded EncodeWith(const std::function<EncodeResult(const EncodeArgs&)>& encode, const Plane& plane,
                   const PlaneCodec& codec) {
  Encoded encoded;
  encoded.bytes.resize(EncodedBytes(codec, plane.shape));
  encoded.result = encode({.source = plane.bytes.data(),
                           .token_stride = plane.token_stride,
                           .head_stride = plane.head_stride,
                           .shape = plane.shape,
                           .codec = codec,
                           .encoded = encoded.bytes});
  return encoded;
}

}  // namespace

Encoded Encode(const Plane& plane, const PlaneCodec& codec) { return EncodeWith(&EncodePlane, plane, codec); }

Encoded EncodeReference(const Plane& plane, const PlaneCodec& codec) {
  return EncodeWith(&EncodePlaneReference, plane, codec);
}

Encoded EncodeOn(CodecPath path, const Plane& plane, const PlaneCodec& codec) {
  return EncodeWith([path](const EncodeArgs& args) { return EncodePlaneOn(path, args); }, plane, codec);
}

std::vector<PlaneCodec> CodecsFor(const PlaneShape& shape) {
  std::vector<PlaneCodec> codecs;
  for (const PlaneCodec& codec : kPlaneCodecs) {
    if (ValidatePlaneCodec(codec, shape.channels).ok()) codecs.push_back(codec);
  }
  return codecs;
}

Plane Decode(const std::vector<std::byte>& encoded, const PlaneShape& shape, const PlaneCodec& codec, Dtype dtype) {
  PlaneShape target_shape = shape;
  target_shape.dtype = dtype;
  Plane plane(target_shape);
  DecodePlane({.encoded = encoded,
               .shape = shape,
               .codec = codec,
               .head_begin = 0,
               .head_end = shape.heads,
               .dtype = dtype,
               .target = plane.bytes.data(),
               .token_stride = plane.token_stride,
               .head_stride = plane.head_stride});
  return plane;
}

}  // namespace nqkv
