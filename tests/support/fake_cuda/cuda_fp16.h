// Stands in for CUDA's header of this name; see cuda_runtime.h beside it.
#pragma once

#include "kernels/float_format.h"
#include "tests/support/fake_cuda/cuda_runtime.h"

struct __half {
  unsigned short bits;
};
inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
inline unsigned short __half_as_ushort(__half half) { return half.bits; }
inline float __half2float(__half half) { return nqkv::fake_cuda::Canonical(nqkv::Float16ToFloat(half.bits)); }
inline __half __float2half_rn(float value) {
  return {std::isnan(value) ? static_cast<unsigned short>(0x7fff) : nqkv::FloatToFloat16(value)};
}
