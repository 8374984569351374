// nqkv4h on a GPU; FORMAT.md gives every byte and the order of every operation. Device code only; the launchers are in
// nqkv4h_codec.cu.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/device_code.cuh"
#include "kernels/head_encoder.cuh"
#include "kernels/nqkv4_codec_kernels.cuh"
#include "kernels/nqkv4h_codec.h"
#include "kernels/q8_codec_kernels.cuh"

namespace nqkv::device {

__constant__ uint32_t kSignWords[4] = {kRotationSigns[0], kRotationSigns[1], kRotationSigns[2], kRotationSigns[3]};

__device__ __forceinline__ bool IsNegatedChannel(uint32_t channel) {
  return (kSignWords[channel / 32 % 4] >> (channel % 32) & 1u) != 0;
}

// The transform of one row by its eight threads. `row` is its first element; all lanes of the warp must call.
__device__ __forceinline__ void TransformRow(const SharedArray<float>& rows, uint32_t row, uint32_t part, bool active,
                                             uint32_t channels, uint32_t block) {
  for (uint32_t distance = 1; distance < block; distance *= 2) {
    __syncwarp();
    for (uint32_t pair = part; active && pair < channels / 2; pair += kRowThreads) {
      const uint32_t i = row + pair / distance * 2 * distance + pair % distance;
      const float a = rows[i], b = rows[i + distance];
      rows[i] = __fadd_rn(a, b);
      rows[i + distance] = __fsub_rn(a, b);
    }
  }
  __syncwarp();
}

// ---- Encode: a block of threads takes one head of one plane and reads it twice, since the strong channels depend on
// all tokens. Rows are fp32 in shared memory, where they are rotated.

struct Nqkv4hEncodeLaunch {
  Nqkv4EncodeLaunch rotated;  // Of the rotated rows, which are fp32.
  const DeviceEncodeJob* jobs;
  uint32_t channel_scales;  // [channels] u16, in shared memory.
  uint32_t strong;          // [kStrongChannelsMax] u32: the strong channels.
  uint32_t strong_count;
  uint32_t strong_offset;  // From the start of the head.
  uint32_t block;
  float forward;
  float energy;
};

template <Dtype kDtype>
__device__ __forceinline__ void LoadRowAsFloats(const HeadTile& at, const std::byte* source, uint32_t row,
                                                uint32_t part) {
  const SharedArray<float> rows(at.tile, at.step_rows * at.tile_stride / 4);
  const uint32_t begin = row * at.tile_stride / 4;
  constexpr uint32_t kBytes = sizeof(typename ElementBits<kDtype>::Type);
  for (uint32_t first = 8 * part; first < at.channels; first += 8 * kRowThreads) {
    uint32_t bits[8];
    LoadEightElements<kDtype>(source + static_cast<size_t>(first) * kBytes, bits);
    NQKV_UNROLL
    for (uint32_t i = 0; i < 8; ++i) rows[begin + first + i] = FromBits<kDtype>(bits[i]);
  }
}

// The `strong_count` channels with the largest energies, ascending, by one warp; of equals, the lower number first.
__device__ __forceinline__ void PickStrong(const Nqkv4hEncodeLaunch& launch, uint32_t lane) {
  const uint32_t channels = launch.rotated.head.channels;
  const SharedArray<float> energies(launch.rotated.head.energies, channels);
  const SharedArray<uint32_t> strong(launch.strong, kStrongChannelsMax);
  // The last one picked: only channels behind it in order of energy, then number, are left.
  uint32_t last_energy = 0xffffffffu, last_channel = 0;
  for (uint32_t picked = 0; picked < launch.strong_count; ++picked) {
    uint32_t best_energy = 0, best_channel = 0xffffffffu;
    for (uint32_t channel = lane; channel < channels; channel += 32) {
      const uint32_t energy = __float_as_uint(energies[channel]);
      const bool left = energy < last_energy || (energy == last_energy && channel > last_channel);
      if (left && (best_channel == 0xffffffffu || energy > best_energy)) best_energy = energy, best_channel = channel;
    }
    for (int lanes = 16; lanes > 0; lanes /= 2) {
      const uint32_t energy = __shfl_xor_sync(kWholeWarp, best_energy, lanes);
      const uint32_t channel = __shfl_xor_sync(kWholeWarp, best_channel, lanes);
      const bool better = channel != 0xffffffffu && (best_channel == 0xffffffffu || energy > best_energy ||
                                                     (energy == best_energy && channel < best_channel));
      if (better) best_energy = energy, best_channel = channel;
    }
    last_energy = best_energy, last_channel = best_channel;
    if (lane == 0) {
      uint32_t place = picked;
      for (; place > 0 && strong[place - 1] > best_channel; --place) strong[place] = strong[place - 1];
      strong[place] = best_channel;
    }
    __syncwarp();
  }
}

// Pass one: the channels' energies and scales.
template <Dtype kDtype>
__device__ __forceinline__ void MeasureChannels(const Nqkv4hEncodeLaunch& launch, const DeviceEncodeJob& job,
                                                uint32_t head, const StepSums& step, uint32_t* flags) {
  const HeadTile& at = launch.rotated.head;
  const SharedArray<std::byte> tile(at.tile, at.step_rows * at.tile_stride);
  const SharedArray<uint16_t> scales(launch.channel_scales, at.channels);
  const uint32_t thread = threadIdx.x, row = thread / kRowThreads, part = thread % kRowThreads;
  for (uint32_t token = 0; token < launch.rotated.tokens; token += at.step_rows) {
    const uint32_t rows = Smaller(at.step_rows, launch.rotated.tokens - token);
    const bool active = row < rows;
    if (active) {
      LoadRowAsFloats<kDtype>(at, job.source + launch.rotated.rows.Offset(token + row, head, job.pages), row, part);
    }
    __syncwarp();
    Pair sums;
    for (uint32_t channel = 2 * part; active && channel < at.channels; channel += 16) {
      const Pair x = LoadPair<Dtype::kFloat32>(tile, row * at.tile_stride + 4 * channel);
      sums.first = __fmaf_rn(x.first, x.first, sums.first);
      sums.second = __fmaf_rn(x.second, x.second, sums.second);
    }
    const float signal = SumRowOfThreads(sums);
    if (active && part == 0) step.Set(row, signal, 0, 0);
    __syncthreads();
    AddChannelEnergies<Dtype::kFloat32>(at, step, rows);
    AddChannelScales<Dtype::kFloat32>(at, scales, rows, flags);
    __syncthreads();
  }
}

// What pass two finds out about a row.
struct RotatedRow {
  float signal;
  float error;
  float decoded;
};

// Rotates and encodes one row. `places`: of the row's strong channels.
template <uint32_t kGroup>
__device__ __forceinline__ RotatedRow EncodeRotatedRow(const Nqkv4hEncodeLaunch& launch, uint32_t row, uint32_t part,
                                                       bool active, std::byte* places, uint32_t* rotated_flags) {
  const HeadTile& at = launch.rotated.head;
  const SharedArray<float> rows(at.tile, at.step_rows * at.tile_stride / 4);
  const SharedArray<uint16_t> scales(launch.channel_scales, at.channels);
  const SharedArray<uint32_t> strong(launch.strong, kStrongChannelsMax);
  const uint32_t begin = row * at.tile_stride / 4;
  const bool has_strong = active && part < launch.strong_count;
  Pair signal;
  float strong_error = 0, strong_norm = 0;
  for (uint32_t channel = 2 * part; active && channel < at.channels; channel += 16) {
    const float first = rows[begin + channel], second = rows[begin + channel + 1];
    signal.first = __fmaf_rn(first, first, signal.first);
    signal.second = __fmaf_rn(second, second, signal.second);
  }
  if (has_strong) {
    const float x = rows[begin + strong[part]];
    float ignored = 0;
    const Q8Scale scale = Q8Scale::FromBits(scales[strong[part]]);
    Store(places + part, static_cast<uint8_t>(Q8EncodeElement(x, scale, &ignored, &strong_error, &strong_norm)));
  }
  __syncwarp();
  for (uint32_t channel = part; active && channel < at.channels; channel += kRowThreads) {
    const float x = rows[begin + channel];
    rows[begin + channel] = IsNegatedChannel(channel) ? -x : x;
  }
  __syncwarp();
  if (has_strong) rows[begin + strong[part]] = 0;
  TransformRow(rows, begin, part, active, at.channels, launch.block);
  for (uint32_t channel = part; active && channel < at.channels; channel += kRowThreads) {
    rows[begin + channel] = __fmul_rn(rows[begin + channel], launch.forward);
  }
  __syncwarp();
  const RowSums sums = EncodeRow<Dtype::kFloat32, kGroup>(launch.rotated, row, part, active, rotated_flags);
  const float error = __fmul_rn(launch.energy, SumRowOfThreads(sums.error));
  const float decoded = __fmul_rn(launch.energy, SumRowOfThreads(sums.decoded));
  return {SumRowOfThreads(signal), __fadd_rn(error, SumEightThreads(strong_error)),
          __fadd_rn(decoded, SumEightThreads(strong_norm))};
}

// Grid: x heads, y jobs.
template <Dtype kDtype, uint32_t kGroup>
__global__ void __launch_bounds__(kEncodeThreads, 4) Nqkv4hEncodeKernel(const Nqkv4hEncodeLaunch launch) {
  const HeadTile& at = launch.rotated.head;
  const uint32_t head = blockIdx.x, thread = threadIdx.x, tokens = launch.rotated.tokens;
  const uint32_t row = thread / kRowThreads, part = thread % kRowThreads;
  const uint32_t groups = launch.rotated.groups, code_bytes = at.channels / 2;
  const DeviceEncodeJob job = launch.jobs[blockIdx.y];
  std::byte* const encoded = job.encoded + static_cast<size_t>(head) * launch.rotated.strip_bytes;
  std::byte* const encoded_scales = encoded + static_cast<size_t>(tokens) * code_bytes;
  std::byte* const sidecar = encoded + launch.strong_offset;
  const SharedArray<uint32_t> places(launch.rotated.places, 256);
  const SharedArray<float> energies(at.energies, at.channels);
  const SharedArray<uint16_t> scales(launch.rotated.scales, at.step_rows * groups);
  const SharedArray<uint16_t> channel_scales(launch.channel_scales, at.channels);
  const SharedArray<uint32_t> strong(launch.strong, kStrongChannelsMax);
  const StepSums step(at);
  for (uint32_t i = thread; i < 256; i += kEncodeThreads) places[i] = kNqkv4Tables.places[i];
  for (uint32_t i = thread; i < at.channels; i += kEncodeThreads) energies[i] = 0, channel_scales[i] = 0;
  __syncthreads();
  uint32_t flags = 0, rotated_flags = 0;
  MeasureChannels<kDtype>(launch, job, head, step, &flags);
  if (thread < 32) PickStrong(launch, thread);
  __syncthreads();
  if (thread < launch.strong_count) {
    Store(sidecar + 2 * thread, static_cast<uint16_t>(strong[thread]));
    Store(sidecar + 2 * (launch.strong_count + thread), channel_scales[strong[thread]]);
  }
  std::byte* const strong_places = sidecar + 4 * launch.strong_count;

  HeadLane head_lane;
  for (uint32_t token = 0; token < tokens; token += at.step_rows) {
    const uint32_t rows = Smaller(at.step_rows, tokens - token);
    const bool active = row < rows;
    if (active) {
      LoadRowAsFloats<kDtype>(at, job.source + launch.rotated.rows.Offset(token + row, head, job.pages), row, part);
    }
    __syncwarp();
    const RotatedRow sums = EncodeRotatedRow<kGroup>(
        launch, row, part, active, strong_places + static_cast<size_t>(token + row) * launch.strong_count,
        &rotated_flags);
    if (active && part == 0) step.Set(row, sums.signal, sums.error, sums.decoded);
    __syncthreads();

    if (active) StoreCodes(at, encoded + static_cast<size_t>(token + row) * code_bytes, row, part);
    for (uint32_t i = thread; i < rows * groups; i += kEncodeThreads) {
      Store(encoded_scales + 2 * (static_cast<size_t>(token) * groups + i), scales[i]);
    }
    if (thread < 8) head_lane.Add(step, token, rows, thread);
    __syncthreads();  // The next step writes over what this one has read.
  }
  FinishHead(at, head_lane, flags | (rotated_flags != 0 ? kRotatedBeyondScale : 0), job.sums + head);
}

// ---- Decode: a block of threads takes some rows of a head, eight threads each.

struct Nqkv4hDecodeLaunch {
  const DeviceDecodeJob* jobs;
  PagedRows rows;
  Divisor steps;  // A head's.
  uint32_t step_rows;
  uint32_t tokens;
  uint32_t channels;
  uint32_t groups;
  uint32_t group_shift;
  uint32_t head_bytes;
  uint32_t head_begin;
  uint32_t strong_count;
  uint32_t strong_offset;
  uint32_t block;
  float backward;
};

__device__ __forceinline__ uint32_t LoadFourBytes(const std::byte* source) {
  if (IsAligned(source, 4)) return Load<uint32_t>(source);
  return Load<uint16_t>(source) | static_cast<uint32_t>(Load<uint16_t>(source + 2)) << 16;
}

// A row's levels times scales into shared memory.
__device__ __forceinline__ void DecodeRotatedRow(const Nqkv4hDecodeLaunch& launch, const std::byte* codes,
                                                 const std::byte* scales, uint32_t part,
                                                 const SharedArray<float>& levels, const SharedArray<float>& rows,
                                                 uint32_t begin) {
  for (uint32_t word = part; word < launch.channels / 8; word += kRowThreads) {
    const uint32_t run = word / 8 * 64;
    const uint32_t half = Smaller(64, launch.channels - run) / 2;
    const uint32_t first = run + word % 8 * 4;
    const uint32_t packed = LoadFourBytes(codes + 4 * word);
    const uint32_t scale_bits = Load<uint16_t>(scales + 2 * (first >> launch.group_shift));
    const float scale = (scale_bits & 0x7c00u) == 0x7c00u ? 0.0f : FromFloat16(scale_bits);
    NQKV_UNROLL
    for (uint32_t i = 0; i < 4; ++i) {
      const uint32_t byte = packed >> (8 * i) & 0xffu;
      rows[begin + first + i] = __fmul_rn(levels[byte & 15u], scale);
      rows[begin + first + half + i] = __fmul_rn(levels[byte >> 4], scale);
    }
  }
}

// A row's strong channels over what the transform left there: thread `part` has the part-th, if it and those before are
// in order and channels.
__device__ __forceinline__ void PutStrong(const Nqkv4hDecodeLaunch& launch, const std::byte* sidecar, uint32_t token,
                                          uint32_t part, const SharedArray<float>& rows, uint32_t begin) {
  if (part >= launch.strong_count) return;
  uint32_t channel = 0;
  for (uint32_t i = 0; i <= part; ++i) {
    const uint32_t next = Load<uint16_t>(sidecar + 2 * i);
    if (next >= launch.channels || (i > 0 && next <= channel)) return;
    channel = next;
  }
  const uint32_t scale_bits = Load<uint16_t>(sidecar + 2 * (launch.strong_count + part));
  const size_t offset = 4 * launch.strong_count + static_cast<size_t>(token) * launch.strong_count + part;
  const uint32_t byte = Load<uint8_t>(sidecar + offset);
  const int place = static_cast<int>(byte) - (byte >= 128 ? 256 : 0);
  rows[begin + channel] = __fmul_rn(static_cast<float>(place), Q8StepOf(scale_bits));
}

// Grid: x steps of all heads asked for, y jobs.
template <Dtype kDtype>
__global__ void __launch_bounds__(kEncodeThreads) Nqkv4hDecodeKernel(const Nqkv4hDecodeLaunch launch) {
  const uint32_t stride = launch.channels + kTilePadding / 4;
  const SharedArray<float> levels(0, 16), rows(64, launch.step_rows * stride);
  if (threadIdx.x < 16) levels[threadIdx.x] = __uint_as_float(kNqkv4Tables.levels[threadIdx.x]);
  __syncthreads();
  const uint32_t head = launch.steps.Quotient(blockIdx.x), step = blockIdx.x - head * launch.steps.value();
  const uint32_t row = threadIdx.x / kRowThreads, part = threadIdx.x % kRowThreads;
  const uint32_t token = step * launch.step_rows + row, begin = row * stride;
  const bool active = row < launch.step_rows && token < launch.tokens;
  const DeviceDecodeJob job = launch.jobs[blockIdx.y];
  const std::byte* const encoded = job.encoded + static_cast<size_t>(launch.head_begin + head) * launch.head_bytes;
  const std::byte* const codes = encoded + static_cast<size_t>(token) * (launch.channels / 2);
  const std::byte* const scales = encoded + static_cast<size_t>(launch.tokens) * (launch.channels / 2) +
                                  static_cast<size_t>(token) * launch.groups * 2;
  if (active) DecodeRotatedRow(launch, codes, scales, part, levels, rows, begin);
  TransformRow(rows, begin, part, active, launch.channels, launch.block);
  for (uint32_t channel = part; active && channel < launch.channels; channel += kRowThreads) {
    const float factor = IsNegatedChannel(channel) ? -launch.backward : launch.backward;
    rows[begin + channel] = __fmul_rn(rows[begin + channel], factor);
  }
  __syncwarp();
  if (active) PutStrong(launch, encoded + launch.strong_offset, token, part, rows, begin);
  __syncwarp();
  if (!active) return;
  std::byte* const target = job.target + launch.rows.Offset(token, head, job.pages);
  for (uint32_t first = 8 * part; first < launch.channels; first += 8 * kRowThreads) {
    uint32_t bits[8];
    NQKV_UNROLL
    for (uint32_t i = 0; i < 8; ++i) bits[i] = ToBits<kDtype>(rows[begin + first + i]);
    StoreEight<kDtype>(target + static_cast<size_t>(first) * sizeof(typename ElementBits<kDtype>::Type), bits);
  }
}

}  // namespace nqkv::device
