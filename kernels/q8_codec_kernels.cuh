// q8 on a GPU; FORMAT.md gives every byte and the order of every sum. Device code only; the launchers are in
// q8_codec.cu.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/device_code.cuh"
#include "kernels/head_encoder.cuh"
#include "kernels/q8_codec.h"

namespace nqkv::device {

// ---- Encode: a block of threads takes one head of one plane. In the channel form it reads the head twice, the second
// time out of a cache, since a channel's scale depends on all tokens.

struct Q8EncodeLaunch {
  const DeviceEncodeJob* jobs;
  PagedRows rows;
  HeadTile head;
  // In shared memory, the scales' bits: [channels], in the token form [step_rows][groups].
  uint32_t scales;
  uint32_t tokens;
  uint32_t groups;  // Of a row; token form.
  uint32_t head_bytes;
};

struct Q8Scale {
  uint32_t bits;
  float inverse;
  float step;

  // `largest`: the bits of the group's largest magnitude.
  static __device__ __forceinline__ Q8Scale Of(uint32_t largest) {
    return FromBits(ToFloat16(__uint_as_float(largest)));
  }
  static __device__ __forceinline__ Q8Scale FromBits(uint32_t bits) {
    const float scale = FromFloat16(bits);
    return {bits, bits == 0 ? 0.0f : __fdiv_rn(127.0f, scale), __fmul_rn(scale, kOneOver127)};
  }
};

// One element: its place; its share of the row's sums.
__device__ __forceinline__ uint32_t Q8EncodeElement(float x, const Q8Scale& scale, float* signal, float* error,
                                                    float* decoded) {
  int place = __float2int_rn(__fmul_rn(x, scale.inverse));
  place = place < -127 ? -127 : place > 127 ? 127 : place;
  AddElement(x, __fmul_rn(static_cast<float>(place), scale.step), signal, error, decoded);
  return static_cast<uint32_t>(place) & 0xffu;
}

__device__ __forceinline__ void Q8EncodePair(const HeadTile& at, uint32_t row, uint32_t channel, bool active, Pair x,
                                             const Q8Scale& first, const Q8Scale& second, RowSums* sums) {
  const SharedArray<uint8_t> places(at.codes, at.step_rows * at.codes_stride);
  const uint32_t low = Q8EncodeElement(x.first, first, &sums->signal.first, &sums->error.first, &sums->decoded.first);
  const uint32_t high =
      Q8EncodeElement(x.second, second, &sums->signal.second, &sums->error.second, &sums->decoded.second);
  if (active) places.StoreAs<uint16_t>(row * at.codes_stride + channel, static_cast<uint16_t>(low | high << 8));
}

// As nqkv4's EncodeRow: a thread's elements are channels 16 i + 2 `part` and the one behind.
template <Dtype kDtype>
__device__ __forceinline__ RowSums Q8EncodeRowByChannel(const Q8EncodeLaunch& launch, uint32_t row, uint32_t part,
                                                        bool active) {
  using Bits = typename ElementBits<kDtype>::Type;
  const HeadTile& at = launch.head;
  const SharedArray<std::byte> tile(at.tile, at.step_rows * at.tile_stride);
  const SharedArray<uint16_t> scales(launch.scales, at.channels);
  RowSums sums;
  for (uint32_t channel = 2 * part; channel < at.channels; channel += 16) {
    Pair x;
    if (active) x = LoadPair<kDtype>(tile, row * at.tile_stride + channel * static_cast<uint32_t>(sizeof(Bits)));
    Q8EncodePair(at, row, channel, active, x, Q8Scale::FromBits(scales[channel]),
                 Q8Scale::FromBits(scales[channel + 1]), &sums);
  }
  return sums;
}

template <Dtype kDtype>
__device__ __forceinline__ RowSums Q8EncodeRowByToken(const Q8EncodeLaunch& launch, uint32_t row, uint32_t part,
                                                      bool active, uint32_t* flags) {
  using Bits = typename ElementBits<kDtype>::Type;
  constexpr uint32_t kPairs = kQ8TokenGroup / 16;
  const HeadTile& at = launch.head;
  const SharedArray<std::byte> tile(at.tile, at.step_rows * at.tile_stride);
  const SharedArray<uint16_t> scales(launch.scales, at.step_rows * launch.groups);
  RowSums sums;
  for (uint32_t group = 0; group < launch.groups; ++group) {
    const uint32_t first = group * kQ8TokenGroup + 2 * part;
    Pair x[kPairs];
    uint32_t largest = 0;
    NQKV_UNROLL
    for (uint32_t i = 0; i < kPairs; ++i) {
      const uint32_t channel = first + 16 * i;
      if (active && channel < at.channels) {
        x[i] = LoadPair<kDtype>(tile, row * at.tile_stride + channel * static_cast<uint32_t>(sizeof(Bits)));
      }
      largest = Larger(largest, __float_as_uint(x[i].first) & 0x7fffffffu);
      largest = Larger(largest, __float_as_uint(x[i].second) & 0x7fffffffu);
      *flags |= FlagsOf(x[i].first) | FlagsOf(x[i].second);
    }
    const Q8Scale scale = Q8Scale::Of(LargestOfRow(largest));
    if (active && part == 0) scales[row * launch.groups + group] = static_cast<uint16_t>(scale.bits);
    NQKV_UNROLL
    for (uint32_t i = 0; i < kPairs; ++i) {
      const uint32_t channel = first + 16 * i;
      Q8EncodePair(at, row, channel, active && channel < at.channels, x[i], scale, scale, &sums);
    }
  }
  return sums;
}

// The channels' scales so far, over the step's rows too. Rounding keeps order, so that the largest rounded magnitude is
// the largest one rounded.
template <Dtype kDtype>
__device__ __forceinline__ void AddChannelScales(const HeadTile& at, const SharedArray<uint16_t>& scales, uint32_t rows,
                                                 uint32_t* flags) {
  using Bits = typename ElementBits<kDtype>::Type;
  const SharedArray<std::byte> tile(at.tile, at.step_rows * at.tile_stride);
  for (uint32_t channel = threadIdx.x; channel < at.channels; channel += kEncodeThreads) {
    uint32_t largest = 0;
    for (uint32_t row = 0; row < rows; ++row) {
      const uint32_t offset = row * at.tile_stride + channel * static_cast<uint32_t>(sizeof(Bits));
      const float x = FromBits<kDtype>(tile.LoadAs<Bits>(offset));
      largest = Larger(largest, __float_as_uint(x) & 0x7fffffffu);
      *flags |= FlagsOf(x);
    }
    scales[channel] = static_cast<uint16_t>(Larger(scales[channel], ToFloat16(__uint_as_float(largest))));
  }
}

// A row's places from shared memory, in the widest pieces that its place allows.
__device__ __forceinline__ void Q8StorePlaces(const HeadTile& at, std::byte* target, uint32_t row, uint32_t part) {
  const SharedArray<uint8_t> places(at.codes, at.step_rows * at.codes_stride);
  const uint32_t begin = row * at.codes_stride;
  if (at.channels % 16 == 0 && IsAligned(target, 16)) {
    for (uint32_t i = 16 * part; i < at.channels; i += 16 * kRowThreads) {
      Store(target + i, places.LoadAs<uint4>(begin + i));
    }
  } else {
    for (uint32_t i = 2 * part; i < at.channels; i += 2 * kRowThreads) {
      Store(target + i, places.LoadAs<uint16_t>(begin + i));
    }
  }
}

// Grid: x heads, y jobs.
template <Dtype kDtype, bool kByChannel>
__global__ void __launch_bounds__(kEncodeThreads) Q8EncodeKernel(const Q8EncodeLaunch launch) {
  const HeadTile& at = launch.head;
  const uint32_t head = blockIdx.x, thread = threadIdx.x;
  const uint32_t row = thread / kRowThreads, part = thread % kRowThreads;
  const DeviceEncodeJob job = launch.jobs[blockIdx.y];
  std::byte* const places = job.encoded + static_cast<size_t>(head) * launch.head_bytes;
  std::byte* const target_scales = places + static_cast<size_t>(launch.tokens) * at.channels;
  const SharedArray<float> energies(at.energies, at.channels);
  const SharedArray<uint16_t> scales(launch.scales, kByChannel ? at.channels : at.step_rows * launch.groups);
  const StepSums step(at);
  uint32_t flags = 0;
  for (uint32_t i = thread; i < at.channels; i += kEncodeThreads) energies[i] = 0;
  if constexpr (kByChannel) {
    for (uint32_t i = thread; i < at.channels; i += kEncodeThreads) scales[i] = 0;
    for (uint32_t token = 0; token < launch.tokens; token += at.step_rows) {
      const uint32_t rows = Smaller(at.step_rows, launch.tokens - token);
      if (row < rows) LoadRow<kDtype>(at, job.source + launch.rows.Offset(token + row, head, job.pages), row, part);
      __syncthreads();
      AddChannelScales<kDtype>(at, scales, rows, &flags);
      __syncthreads();
    }
    for (uint32_t i = thread; i < at.channels; i += kEncodeThreads) Store(target_scales + 2 * i, scales[i]);
  }
  __syncthreads();

  HeadLane head_lane;
  for (uint32_t token = 0; token < launch.tokens; token += at.step_rows) {
    const uint32_t rows = Smaller(at.step_rows, launch.tokens - token);
    const bool active = row < rows;
    if (active) LoadRow<kDtype>(at, job.source + launch.rows.Offset(token + row, head, job.pages), row, part);
    __syncwarp();
    RowSums row_sums;
    if constexpr (kByChannel) {
      row_sums = Q8EncodeRowByChannel<kDtype>(launch, row, part, active);
    } else {
      row_sums = Q8EncodeRowByToken<kDtype>(launch, row, part, active, &flags);
    }
    const float signal = SumRowOfThreads(row_sums.signal), error = SumRowOfThreads(row_sums.error);
    const float decoded = SumRowOfThreads(row_sums.decoded);
    if (active && part == 0) step.Set(row, signal, error, decoded);
    __syncthreads();

    if (active) Q8StorePlaces(at, places + static_cast<size_t>(token + row) * at.channels, row, part);
    if constexpr (!kByChannel) {
      for (uint32_t i = thread; i < rows * launch.groups; i += kEncodeThreads) {
        Store(target_scales + 2 * (static_cast<size_t>(token) * launch.groups + i), scales[i]);
      }
    }
    AddChannelEnergies<kDtype>(at, step, rows);
    if (thread < 8) head_lane.Add(step, token, rows, thread);
    __syncthreads();  // The next step writes over what this one has read.
  }
  FinishHead(at, head_lane, flags, job.sums + head);
}

// ---- Decode: a thread takes 8 elements of a row.

struct Q8DecodeLaunch {
  const DeviceDecodeJob* jobs;
  PagedRows rows;
  Divisor row_pieces;  // Pieces of 8 elements.
  Divisor tokens;
  uint32_t pieces;  // Of the heads asked for, together.
  uint32_t groups;
  uint32_t head_bytes;
  uint32_t head_begin;
};

// Infinity and NaN, which no encoder writes, count as 0.
__device__ __forceinline__ float Q8StepOf(uint32_t scale_bits) {
  return (scale_bits & 0x7c00u) == 0x7c00u ? 0.0f : __fmul_rn(FromFloat16(scale_bits), kOneOver127);
}

// Eight bytes, whatever their alignment.
__device__ __forceinline__ uint2 LoadEightBytes(const std::byte* source) {
  if (IsAligned(source, 8)) return Load<uint2>(source);
  uint32_t halves[4];
  NQKV_UNROLL
  for (uint32_t i = 0; i < 4; ++i) halves[i] = Load<uint16_t>(source + 2 * i);
  return make_uint2(halves[0] | halves[1] << 16, halves[2] | halves[3] << 16);
}

// Grid: x pieces, y jobs.
template <Dtype kDtype, bool kByChannel>
__global__ void __launch_bounds__(kDecodeThreads) Q8DecodeKernel(const Q8DecodeLaunch launch) {
  const uint32_t index = blockIdx.x * kDecodeThreads + threadIdx.x;
  if (index >= launch.pieces) return;
  const DeviceDecodeJob job = launch.jobs[blockIdx.y];
  const uint32_t row = launch.row_pieces.Quotient(index), piece = index - row * launch.row_pieces.value();
  const uint32_t head = launch.tokens.Quotient(row), token = row - head * launch.tokens.value();
  const uint32_t channels = 8 * launch.row_pieces.value(), first = 8 * piece;
  const std::byte* const encoded = job.encoded + static_cast<size_t>(launch.head_begin + head) * launch.head_bytes;
  const std::byte* const scales = encoded + static_cast<size_t>(launch.tokens.value()) * channels;
  const uint2 places = LoadEightBytes(encoded + static_cast<size_t>(token) * channels + first);
  uint32_t scale_bits[8];
  if constexpr (kByChannel) {
    const uint2 low = LoadEightBytes(scales + 2 * first), high = LoadEightBytes(scales + 2 * first + 8);
    scale_bits[0] = low.x & 0xffffu, scale_bits[1] = low.x >> 16;
    scale_bits[2] = low.y & 0xffffu, scale_bits[3] = low.y >> 16;
    scale_bits[4] = high.x & 0xffffu, scale_bits[5] = high.x >> 16;
    scale_bits[6] = high.y & 0xffffu, scale_bits[7] = high.y >> 16;
  } else {
    const size_t group = static_cast<size_t>(token) * launch.groups + first / kQ8TokenGroup;
    const uint32_t bits = Load<uint16_t>(scales + 2 * group);
    NQKV_UNROLL
    for (uint32_t i = 0; i < 8; ++i) scale_bits[i] = bits;
  }
  uint32_t bits[8];
  NQKV_UNROLL
  for (uint32_t i = 0; i < 8; ++i) {
    const uint32_t byte = (i < 4 ? places.x : places.y) >> (8 * (i % 4)) & 0xffu;
    const int place = static_cast<int>(byte) - (byte >= 128 ? 256 : 0);
    bits[i] = ToBits<kDtype>(__fmul_rn(static_cast<float>(place), Q8StepOf(scale_bits[i])));
  }
  std::byte* const target = job.target + launch.rows.Offset(token, head, job.pages);
  StoreEight<kDtype>(target + static_cast<size_t>(first) * sizeof(typename ElementBits<kDtype>::Type), bits);
}

}  // namespace nqkv::device
