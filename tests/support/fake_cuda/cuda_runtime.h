// Stands in for CUDA's header of this name, so that kernels and their launchers compile as C++ and run on the CPU.
//
// Only what NQKV uses, with the signatures and results of CUDA's documentation. Where a GPU gives a canonical NaN
// instead of the operand's, so do these functions. See fiber_grid.h for what is checked, fake_runtime.h for streams.
#pragma once

#define NQKV_FAKE_CUDA 1

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "tests/support/fake_cuda/fake_runtime.h"
#include "tests/support/fake_cuda/fiber_grid.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __constant__ static const
#define __launch_bounds__(...)
#define __grid_constant__

namespace nqkv::fake_cuda {

// Asked anew at each use, since each thread has its own.
template <dim3 (*kValue)(), unsigned dim3::*kAxis>
struct Axis {
  operator unsigned() const { return kValue().*kAxis; }  // NOLINT: reads as a number, as in CUDA.
};
template <dim3 (*kValue)()>
struct Builtin {
  Axis<kValue, &dim3::x> x;
  Axis<kValue, &dim3::y> y;
  Axis<kValue, &dim3::z> z;
};

}  // namespace nqkv::fake_cuda

inline constexpr nqkv::fake_cuda::Builtin<&nqkv::fake_cuda::ThreadIndex> threadIdx{};
inline constexpr nqkv::fake_cuda::Builtin<&nqkv::fake_cuda::BlockIndex> blockIdx{};
inline constexpr nqkv::fake_cuda::Builtin<&nqkv::fake_cuda::BlockSize> blockDim{};
inline constexpr nqkv::fake_cuda::Builtin<&nqkv::fake_cuda::GridSize> gridDim{};

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

inline void __syncthreads(int line = __builtin_LINE()) { nqkv::fake_cuda::SyncBlock(line); }

inline void __syncwarp(unsigned mask = 0xffffffffu, int line = __builtin_LINE()) {
  nqkv::fake_cuda::MeetWarp(nqkv::fake_cuda::WarpOperation::kSync, mask, 0, line);
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, int line = __builtin_LINE()) {
  static_assert(std::is_arithmetic_v<T> && sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  nqkv::fake_cuda::MeetWarp(nqkv::fake_cuda::WarpOperation::kShuffle, mask, bits, line);
  const unsigned segment = static_cast<unsigned>(width);
  const unsigned first = nqkv::fake_cuda::Lane() / segment * segment;
  bits = nqkv::fake_cuda::WarpValue(first + static_cast<unsigned>(source) % segment);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, int line = __builtin_LINE()) {
  const int source = static_cast<int>(nqkv::fake_cuda::Lane()) ^ lane_mask;
  return __shfl_sync(mask, value, source, width, line);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  nqkv::fake_cuda::MeetWarp(nqkv::fake_cuda::WarpOperation::kBallot, mask, predicate != 0, line);
  unsigned votes = 0;
  for (unsigned lane = 0; lane < nqkv::fake_cuda::kWarpLanes; ++lane) {
    if ((mask >> lane & 1) != 0) votes |= static_cast<unsigned>(nqkv::fake_cuda::WarpValue(lane)) << lane;
  }
  return votes;
}

namespace nqkv::fake_cuda {
inline float Canonical(float value) { return std::isnan(value) ? std::bit_cast<float>(0x7fffffffu) : value; }
}  // namespace nqkv::fake_cuda

inline float __fadd_rn(float a, float b) { return nqkv::fake_cuda::Canonical(a + b); }
inline float __fsub_rn(float a, float b) { return nqkv::fake_cuda::Canonical(a - b); }
inline float __fmul_rn(float a, float b) { return nqkv::fake_cuda::Canonical(a * b); }
inline float __fdiv_rn(float a, float b) { return nqkv::fake_cuda::Canonical(a / b); }
inline float __fmaf_rn(float a, float b, float c) { return nqkv::fake_cuda::Canonical(std::fma(a, b, c)); }
inline float __fsqrt_rn(float a) { return nqkv::fake_cuda::Canonical(std::sqrt(a)); }
inline unsigned __float_as_uint(float value) { return std::bit_cast<unsigned>(value); }
inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(uint64_t{a} * b >> 32); }
inline int __popc(unsigned bits) { return std::popcount(bits); }

// Rounds to nearest even; beyond int's range the nearest int, NaN gives 0.
inline int __float2int_rn(float value) {
  if (std::isnan(value)) return 0;
  if (value >= 0x1p31f) return 0x7fffffff;
  if (value <= -0x1p31f) return -0x7fffffff - 1;
  return static_cast<int>(std::nearbyint(value));
}
