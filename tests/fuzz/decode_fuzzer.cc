// Any bytes as an encoded plane: every path decodes them to the same bits and touches nothing else.
//
// Input: tokens, heads, channels / 8, dtype, codec (a byte each), then the encoded plane, cut or filled up with zeros.
#include <algorithm>
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

std::vector<std::byte> Run(void (*decode)(const DecodeArgs&), DecodeArgs args) {
  std::vector<std::byte> target(args.shape.elements() * DtypeBytes(args.dtype));
  args.target = target.data();
  args.head_end = args.shape.heads;
  args.head_stride = static_cast<ptrdiff_t>(args.shape.channels * DtypeBytes(args.dtype));
  args.token_stride = args.head_stride * static_cast<ptrdiff_t>(args.shape.heads);
  decode(args);
  return target;
}

}  // namespace
}  // namespace nqkv

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace nqkv;
  if (size < 6) return -1;
  const PlaneShape shape = {.tokens = 1u + data[0] % 20,
                            .heads = 1u + data[1] % 4,
                            .channels = 8u * (1 + data[2] % 40),
                            .dtype = kDtypes[data[3] % kDtypes.size()]};
  const PlaneCodec codec = kPlaneCodecs[data[4] % kPlaneCodecs.size()];
  if (!ValidatePlaneCodec(codec, shape.channels).ok()) return -1;
  std::vector<std::byte> encoded(EncodedBytes(codec, shape));
  std::memcpy(encoded.data(), data + 5, std::min(size - 5, encoded.size()));
  // What a reader of blocks would refuse is decoded all the same.
  (void)CheckEncodedPlane(codec, shape, encoded);
  for (Dtype dtype : kDtypes) {
    const DecodeArgs args{.encoded = encoded, .shape = shape, .codec = codec, .dtype = dtype};
    if (Run(&DecodePlane, args) != Run(&DecodePlaneReference, args)) std::abort();
  }
  return 0;
}
