// Any bytes as a plane's values: every path encodes them to the same bits.
//
// Input: tokens, heads, channels / 8, dtype, codec (a byte each), then the values, repeated as often as needed.
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "kernels/codec.h"

namespace nqkv {
namespace {

constexpr std::array kDtypes = {Dtype::kFloat16, Dtype::kBfloat16, Dtype::kFloat32};

struct Encoded {
  EncodeResult result;
  std::vector<std::byte> bytes;
};

Encoded Run(EncodeResult (*encode)(const EncodeArgs&), EncodeArgs args) {
  Encoded encoded;
  encoded.bytes.resize(EncodedBytes(args.codec, args.shape));
  args.encoded = encoded.bytes;
  encoded.result = encode(args);
  return encoded;
}

bool SameBits(const PlaneErrors& a, const PlaneErrors& b) { return std::memcmp(&a, &b, sizeof(a)) == 0; }

void Check(bool holds) {
  if (!holds) std::abort();
}

void EncodeBothWays(const EncodeArgs& args) {
  const Encoded got = Run(&EncodePlane, args), want = Run(&EncodePlaneReference, args);
  Check(got.result.finite == want.result.finite && got.result.in_scale_range == want.result.in_scale_range);
  if (args.codec.id != CodecId::kRaw && !(want.result.finite && want.result.in_scale_range)) return;
  Check(got.bytes == want.bytes && got.result.crc32c == want.result.crc32c);
  Check(SameBits(got.result.errors, want.result.errors));
  Check(got.result.errors.floor_error >= 0 && got.result.errors.token_norm_error >= 0 && got.result.errors.nmse >= 0);
}

}  // namespace
}  // namespace nqkv

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace nqkv;
  if (size < 6) return -1;
  const PlaneCodec codec = kPlaneCodecs[data[4] % kPlaneCodecs.size()];
  const PlaneShape shape = {.tokens = 1u + data[0] % 20,
                            .heads = 1u + data[1] % 4,
                            .channels = 8u * (1 + data[2] % 40),
                            .dtype = kDtypes[data[3] % kDtypes.size()]};
  if (!ValidatePlaneCodec(codec, shape.channels).ok()) return -1;
  std::vector<std::byte> source(shape.raw_bytes());
  for (size_t i = 0; i < source.size(); ++i) source[i] = static_cast<std::byte>(data[5 + i % (size - 5)]);
  const auto head_stride = static_cast<ptrdiff_t>(shape.channels * DtypeBytes(shape.dtype));
  EncodeBothWays({.source = source.data(),
                  .token_stride = head_stride * static_cast<ptrdiff_t>(shape.heads),
                  .head_stride = head_stride,
                  .shape = shape,
                  .codec = codec});
  return 0;
}
