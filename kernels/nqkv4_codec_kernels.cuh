// nqkv4 on a GPU; FORMAT.md gives every byte and the order of every sum. Device code only; the launchers are in
// nqkv4_codec.cu.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/device_code.cuh"
#include "kernels/head_encoder.cuh"
#include "kernels/nqkv4_codec.h"

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

struct Nqkv4EncodeLaunch {
  const DeviceEncodeJob* jobs;
  PagedRows rows;
  HeadTile head;
  uint32_t places;  // [256], in shared memory.
  uint32_t scales;  // [step_rows][groups]
  uint32_t tokens;
  uint32_t groups;
  uint32_t strip_bytes;
};

// One element: its code; its share of the row's sums.
__device__ __forceinline__ uint32_t EncodeElement(float x, float inverse, float scale,
                                                  const SharedArray<uint32_t>& places, float* signal, float* error,
                                                  float* decoded) {
  int place = __float2int_rn(__fmul_rn(x, inverse));
  place = place < -128 ? -128 : place > 127 ? 127 : place;
  const uint32_t entry = places[static_cast<uint32_t>(place + 128)];
  AddElement(x, __fmul_rn(__uint_as_float(entry & ~15u), scale), signal, error, decoded);
  return entry & 15u;
}

// A thread's elements of its row are channels 16 i + 2 `part` and the one behind, so that each sum's elements come in
// order. `row` is the row in the step; all lanes of the warp must call, those without a row too.
template <Dtype kDtype, uint32_t kGroup>
__device__ __forceinline__ RowSums EncodeRow(const Nqkv4EncodeLaunch& launch, uint32_t row, uint32_t part, bool active,
                                             uint32_t* flags) {
  constexpr uint32_t kPairs = kGroup / 16;
  constexpr uint32_t kBytes = kDtype == Dtype::kFloat32 ? 4 : 2;
  const HeadTile& at = launch.head;
  const SharedArray<uint32_t> places(launch.places, 256);
  const SharedArray<std::byte> tile(at.tile, at.step_rows * at.tile_stride);
  const SharedArray<uint8_t> codes(at.codes, at.step_rows * at.codes_stride);
  const SharedArray<uint16_t> scales(launch.scales, at.step_rows * launch.groups);
  RowSums sums;
  for (uint32_t group = 0; group < launch.groups; ++group) {
    const uint32_t first = group * kGroup + 2 * part;
    Pair x[kPairs];
    uint32_t largest = 0;
    NQKV_UNROLL
    for (uint32_t i = 0; i < kPairs; ++i) {
      const uint32_t channel = first + 16 * i;
      if (active && channel < at.channels) x[i] = LoadPair<kDtype>(tile, row * at.tile_stride + channel * kBytes);
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
      if (active && channel < at.channels) {
        codes.StoreAs<uint16_t>(row * at.codes_stride + channel, static_cast<uint16_t>(low | high << 8));
      }
    }
  }
  return sums;
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
__device__ __forceinline__ void StoreCodes(const HeadTile& at, std::byte* target, uint32_t row, uint32_t part) {
  const SharedArray<uint8_t> codes(at.codes, at.step_rows * at.codes_stride);
  const uint32_t begin = row * at.codes_stride;
  const uint32_t words = at.channels / 8;
  if (words % 4 == 0 && IsAligned(target, 16)) {
    for (uint32_t word = 4 * part; word < words; word += 4 * kRowThreads) {
      Store(
          target + 4 * word,
          make_uint4(PackedWord(codes, begin, word, at.channels), PackedWord(codes, begin, word + 1, at.channels),
                     PackedWord(codes, begin, word + 2, at.channels), PackedWord(codes, begin, word + 3, at.channels)));
    }
    return;
  }
  const bool whole_words = IsAligned(target, 4);
  for (uint32_t word = part; word < words; word += kRowThreads) {
    const uint32_t packed = PackedWord(codes, begin, word, at.channels);
    if (whole_words) {
      Store(target + 4 * word, packed);
    } else {
      Store(target + 4 * word, static_cast<uint16_t>(packed));
      Store(target + 4 * word + 2, static_cast<uint16_t>(packed >> 16));
    }
  }
}

// Grid: x heads, y jobs.
template <Dtype kDtype, uint32_t kGroup>
__global__ void __launch_bounds__(kEncodeThreads, 4) Nqkv4EncodeKernel(const Nqkv4EncodeLaunch launch) {
  const HeadTile& at = launch.head;
  const uint32_t head = blockIdx.x, thread = threadIdx.x;
  const uint32_t row = thread / kRowThreads, part = thread % kRowThreads;
  const DeviceEncodeJob job = launch.jobs[blockIdx.y];
  std::byte* const strip = job.encoded + static_cast<size_t>(head) * launch.strip_bytes;
  const uint32_t code_bytes = at.channels / 2;
  const SharedArray<uint32_t> places(launch.places, 256);
  const SharedArray<float> energies(at.energies, at.channels);
  const SharedArray<uint16_t> scales(launch.scales, at.step_rows * launch.groups);
  const StepSums step(at);
  for (uint32_t i = thread; i < 256; i += kEncodeThreads) places[i] = kNqkv4Tables.places[i];
  for (uint32_t i = thread; i < at.channels; i += kEncodeThreads) energies[i] = 0;
  __syncthreads();

  HeadLane head_lane;
  uint32_t flags = 0;
  for (uint32_t token = 0; token < launch.tokens; token += at.step_rows) {
    const uint32_t rows = Smaller(at.step_rows, launch.tokens - token);
    const bool active = row < rows;
    if (active) LoadRow<kDtype>(at, job.source + launch.rows.Offset(token + row, head, job.pages), row, part);
    __syncwarp();
    const RowSums row_sums = EncodeRow<kDtype, kGroup>(launch, row, part, active, &flags);
    const float signal = SumRowOfThreads(row_sums.signal), error = SumRowOfThreads(row_sums.error);
    const float decoded = SumRowOfThreads(row_sums.decoded);
    if (active && part == 0) step.Set(row, signal, error, decoded);
    __syncthreads();

    if (active) StoreCodes(at, strip + static_cast<size_t>(token + row) * code_bytes, row, part);
    std::byte* const strip_scales = strip + static_cast<size_t>(launch.tokens) * code_bytes;
    for (uint32_t i = thread; i < rows * launch.groups; i += kEncodeThreads) {
      Store(strip_scales + 2 * (static_cast<size_t>(token) * launch.groups + i), scales[i]);
    }
    AddChannelEnergies<kDtype>(at, step, rows);
    if (thread < 8) head_lane.Add(step, token, rows, thread);
    __syncthreads();  // The next step writes over what this one has read.
  }

  FinishHead(at, head_lane, flags, job.sums + head);
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
__global__ void __launch_bounds__(kDecodeThreads) Nqkv4DecodeKernel(const Nqkv4DecodeLaunch launch) {
  const SharedArray<float> levels(0, 16);
  if (threadIdx.x < 16) levels[threadIdx.x] = __uint_as_float(kNqkv4Tables.levels[threadIdx.x]);
  __syncthreads();
  const uint32_t index = blockIdx.x * kDecodeThreads + threadIdx.x;
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
