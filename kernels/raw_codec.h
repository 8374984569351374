// The codec raw: elements as they came, head-major. FORMAT.md gives every byte.
//
// Called by codec.cc; users call EncodePlane and DecodePlane. All functions are thread-safe and allocate nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/codec.h"
#include "kernels/float_format.h"

namespace nqkv {

// The row of token `t` and the plane's head `h`.
inline const std::byte* SourceRow(const EncodeArgs& args, size_t t, size_t h) {
  return args.source + static_cast<ptrdiff_t>(t) * args.token_stride + static_cast<ptrdiff_t>(h) * args.head_stride;
}
inline std::byte* TargetRow(const DecodeArgs& args, size_t t, size_t h) {
  return args.target + static_cast<ptrdiff_t>(t) * args.token_stride +
         static_cast<ptrdiff_t>(h - args.head_begin) * args.head_stride;
}

inline float LoadElement(const std::byte* row, size_t index, Dtype dtype) {
  if (dtype == Dtype::kFloat32) {
    float value;
    std::memcpy(&value, row + index * sizeof(value), sizeof(value));
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, row + index * sizeof(bits), sizeof(bits));
  return dtype == Dtype::kFloat16 ? Float16ToFloat(bits) : Bfloat16ToFloat(bits);
}

inline void StoreElement(std::byte* row, size_t index, Dtype dtype, float value) {
  if (dtype == Dtype::kFloat32) {
    std::memcpy(row + index * sizeof(value), &value, sizeof(value));
    return;
  }
  const uint16_t bits = dtype == Dtype::kFloat16 ? FloatToFloat16(value) : FloatToBfloat16(value);
  std::memcpy(row + index * sizeof(bits), &bits, sizeof(bits));
}

// Precondition of all: args.codec.id is kRaw, and the arguments are as codec.h says.
EncodeResult RawEncodeReference(const EncodeArgs& args);
void RawDecodeReference(const DecodeArgs& args);

// Need AVX2 and F16C.
EncodeResult RawEncodeAvx2(const EncodeArgs& args);
void RawDecodeAvx2(const DecodeArgs& args);

}  // namespace nqkv
