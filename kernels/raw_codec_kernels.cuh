// raw on a GPU: rows gathered head by head, and scattered back in any dtype. Device code only; the launchers are in
// raw_codec.cu.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/device_code.cuh"

namespace nqkv::device {

inline constexpr uint32_t kRawThreads = 128;

struct RawEncodeLaunch {
  const DeviceEncodeJob* jobs;
  PagedRows rows;
  Divisor row_pieces;  // Pieces of 16 bytes.
  uint32_t pieces;     // Of a head.
  uint32_t tokens;
};

template <Dtype kDtype>
__device__ __forceinline__ bool IsFinite(uint32_t bits) {
  constexpr uint32_t kExponent = kDtype == Dtype::kFloat16 ? 0x7c00 : kDtype == Dtype::kBfloat16 ? 0x7f80 : 0x7f800000;
  return (bits & kExponent) != kExponent;
}

template <Dtype kDtype>
__device__ __forceinline__ bool IsFiniteWord(uint32_t word) {
  if constexpr (kDtype == Dtype::kFloat32) return IsFinite<kDtype>(word);
  return IsFinite<kDtype>(word) && IsFinite<kDtype>(word >> 16);
}

// 16 bytes of a row, whatever its alignment.
template <Dtype kDtype>
__device__ __forceinline__ uint4 LoadPiece(const std::byte* source) {
  using Bits = typename ElementBits<kDtype>::Type;
  if (IsAligned(source, 16)) return Load<uint4>(source);
  uint32_t words[4];
  NQKV_UNROLL
  for (uint32_t i = 0; i < 4; ++i) {
    words[i] = Load<Bits>(source + 4 * i);
    if constexpr (kDtype != Dtype::kFloat32) words[i] |= static_cast<uint32_t>(Load<Bits>(source + 4 * i + 2)) << 16;
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

// Grid: x heads, y jobs. One block copies a head, so that it can say by itself whether all was finite.
template <Dtype kDtype>
__global__ void __launch_bounds__(kRawThreads) RawEncodeKernel(const RawEncodeLaunch launch) {
  const SharedArray<uint32_t> warps(0, kRawThreads / 32);
  const DeviceEncodeJob job = launch.jobs[blockIdx.y];
  const uint32_t head = blockIdx.x, thread = threadIdx.x;
  std::byte* const target = job.encoded + static_cast<size_t>(head) * launch.pieces * 16;
  bool finite = true;
  for (uint32_t i = thread; i < launch.pieces; i += kRawThreads) {
    const uint32_t token = launch.row_pieces.Quotient(i), piece = i - token * launch.row_pieces.value();
    const std::byte* const row = job.source + launch.rows.Offset(token, head, job.pages);
    const uint4 bytes = LoadPiece<kDtype>(row + static_cast<size_t>(piece) * 16);
    finite = finite && IsFiniteWord<kDtype>(bytes.x) && IsFiniteWord<kDtype>(bytes.y) &&
             IsFiniteWord<kDtype>(bytes.z) && IsFiniteWord<kDtype>(bytes.w);
    Store(target + static_cast<size_t>(i) * 16, bytes);
  }
  const uint32_t votes = __ballot_sync(kWholeWarp, !finite);
  if (thread % 32 == 0) warps[thread / 32] = votes;
  __syncthreads();
  if (thread != 0) return;
  uint32_t any = 0;
  for (uint32_t warp = 0; warp < kRawThreads / 32; ++warp) any |= warps[warp];
  DeviceHeadSums sums;
  sums.non_finite = any != 0;
  job.sums[head] = sums;
}

struct RawDecodeLaunch {
  const DeviceDecodeJob* jobs;
  PagedRows rows;
  Divisor row_pieces;  // Pieces of 8 elements.
  Divisor tokens;
  uint32_t pieces;  // Of the heads asked for, together.
  uint32_t head_begin;
};

// The bits of a NaN as a CPU converts it, payload and all, where a GPU knows one NaN only.
template <Dtype kFrom, Dtype kTo>
__device__ __forceinline__ uint32_t ConvertNan(uint32_t bits) {
  uint32_t wide = bits;
  if constexpr (kFrom == Dtype::kFloat16) {
    wide = (bits & 0x8000u) << 16 | 0x7fc00000u | (bits & 0x3ffu) << 13;
  } else if constexpr (kFrom == Dtype::kBfloat16) {
    wide = bits << 16;
  }
  if constexpr (kTo == Dtype::kFloat32) return wide;
  if constexpr (kTo == Dtype::kBfloat16) return wide >> 16 | 0x40u;
  return (wide >> 16 & 0x8000u) | 0x7e00u | (wide >> 13 & 0x3ffu);
}

template <Dtype kFrom, Dtype kTo>
__device__ __forceinline__ uint32_t Convert(uint32_t bits) {
  if constexpr (kFrom == kTo) return bits;
  const float value = FromBits<kFrom>(bits);
  if (value != value) return ConvertNan<kFrom, kTo>(bits);
  return ToBits<kTo>(value);
}

// Grid: x pieces, y jobs.
template <Dtype kFrom, Dtype kTo>
__global__ void __launch_bounds__(kRawThreads) RawDecodeKernel(const RawDecodeLaunch launch) {
  using FromType = typename ElementBits<kFrom>::Type;
  const uint32_t index = blockIdx.x * kRawThreads + threadIdx.x;
  if (index >= launch.pieces) return;
  const DeviceDecodeJob job = launch.jobs[blockIdx.y];
  const uint32_t row = launch.row_pieces.Quotient(index), piece = index - row * launch.row_pieces.value();
  const uint32_t head = launch.tokens.Quotient(row), token = row - head * launch.tokens.value();
  const size_t first =
      (static_cast<size_t>(launch.head_begin) * launch.tokens.value() + row) * launch.row_pieces.value();
  uint32_t bits[8];
  LoadEightElements<kFrom>(job.encoded + (first + piece) * 8 * sizeof(FromType), bits);
  NQKV_UNROLL
  for (uint32_t i = 0; i < 8; ++i) bits[i] = Convert<kFrom, kTo>(bits[i]);
  std::byte* const target = job.target + launch.rows.Offset(token, head, job.pages);
  StoreEight<kTo>(target + static_cast<size_t>(piece) * 8 * sizeof(typename ElementBits<kTo>::Type), bits);
}

}  // namespace nqkv::device
