// What the encoders share: a block of threads takes one head, a few rows at a time, and sums the errors in the order
// that FORMAT.md gives. Device code only.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/device_code.cuh"
#include "kernels/fidelity.h"
#include "kernels/head_encoder_tuning.h"

namespace nqkv::device {

// Where things are in shared memory, in bytes, and how the head is cut into steps.
struct HeadTile {
  uint32_t sums = 0;      // [4][step_rows]: signal, error, weight, norm error of the step's rows.
  uint32_t warps = 0;     // [warps]: flags.
  uint32_t energies = 0;  // [channels]
  uint32_t tile = 0;      // [step_rows][tile_stride]: the step's rows as they came.
  uint32_t codes = 0;     // [step_rows][codes_stride]: a byte an element.
  uint32_t bytes = 0;     // Of all, and of what else is taken.
  uint32_t tile_stride = 0;
  uint32_t codes_stride = 0;
  uint32_t step_rows = 0;
  uint32_t channels = 0;

  HeadTile() = default;
  HeadTile(const PlaneShape& shape, uint32_t rows)
      : tile_stride(shape.channels * static_cast<uint32_t>(DtypeBytes(shape.dtype)) + kTilePadding),
        codes_stride(shape.channels + kCodesPadding),
        step_rows(rows),
        channels(shape.channels) {
    sums = Take(4 * step_rows * 4);
    warps = Take(kEncodeThreads / 32 * 4);
    energies = Take(shape.channels * 4);
    tile = Take(step_rows * tile_stride);
    codes = Take(step_rows * codes_stride);
  }
  uint32_t Take(uint32_t taken) {
    const uint32_t begin = bytes;
    bytes += (taken + 15) / 16 * 16;
    return begin;
  }
};

inline constexpr uint32_t kNonFinite = 1;
inline constexpr uint32_t kBeyondScale = 2;
inline constexpr uint32_t kRotatedBeyondScale = 4;
inline constexpr uint32_t kScaleEndBits = 0x477ff000;  // 65520, from which on fp16 is infinite.
inline constexpr uint32_t kInfinityBits = 0x7f800000;

struct Pair {
  float first = 0;
  float second = 0;
};

template <Dtype kDtype>
__device__ __forceinline__ Pair LoadPair(const SharedArray<std::byte>& tile, uint32_t offset) {
  if constexpr (kDtype == Dtype::kFloat32) {
    const uint2 bits = tile.LoadAs<uint2>(offset);
    return {__uint_as_float(bits.x), __uint_as_float(bits.y)};
  } else {
    const uint32_t bits = tile.LoadAs<uint32_t>(offset);
    return {FromBits<kDtype>(bits & 0xffffu), FromBits<kDtype>(bits >> 16)};
  }
}

// Adds up what the eight threads of a row hold: two of its 16 sums each, in FORMAT.md's order.
__device__ __forceinline__ float SumRowOfThreads(Pair lanes) {
  lanes.first = __fadd_rn(lanes.first, __shfl_xor_sync(kWholeWarp, lanes.first, 4));
  lanes.second = __fadd_rn(lanes.second, __shfl_xor_sync(kWholeWarp, lanes.second, 4));
  lanes.first = __fadd_rn(lanes.first, __shfl_xor_sync(kWholeWarp, lanes.first, 2));
  lanes.second = __fadd_rn(lanes.second, __shfl_xor_sync(kWholeWarp, lanes.second, 2));
  lanes.first = __fadd_rn(lanes.first, __shfl_xor_sync(kWholeWarp, lanes.first, 1));
  lanes.second = __fadd_rn(lanes.second, __shfl_xor_sync(kWholeWarp, lanes.second, 1));
  return __fadd_rn(lanes.first, lanes.second);
}

// Adds up eight sums, one a thread.
__device__ __forceinline__ float SumEightThreads(float lane) {
  lane = __fadd_rn(lane, __shfl_xor_sync(kWholeWarp, lane, 4));
  lane = __fadd_rn(lane, __shfl_xor_sync(kWholeWarp, lane, 2));
  return __fadd_rn(lane, __shfl_xor_sync(kWholeWarp, lane, 1));
}

__device__ __forceinline__ uint32_t LargestOfRow(uint32_t value) {
  value = Larger(value, __shfl_xor_sync(kWholeWarp, value, 4));
  value = Larger(value, __shfl_xor_sync(kWholeWarp, value, 2));
  return Larger(value, __shfl_xor_sync(kWholeWarp, value, 1));
}

__device__ __forceinline__ uint32_t FlagsOf(float value) {
  const uint32_t bits = __float_as_uint(value) & 0x7fffffffu;
  return bits >= kInfinityBits ? kNonFinite : bits >= kScaleEndBits ? kBeyondScale : 0;
}

struct RowSums {
  Pair signal;
  Pair error;
  Pair decoded;
};

// Adds an element and what it decodes to.
__device__ __forceinline__ void AddElement(float x, float y, float* signal, float* error, float* decoded) {
  const float difference = __fsub_rn(x, y);
  *signal = __fmaf_rn(x, x, *signal);
  *error = __fmaf_rn(difference, difference, *error);
  *decoded = __fmaf_rn(y, y, *decoded);
}

// The rows' numbers for the sums over tokens.
struct StepSums {
  SharedArray<float> signal, error, weight, norm_error;

  __device__ __forceinline__ explicit StepSums(const HeadTile& at)
      : signal(at.sums, at.step_rows),
        error(at.sums + 4 * at.step_rows, at.step_rows),
        weight(at.sums + 8 * at.step_rows, at.step_rows),
        norm_error(at.sums + 12 * at.step_rows, at.step_rows) {}

  __device__ __forceinline__ void Set(uint32_t row, float row_signal, float row_error, float row_decoded) const {
    const float row_weight = row_signal >= kRowEnergyMin ? __fdiv_rn(1.0f, row_signal) : 0.0f;
    const float ratio = __fsqrt_rn(__fmul_rn(row_decoded, row_weight));
    signal[row] = row_signal;
    error[row] = row_error;
    weight[row] = row_weight;
    norm_error[row] = row_weight == 0 ? 0.0f : __uint_as_float(__float_as_uint(__fsub_rn(ratio, 1.0f)) & 0x7fffffffu);
  }
};

// One of a head's eight sums over its tokens.
struct HeadLane {
  float signal = 0;
  float error = 0;
  float weighted_error = 0;
  float norm_error = 0;
  uint32_t weighted_rows = 0;

  // Adds the rows of the step whose token's lane this is.
  __device__ __forceinline__ void Add(const StepSums& step, uint32_t first_token, uint32_t rows, uint32_t lane) {
    for (uint32_t row = (lane - first_token) & 7u; row < rows; row += 8) {
      signal = __fadd_rn(signal, step.signal[row]);
      error = __fadd_rn(error, step.error[row]);
      if (step.weight[row] == 0) continue;
      weighted_error = __fadd_rn(weighted_error, __fmul_rn(step.error[row], step.weight[row]));
      norm_error = step.norm_error[row] > norm_error ? step.norm_error[row] : norm_error;
      ++weighted_rows;
    }
  }
};

// Rows of the step from device memory to the tile. A row's eight threads read neighbouring 16 bytes.
template <Dtype kDtype>
__device__ __forceinline__ void LoadRow(const HeadTile& at, const std::byte* source, uint32_t row, uint32_t part) {
  using Bits = typename ElementBits<kDtype>::Type;
  const SharedArray<std::byte> tile(at.tile, at.step_rows * at.tile_stride);
  const uint32_t begin = row * at.tile_stride;
  const uint32_t bytes = at.channels * sizeof(Bits);
  if (IsAligned(source, 16)) {
    for (uint32_t offset = 16 * part; offset < bytes; offset += 16 * kRowThreads) {
      tile.StoreAs(begin + offset, Load<uint4>(source + offset));
    }
  } else {
    for (uint32_t offset = sizeof(Bits) * part; offset < bytes; offset += sizeof(Bits) * kRowThreads) {
      tile.StoreAs(begin + offset, Load<Bits>(source + offset));
    }
  }
}

// W[c] over the step's tokens in order.
template <Dtype kDtype>
__device__ __forceinline__ void AddChannelEnergies(const HeadTile& at, const StepSums& step, uint32_t rows) {
  using Bits = typename ElementBits<kDtype>::Type;
  const SharedArray<std::byte> tile(at.tile, at.step_rows * at.tile_stride);
  const SharedArray<float> energies(at.energies, at.channels);
  for (uint32_t channel = threadIdx.x; channel < at.channels; channel += kEncodeThreads) {
    float energy = energies[channel];
    for (uint32_t row = 0; row < rows; ++row) {
      const uint32_t offset = row * at.tile_stride + channel * static_cast<uint32_t>(sizeof(Bits));
      const float x = FromBits<kDtype>(tile.LoadAs<Bits>(offset));
      energy = __fmaf_rn(__fmul_rn(x, step.weight[row]), x, energy);
    }
    energies[channel] = energy;
  }
}

// The energies without the strongest channels. One warp calls; the result is in its first eight lanes.
__device__ __forceinline__ float FloorEnergyOfWarp(const SharedArray<float>& energies, uint32_t channels,
                                                   uint32_t lane) {
  const uint32_t strong = (channels + 15) / 16;
  // The bits of the strong-th largest, from the top: energies are not negative, so their bits order as they do.
  uint32_t border = 0, at_least_border = channels;
  for (uint32_t bit = 1u << 30; bit != 0; bit >>= 1) {
    uint32_t count = 0;
    for (uint32_t begin = 0; begin < channels; begin += 32) {
      const uint32_t channel = begin + lane;
      const bool counts = channel < channels && __float_as_uint(energies[channel]) >= (border | bit);
      count += static_cast<uint32_t>(__popc(__ballot_sync(kWholeWarp, counts)));
    }
    if (count < strong) continue;
    border |= bit;
    at_least_border = count;
  }
  float sum = 0;
  for (uint32_t channel = lane % 8; channel < channels; channel += 8) {
    const float energy = energies[channel];
    if (__float_as_uint(energy) < border) sum = __fadd_rn(sum, energy);
  }
  sum = SumEightThreads(sum);
  if (at_least_border == strong) return sum;
  return __fadd_rn(sum, __fmul_rn(static_cast<float>(at_least_border - strong), __uint_as_float(border)));
}

// The head's numbers, by the first warp.
__device__ __forceinline__ void StoreHeadSums(const HeadTile& at, const HeadLane& lane_sums, uint32_t lane,
                                              DeviceHeadSums* sums) {
  const SharedArray<float> energies(at.energies, at.channels);
  const SharedArray<uint32_t> warps(at.warps, kEncodeThreads / 32);
  const float floor_energy = FloorEnergyOfWarp(energies, at.channels, lane);
  const float signal = SumEightThreads(lane_sums.signal);
  const float error = SumEightThreads(lane_sums.error);
  const float weighted_error = SumEightThreads(lane_sums.weighted_error);
  const uint32_t norm_error = LargestOfRow(__float_as_uint(lane_sums.norm_error));
  uint32_t weighted_rows = lane_sums.weighted_rows;
  for (int lanes = 4; lanes > 0; lanes /= 2) weighted_rows += __shfl_xor_sync(kWholeWarp, weighted_rows, lanes);
  if (lane != 0) return;
  uint32_t flags = 0;
  for (uint32_t warp = 0; warp < kEncodeThreads / 32; ++warp) flags |= warps[warp];
  *sums = {signal,
           error,
           weighted_error,
           floor_energy,
           __uint_as_float(norm_error),
           weighted_rows,
           static_cast<uint32_t>((flags & kNonFinite) != 0),
           static_cast<uint32_t>((flags & kBeyondScale) != 0),
           static_cast<uint32_t>((flags & kRotatedBeyondScale) != 0)};
}

// Every block of an encoder ends so.
__device__ __forceinline__ void FinishHead(const HeadTile& at, const HeadLane& lane_sums, uint32_t flags,
                                           DeviceHeadSums* sums) {
  const uint32_t lane = threadIdx.x % 32;
  const SharedArray<uint32_t> warps(at.warps, kEncodeThreads / 32);
  uint32_t all = 0;
  NQKV_UNROLL
  for (uint32_t flag = kNonFinite; flag <= kRotatedBeyondScale; flag *= 2) {
    if (__ballot_sync(kWholeWarp, (flags & flag) != 0) != 0) all |= flag;
  }
  if (lane == 0) warps[threadIdx.x / 32] = all;
  __syncthreads();
  if (threadIdx.x < 32) StoreHeadSums(at, lane_sums, lane, sums);
}

}  // namespace nqkv::device
