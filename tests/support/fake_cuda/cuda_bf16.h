// Stands in for CUDA's header of this name; see cuda_runtime.h beside it.
#pragma once

#include "kernels/float_format.h"
#include "tests/support/fake_cuda/cuda_runtime.h"

struct __nv_bfloat16 {
  unsigned short bits;
};
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 value) { return value.bits; }
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  return {std::isnan(value) ? static_cast<unsigned short>(0x7fff) : nqkv::FloatToBfloat16(value)};
}
