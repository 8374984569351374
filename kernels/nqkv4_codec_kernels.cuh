// nqkv4 on a GPU; FORMAT.md gives every byte and the order of every sum. Device code only; the launchers are in
// nqkv4_codec.cu.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/device_code.cuh"
#include "kernels/fidelity.h"
#include "kernels/nqkv4_codec.h"
#include "kernels/nqkv4_codec_tuning.h"

namespace nqkv::device {

// What the codes and their levels are: made by the compiler, read by the kernels.
struct Nqkv4Tables {
  // By place + 128: the level as fp32, whose low bits are free and hold the code.
  uint32_t places[256] = {};
  uint32_t levels[16] = {};  // By code, as fp32.

  constexpr Nqkv4Tables() {
    for (int code = 0; code < 16; ++code) {
      const uint32_t half = kNqkv4Levels[static_cast<size_t>(code)];
      levels[code] = half == 0 ? 0 : (half & 0x8000u) << 16 | (((half & 0x7fffu) << 13) + (112u << 23));
    }
    for (int place = -128; place < 128; ++place) {
      uint32_t code = 0;
      for (int8_t threshold : kNqkv4Thresholds) code += place > threshold;
      places[place + 128] = levels[code] | code;
    }
  }
};
__constant__ Nqkv4Tables kNqkv4Tables;

// ---- Encode: a block of threads takes one head of one plane.

// Where things are in shared memory, in bytes.
struct Nqkv4EncodeShared {
  uint32_t places = 0;    // [256]
  uint32_t sums = 0;      // [4][step_rows]: signal, error, weight, norm error of the step's rows.
  uint32_t warps = 0;     // [warps]: flags.
  uint32_t energies = 0;  // [channels]
  uint32_t tile = 0;      // [step_rows][tile_stride]: the step's rows as they came.
  uint32_t codes = 0;     // [step_rows][codes_stride]: a byte each.
  uint32_t scales = 0;    // [step_rows][groups]
  uint32_t bytes = 0;
  uint32_t tile_stride = 0;
  uint32_t codes_stride = 0;

  Nqkv4EncodeShared() = default;
  Nqkv4EncodeShared(const PlaneShape& shape, uint32_t groups, uint32_t step_rows)
      : tile_stride(shape.channels * static_cast<uint32_t>(DtypeBytes(shape.dtype)) + kNqkv4TilePadding),
        codes_stride(shape.channels + kNqkv4CodesPadding) {
    const auto take = [this](uint32_t taken) {
      const uint32_t begin = bytes;
      bytes += (taken + 15) / 16 * 16;
      return begin;
    };
    places = take(256 * 4);
    sums = take(4 * step_rows * 4);
    warps = take(kNqkv4EncodeThreads / 32 * 4);
    energies = take(shape.channels * 4);
    tile = take(step_rows * tile_stride);
    codes = take(step_rows * codes_stride);
    scales = take(step_rows * groups * 2);
  }
};

struct Nqkv4EncodeLaunch {
  const DeviceEncodeJob* jobs;
  PagedRows rows;
  Nqkv4EncodeShared shared;
  uint32_t tokens;
  uint32_t channels;
  uint32_t groups;
  uint32_t step_rows;
  uint32_t strip_bytes;
};

inline constexpr uint32_t kNonFinite = 1;
inline constexpr uint32_t kBeyondScale = 2;
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

// One element: its code; its share of the row's sums.
__device__ __forceinline__ uint32_t EncodeElement(float x, float inverse, float scale,
                                                  const SharedArray<uint32_t>& places, float* signal, float* error,
                                                  float* decoded) {
  int place = __float2int_rn(__fmul_rn(x, inverse));
  place = place < -128 ? -128 : place > 127 ? 127 : place;
  const uint32_t entry = places[static_cast<uint32_t>(place + 128)];
  const float y = __fmul_rn(__uint_as_float(entry & ~15u), scale);
  const float difference = __fsub_rn(x, y);
  *signal = __fmaf_rn(x, x, *signal);
  *error = __fmaf_rn(difference, difference, *error);
  *decoded = __fmaf_rn(y, y, *decoded);
  return entry & 15u;
}

// A thread's elements of its row are channels 16 i + 2 `part` and the one behind, so that each sum's elements come in
// order. `row` is the row in the step; all lanes of the warp must call, those without a row too.
template <Dtype kDtype, uint32_t kGroup>
__device__ __forceinline__ RowSums EncodeRow(const Nqkv4EncodeLaunch& launch, uint32_t row, uint32_t part, bool active,
                                             uint32_t* flags) {
  constexpr uint32_t kPairs = kGroup / 16;
  constexpr uint32_t kBytes = kDtype == Dtype::kFloat32 ? 4 : 2;
  const Nqkv4EncodeShared& at = launch.shared;
  const SharedArray<uint32_t> places(at.places, 256);
  const SharedArray<std::byte> tile(at.tile, launch.step_rows * at.tile_stride);
  const SharedArray<uint8_t> codes(at.codes, launch.step_rows * at.codes_stride);
  const SharedArray<uint16_t> scales(at.scales, launch.step_rows * launch.groups);
  RowSums sums;
  for (uint32_t group = 0; group < launch.groups; ++group) {
    const uint32_t first = group * kGroup + 2 * part;
    Pair x[kPairs];
    uint32_t largest = 0;
    NQKV_UNROLL
    for (uint32_t i = 0; i < kPairs; ++i) {
      const uint32_t channel = first + 16 * i;
      if (active && channel < launch.channels) x[i] = LoadPair<kDtype>(tile, row * at.tile_stride + channel * kBytes);
      largest = Larger(largest, __float_as_uint(x[i].first) & 0x7fffffffu);
      largest = Larger(largest, __float_as_uint(x[i].second) & 0x7fffffffu);
    }
    largest = LargestOfRow(largest);
    if (largest >= kScaleEndBits) {
      NQKV_UNROLL
      for (uint32_t i = 0; i < kPairs; ++i) *flags |= FlagsOf(x[i].first) | FlagsOf(x[i].second);
    }
    const uint32_t scale_bits = ToFloat16(__uint_as_float(largest));
    const float scale = FromFloat16(scale_bits);
    const float inverse = scale_bits == 0 ? 0.0f : __fdiv_rn(127.0f, scale);
    if (active && part == 0) scales[row * launch.groups + group] = static_cast<uint16_t>(scale_bits);
    NQKV_UNROLL
    for (uint32_t i = 0; i < kPairs; ++i) {
      const uint32_t channel = first + 16 * i;
      const uint32_t low =
          EncodeElement(x[i].first, inverse, scale, places, &sums.signal.first, &sums.error.first, &sums.decoded.first);
      const uint32_t high = EncodeElement(x[i].second, inverse, scale, places, &sums.signal.second, &sums.error.second,
                                          &sums.decoded.second);
      if (active && channel < launch.channels) {
        codes.StoreAs<uint16_t>(row * at.codes_stride + channel, static_cast<uint16_t>(low | high << 8));
      }
    }
  }
  return sums;
}

// The rows' numbers for the sums over tokens.
struct StepSums {
  SharedArray<float> signal, error, weight, norm_error;

  __device__ __forceinline__ explicit StepSums(const Nqkv4EncodeLaunch& launch)
      : signal(launch.shared.sums, launch.step_rows),
        error(launch.shared.sums + 4 * launch.step_rows, launch.step_rows),
        weight(launch.shared.sums + 8 * launch.step_rows, launch.step_rows),
        norm_error(launch.shared.sums + 12 * launch.step_rows, launch.step_rows) {}

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
__device__ __forceinline__ void LoadRow(const Nqkv4EncodeLaunch& launch, const std::byte* source, uint32_t row,
                                        uint32_t part) {
  using Bits = typename ElementBits<kDtype>::Type;
  const SharedArray<std::byte> tile(launch.shared.tile, launch.step_rows * launch.shared.tile_stride);
  const uint32_t begin = row * launch.shared.tile_stride;
  const uint32_t bytes = launch.channels * sizeof(Bits);
  if (IsAligned(source, 16)) {
    for (uint32_t offset = 16 * part; offset < bytes; offset += 16 * kNqkv4RowThreads) {
      tile.StoreAs(begin + offset, Load<uint4>(source + offset));
    }
  } else {
    for (uint32_t offset = sizeof(Bits) * part; offset < bytes; offset += sizeof(Bits) * kNqkv4RowThreads) {
      tile.StoreAs(begin + offset, Load<Bits>(source + offset));
    }
  }
}

// Four bytes of a row's codes. Each run of 64 elements is 32 bytes: element j and, above it, element j + 32; the last
// run may be shorter.
__device__ __forceinline__ uint32_t PackedWord(const SharedArray<uint8_t>& codes, uint32_t row_begin, uint32_t word,
                                               uint32_t channels) {
  const uint32_t run = word / 8 * 64;
  const uint32_t half = Smaller(64, channels - run) / 2;
  const uint32_t low = row_begin + run + word % 8 * 4;
  return codes.LoadAs<uint32_t>(low) | codes.LoadAs<uint32_t>(low + half) << 4;
}

// A row's codes from shared memory to their place, in the widest pieces that it allows.
__device__ __forceinline__ void StoreCodes(const Nqkv4EncodeLaunch& launch, std::byte* target, uint32_t row,
                                           uint32_t part) {
  const SharedArray<uint8_t> codes(launch.shared.codes, launch.step_rows * launch.shared.codes_stride);
  const uint32_t begin = row * launch.shared.codes_stride;
  const uint32_t words = launch.channels / 8;
  if (words % 4 == 0 && IsAligned(target, 16)) {
    for (uint32_t word = 4 * part; word < words; word += 4 * kNqkv4RowThreads) {
      Store(target + 4 * word, make_uint4(PackedWord(codes, begin, word, launch.channels),
                                          PackedWord(codes, begin, word + 1, launch.channels),
                                          PackedWord(codes, begin, word + 2, launch.channels),
                                          PackedWord(codes, begin, word + 3, launch.channels)));
    }
    return;
  }
  const bool whole_words = IsAligned(target, 4);
  for (uint32_t word = part; word < words; word += kNqkv4RowThreads) {
    const uint32_t packed = PackedWord(codes, begin, word, launch.channels);
    if (whole_words) {
      Store(target + 4 * word, packed);
    } else {
      Store(target + 4 * word, static_cast<uint16_t>(packed));
      Store(target + 4 * word + 2, static_cast<uint16_t>(packed >> 16));
    }
  }
}

// W[c] over the step's tokens in order.
template <Dtype kDtype>
__device__ __forceinline__ void AddChannelEnergies(const Nqkv4EncodeLaunch& launch, const StepSums& step,
                                                   uint32_t rows) {
  using Bits = typename ElementBits<kDtype>::Type;
  const SharedArray<std::byte> tile(launch.shared.tile, launch.step_rows * launch.shared.tile_stride);
  const SharedArray<float> energies(launch.shared.energies, launch.channels);
  for (uint32_t channel = threadIdx.x; channel < launch.channels; channel += kNqkv4EncodeThreads) {
    float energy = energies[channel];
    for (uint32_t row = 0; row < rows; ++row) {
      const uint32_t offset = row * launch.shared.tile_stride + channel * static_cast<uint32_t>(sizeof(Bits));
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
__device__ __forceinline__ void StoreHeadSums(const Nqkv4EncodeLaunch& launch, const HeadLane& lane_sums, uint32_t lane,
                                              DeviceHeadSums* sums) {
  const SharedArray<float> energies(launch.shared.energies, launch.channels);
  const SharedArray<uint32_t> warps(launch.shared.warps, kNqkv4EncodeThreads / 32);
  const float floor_energy = FloorEnergyOfWarp(energies, launch.channels, lane);
  const float signal = SumEightThreads(lane_sums.signal);
  const float error = SumEightThreads(lane_sums.error);
  const float weighted_error = SumEightThreads(lane_sums.weighted_error);
  const uint32_t norm_error = LargestOfRow(__float_as_uint(lane_sums.norm_error));
  uint32_t weighted_rows = lane_sums.weighted_rows;
  for (int lanes = 4; lanes > 0; lanes /= 2) weighted_rows += __shfl_xor_sync(kWholeWarp, weighted_rows, lanes);
  if (lane != 0) return;
  uint32_t flags = 0;
  for (uint32_t warp = 0; warp < kNqkv4EncodeThreads / 32; ++warp) flags |= warps[warp];
  *sums = {signal,
           error,
           weighted_error,
           floor_energy,
           __uint_as_float(norm_error),
           weighted_rows,
           (flags & kNonFinite) != 0,
           (flags & kBeyondScale) != 0};
}

// Grid: x heads, y jobs.
template <Dtype kDtype, uint32_t kGroup>
__global__ void __launch_bounds__(kNqkv4EncodeThreads) Nqkv4EncodeKernel(const Nqkv4EncodeLaunch launch) {
  const uint32_t head = blockIdx.x, thread = threadIdx.x, lane = thread % 32;
  const uint32_t row = thread / kNqkv4RowThreads, part = thread % kNqkv4RowThreads;
  const DeviceEncodeJob job = launch.jobs[blockIdx.y];
  std::byte* const strip = job.encoded + static_cast<size_t>(head) * launch.strip_bytes;
  const uint32_t code_bytes = launch.channels / 2;
  const SharedArray<uint32_t> places(launch.shared.places, 256);
  const SharedArray<float> energies(launch.shared.energies, launch.channels);
  const SharedArray<uint16_t> scales(launch.shared.scales, launch.step_rows * launch.groups);
  const StepSums step(launch);
  for (uint32_t i = thread; i < 256; i += kNqkv4EncodeThreads) places[i] = kNqkv4Tables.places[i];
  for (uint32_t i = thread; i < launch.channels; i += kNqkv4EncodeThreads) energies[i] = 0;
  __syncthreads();

  HeadLane head_lane;
  uint32_t flags = 0;
  for (uint32_t token = 0; token < launch.tokens; token += launch.step_rows) {
    const uint32_t rows = Smaller(launch.step_rows, launch.tokens - token);
    const bool active = row < rows;
    if (active) LoadRow<kDtype>(launch, job.source + launch.rows.Offset(token + row, head, job.pages), row, part);
    __syncwarp();
    const RowSums row_sums = EncodeRow<kDtype, kGroup>(launch, row, part, active, &flags);
    const float signal = SumRowOfThreads(row_sums.signal), error = SumRowOfThreads(row_sums.error);
    const float decoded = SumRowOfThreads(row_sums.decoded);
    if (active && part == 0) step.Set(row, signal, error, decoded);
    __syncthreads();

    if (active) StoreCodes(launch, strip + static_cast<size_t>(token + row) * code_bytes, row, part);
    std::byte* const strip_scales = strip + static_cast<size_t>(launch.tokens) * code_bytes;
    for (uint32_t i = thread; i < rows * launch.groups; i += kNqkv4EncodeThreads) {
      Store(strip_scales + 2 * (static_cast<size_t>(token) * launch.groups + i), scales[i]);
    }
    AddChannelEnergies<kDtype>(launch, step, rows);
    if (thread < 8) head_lane.Add(step, token, rows, thread);
    __syncthreads();  // The next step writes over what this one has read.
  }

  const uint32_t non_finite = __ballot_sync(kWholeWarp, (flags & kNonFinite) != 0);
  const uint32_t beyond_scale = __ballot_sync(kWholeWarp, (flags & kBeyondScale) != 0);
  if (lane == 0) {
    const SharedArray<uint32_t> warps(launch.shared.warps, kNqkv4EncodeThreads / 32);
    warps[thread / 32] = (non_finite != 0 ? kNonFinite : 0) | (beyond_scale != 0 ? kBeyondScale : 0);
  }
  __syncthreads();
  if (thread < 32) StoreHeadSums(launch, head_lane, lane, job.sums + head);
}

// ---- Decode: a thread takes 16 elements of a row; 8 bytes of codes where rows and targets allow.

struct Nqkv4DecodeLaunch {
  const DeviceDecodeJob* jobs;
  PagedRows rows;
  Divisor row_pieces;  // Pieces of 16 elements, the last one perhaps of 8.
  Divisor tokens;
  uint32_t pieces;  // Of the heads asked for, together.
  uint32_t channels;
  uint32_t groups;
  uint32_t group_shift;  // log2 of the scale group.
  uint32_t strip_bytes;
  uint32_t head_begin;
  bool vectors;  // The codes are such that a piece is 8 bytes of them and two times 8 elements.
};

// The product of a level and a scale that is infinite or NaN, which no encoder writes: the bits that a CPU's
// multiplication and conversion give, where a GPU knows one NaN only.
template <Dtype kDtype>
__device__ __forceinline__ uint32_t SpecialProduct(uint32_t code, uint32_t scale_bits) {
  uint32_t bits = (scale_bits & 0x8000u) << 16 | kInfinityBits;
  if ((scale_bits & 0x3ffu) != 0) {
    bits |= 0x400000u | (scale_bits & 0x3ffu) << 13;
  } else if (code == kNqkv4ZeroCode) {
    bits = 0xffc00000u;
  } else {
    bits ^= code < kNqkv4ZeroCode ? 0x80000000u : 0;
  }
  if constexpr (kDtype == Dtype::kFloat32) return bits;
  return kDtype == Dtype::kBfloat16 ? bits >> 16 : (bits >> 16 & 0x8000u) | 0x7c00u | (bits >> 13 & 0x3ffu);
}

template <Dtype kDtype>
__device__ __forceinline__ uint32_t DecodeElement(uint32_t code, uint32_t scale_bits, float scale,
                                                  const SharedArray<float>& levels) {
  if ((scale_bits & 0x7c00u) == 0x7c00u) return SpecialProduct<kDtype>(code, scale_bits);
  return ToBits<kDtype>(__fmul_rn(levels[code], scale));
}

// Eight elements whose codes are the bits `shift` to `shift` + 3 of eight bytes.
template <Dtype kDtype>
__device__ __forceinline__ void DecodeEight(uint2 codes, uint32_t shift, uint32_t scale_bits, float scale,
                                            const SharedArray<float>& levels, std::byte* target) {
  uint32_t bits[8];
  NQKV_UNROLL
  for (uint32_t i = 0; i < 8; ++i) {
    const uint32_t word = i < 4 ? codes.x : codes.y;
    bits[i] = DecodeElement<kDtype>(word >> (8 * (i % 4) + shift) & 15u, scale_bits, scale, levels);
  }
  StoreEight<kDtype>(target, bits);
}

template <Dtype kDtype>
__device__ __forceinline__ void DecodeVectors(const Nqkv4DecodeLaunch& launch, const std::byte* codes,
                                              const std::byte* scales, uint32_t piece, const SharedArray<float>& levels,
                                              std::byte* target) {
  constexpr uint32_t kBytes = kDtype == Dtype::kFloat32 ? 4 : 2;
  const uint32_t run = piece / 4 * 64;
  const uint32_t half = Smaller(64, launch.channels - run) / 2;
  const uint32_t first = run + piece % 4 * 8;
  const uint32_t scale_bits = Load<uint16_t>(scales + 2 * (first >> launch.group_shift));
  const float scale = FromFloat16(scale_bits);
  const uint2 packed = Load<uint2>(codes + 8 * piece);
  DecodeEight<kDtype>(packed, 0, scale_bits, scale, levels, target + first * kBytes);
  DecodeEight<kDtype>(packed, 4, scale_bits, scale, levels, target + (first + half) * kBytes);
}

// Any width, any alignment: element by element.
template <Dtype kDtype>
__device__ __forceinline__ void DecodeElements(const Nqkv4DecodeLaunch& launch, const std::byte* codes,
                                               const std::byte* scales, uint32_t piece,
                                               const SharedArray<float>& levels, std::byte* target) {
  using Bits = typename ElementBits<kDtype>::Type;
  const uint32_t end = Smaller(16 * piece + 16, launch.channels);
  for (uint32_t i = 16 * piece; i < end; ++i) {
    const uint32_t run = i / 64 * 64, j = i - run;
    const uint32_t half = Smaller(64, launch.channels - run) / 2;
    const uint32_t byte = Load<uint8_t>(codes + run / 2 + (j < half ? j : j - half));
    const uint32_t scale_bits = Load<uint16_t>(scales + 2 * (i >> launch.group_shift));
    const uint32_t bits =
        DecodeElement<kDtype>(j < half ? byte & 15u : byte >> 4, scale_bits, FromFloat16(scale_bits), levels);
    Store(target + i * sizeof(Bits), static_cast<Bits>(bits));
  }
}

// Grid: x pieces, y jobs.
template <Dtype kDtype>
__global__ void __launch_bounds__(kNqkv4DecodeThreads) Nqkv4DecodeKernel(const Nqkv4DecodeLaunch launch) {
  const SharedArray<float> levels(0, 16);
  if (threadIdx.x < 16) levels[threadIdx.x] = __uint_as_float(kNqkv4Tables.levels[threadIdx.x]);
  __syncthreads();
  const uint32_t index = blockIdx.x * kNqkv4DecodeThreads + threadIdx.x;
  if (index >= launch.pieces) return;
  const DeviceDecodeJob job = launch.jobs[blockIdx.y];
  const uint32_t row = launch.row_pieces.Quotient(index), piece = index - row * launch.row_pieces.value();
  const uint32_t head = launch.tokens.Quotient(row), token = row - head * launch.tokens.value();
  const std::byte* const strip = job.encoded + static_cast<size_t>(launch.head_begin + head) * launch.strip_bytes;
  const std::byte* const codes = strip + static_cast<size_t>(token) * (launch.channels / 2);
  const std::byte* const scales = strip + static_cast<size_t>(launch.tokens.value()) * (launch.channels / 2) +
                                  static_cast<size_t>(token) * launch.groups * 2;
  std::byte* const target = job.target + launch.rows.Offset(token, head, job.pages);
  if (launch.vectors && IsAligned(target, 16)) {
    DecodeVectors<kDtype>(launch, codes, scales, piece, levels, target);
  } else {
    DecodeElements<kDtype>(launch, codes, scales, piece, levels, target);
  }
}

}  // namespace nqkv::device
