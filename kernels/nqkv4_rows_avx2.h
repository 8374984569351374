// Rows of one head between numbers and nqkv4's codes, with what measuring them needs.
//
// For sources built with AVX2, FMA and F16C and run only where they are; other sources must not include this.
//
// A run of 64 elements is the unit. Its codes stay in the order in which the pack instructions leave them ("packed
// order": in each half of the register four elements of each of four vectors) until they are stored.
#pragma once

#include <immintrin.h>

#include <bit>
#include <cstring>

#include "kernels/fidelity_avx2.h"
#include "kernels/float_format.h"
#include "kernels/float_format_avx2.h"
#include "kernels/nqkv4_codec.h"

namespace nqkv::avx2 {

constexpr size_t kVector = 8;  // fp32 numbers of a register.

// Rows are converted to fp32 in batches, so that scales and weights come eight at a time: one division for eight, and
// no row waits for its own absmax. 8192 numbers are 32 KiB, one row of the widest head or eight of up to 1024 channels.
constexpr size_t kBatchFloats = 8192;
constexpr size_t kBatchRows = kLanes;
constexpr size_t kBatchGroups = kBatchFloats / kNqkv4Run;

constexpr int32_t kScaleRangeEndBits = 0x477ff000;  // 65520, which rounds to infinity in fp16.

[[gnu::always_inline]] inline __m256i Broadcast(const void* bytes16) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(static_cast<const __m128i*>(bytes16)));
}

// Tables for pshufb. `places`: codes by 16-wide slices of the line of places, indexed by a place's high nibble.
struct Tables {
  alignas(16) int8_t base[16];   // Thresholds below the slice.
  alignas(16) int8_t first[16];  // The slice's thresholds; 127, above which there is no place, where there is none.
  alignas(16) int8_t second[16];
  alignas(16) uint8_t level_bytes[3][16];  // Bytes 1, 2 and 3 of the levels as fp32; byte 0 is zero.
  alignas(32) float levels[16];
};

constexpr Tables MakeTables() {
  Tables tables = {};
  for (int slice = 0; slice < 16; ++slice) {
    const int low = slice < 8 ? slice * 16 : slice * 16 - 256;
    tables.first[slice] = tables.second[slice] = 127;
    int found = 0;
    for (const int8_t threshold : kNqkv4Thresholds) {
      if (threshold < low) ++tables.base[slice];
      if (threshold < low || threshold >= low + 15) continue;  // At low + 15 it divides this slice from the next.
      (found++ == 0 ? tables.first : tables.second)[slice] = threshold;
    }
  }
  for (size_t code = 0; code < 16; ++code) {
    tables.levels[code] = Float16ToFloat(kNqkv4Levels[code]);
    const auto bits = std::bit_cast<uint32_t>(tables.levels[code]);
    for (size_t byte = 0; byte < 3; ++byte) {
      tables.level_bytes[byte][code] = static_cast<uint8_t>(bits >> (8 * (byte + 1)));
    }
  }
  return tables;
}

constexpr Tables kTables = MakeTables();

// The fp32 levels of 32 codes in packed order, as four vectors in the elements' order.
[[gnu::always_inline]] inline void Levels(__m256i codes, __m256 levels[4]) {
  const __m256i byte1 = _mm256_shuffle_epi8(Broadcast(kTables.level_bytes[0]), codes);
  const __m256i byte2 = _mm256_shuffle_epi8(Broadcast(kTables.level_bytes[1]), codes);
  const __m256i byte3 = _mm256_shuffle_epi8(Broadcast(kTables.level_bytes[2]), codes);
  const __m256i low01 = _mm256_unpacklo_epi8(_mm256_setzero_si256(), byte1);
  const __m256i low23 = _mm256_unpackhi_epi8(_mm256_setzero_si256(), byte1);
  const __m256i high01 = _mm256_unpacklo_epi8(byte2, byte3);
  const __m256i high23 = _mm256_unpackhi_epi8(byte2, byte3);
  levels[0] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(low01, high01));
  levels[1] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(low01, high01));
  levels[2] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(low23, high23));
  levels[3] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(low23, high23));
}

[[gnu::always_inline]] inline __m256 MaxEight(const float (*rows)[kVector]) {
  return ReduceEight(rows, [](__m256 a, __m256 b) {  // As integers, so that NaN is a maximum.
    return _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b)));
  });
}

// Up to eight tokens' rows of one head, on the way from source to codes.
struct Batch {
  alignas(32) float values[kBatchFloats];
  alignas(32) float absmax_lanes[kBatchGroups + kVector][kVector];
  alignas(32) float scales[kBatchGroups + kVector];    // As fp32.
  alignas(32) float inverses[kBatchGroups + kVector];  // 127 / scale.
  alignas(16) uint16_t scale_bits[kBatchGroups + kVector];
  RowBatch rows;
};

struct Shape {
  size_t channels;
  size_t padded;  // Up to a whole run. The padding is zeros, which change no sum and no maximum.
  size_t group;
  size_t groups;
};

template <Dtype kDtype>
[[gnu::always_inline]] inline void LoadRow(const std::byte* source, const Shape& shape, float* values,
                                           float (*absmax_lanes)[kVector], float* signal_lanes) {
  const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  __m256 signal[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
  for (size_t begin = 0; begin < shape.channels; begin += shape.group) {
    const size_t end = begin + shape.group < shape.channels ? begin + shape.group : shape.channels;
    __m256i absmax = _mm256_setzero_si256();
    const auto load = [&](size_t c, __m256& sum) {
      const __m256 x = Load8<kDtype>(source + c * DtypeBytes(kDtype));
      _mm256_store_ps(values + c, x);
      absmax = _mm256_max_epi32(absmax, _mm256_castps_si256(_mm256_and_ps(x, magnitude)));
      sum = _mm256_fmadd_ps(x, x, sum);
    };
    size_t c = begin;
    for (; c + 2 * kVector <= end; c += 2 * kVector) {
      load(c, signal[0]);
      load(c + kVector, signal[1]);
    }
    if (c < end) load(c, signal[0]);
    _mm256_store_ps(*absmax_lanes++, _mm256_castsi256_ps(absmax));
  }
  for (size_t c = shape.channels; c < shape.padded; c += kVector) _mm256_store_ps(values + c, _mm256_setzero_ps());
  _mm256_store_ps(signal_lanes, _mm256_add_ps(signal[0], signal[1]));
}

// Scales and their inverses of all groups of the batch. False when one has none.
inline bool MakeScales(size_t group_count, Batch& batch) {
  for (size_t i = 0; i < group_count; i += kVector) {
    const __m256 absmax = MaxEight(&batch.absmax_lanes[i]);
    const __m256i beyond = _mm256_cmpgt_epi32(_mm256_castps_si256(absmax), _mm256_set1_epi32(kScaleRangeEndBits - 1));
    if (_mm256_movemask_epi8(beyond) != 0) return false;
    const __m128i bits = _mm256_cvtps_ph(absmax, _MM_FROUND_TO_NEAREST_INT);
    const __m256 scale = _mm256_cvtph_ps(bits);
    const __m256 inverse = _mm256_div_ps(_mm256_set1_ps(127.0f), scale);
    const __m256 nonzero = _mm256_cmp_ps(scale, _mm256_setzero_ps(), _CMP_NEQ_OQ);
    _mm_store_si128(reinterpret_cast<__m128i*>(batch.scale_bits + i), bits);
    _mm256_store_ps(batch.scales + i, scale);
    _mm256_store_ps(batch.inverses + i, _mm256_and_ps(inverse, nonzero));
  }
  return true;
}

// The places of 32 elements in packed order.
[[gnu::always_inline]] inline __m256i Places(const float* values, __m256 inverse) {
  const auto place = [&](size_t i) {
    return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_load_ps(values + i * kVector), inverse));
  };
  return _mm256_packs_epi16(_mm256_packs_epi32(place(0), place(1)), _mm256_packs_epi32(place(2), place(3)));
}

[[gnu::always_inline]] inline __m256i Codes(__m256i places) {
  const __m256i slice = _mm256_and_si256(_mm256_srli_epi16(places, 4), _mm256_set1_epi8(15));
  const __m256i base = _mm256_shuffle_epi8(Broadcast(kTables.base), slice);
  const __m256i first = _mm256_cmpgt_epi8(places, _mm256_shuffle_epi8(Broadcast(kTables.first), slice));
  const __m256i second = _mm256_cmpgt_epi8(places, _mm256_shuffle_epi8(Broadcast(kTables.second), slice));
  return _mm256_sub_epi8(_mm256_sub_epi8(base, first), second);
}

// Two registers of codes in packed order to a run's 32 bytes.
[[gnu::always_inline]] inline __m256i Interleave(__m256i low, __m256i high) {
  const __m256i bytes = _mm256_or_si256(low, _mm256_slli_epi16(high, 4));
  return _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

// A run of n < 64 elements has its own interleaving: byte j holds elements j and j + n/2.
inline void StoreShortRun(__m256i interleaved, size_t n, std::byte* target) {
  alignas(32) uint8_t bytes[32];
  _mm256_store_si256(reinterpret_cast<__m256i*>(bytes), interleaved);
  const auto code = [&](size_t i) { return i < 32 ? bytes[i] & 15 : bytes[i - 32] >> 4; };
  for (size_t j = 0; j < n / 2; ++j) target[j] = static_cast<std::byte>(code(j) | code(j + n / 2) << 4);
}

// Of a row; even and odd vectors apart.
struct RowSums {
  __m256 error[2];
  __m256 decoded[2];
};

[[gnu::always_inline]] inline void MeasureHalfRun(const float* values, __m256i codes, __m256 scale, RowSums& sums) {
  __m256 levels[4];
  Levels(codes, levels);
  for (size_t i = 0; i < 4; ++i) {
    const __m256 y = _mm256_mul_ps(levels[i], scale);
    const __m256 difference = _mm256_sub_ps(_mm256_load_ps(values + i * kVector), y);
    sums.error[i % 2] = _mm256_fmadd_ps(difference, difference, sums.error[i % 2]);
    sums.decoded[i % 2] = _mm256_fmadd_ps(y, y, sums.decoded[i % 2]);
  }
}

template <bool kMeasure>
[[gnu::always_inline]] inline void EncodeRun(const float* values, __m256 inverse, __m256 scale, size_t n,
                                             std::byte* target, RowSums& sums) {
  const __m256i low = Codes(Places(values, inverse));
  const __m256i high = Codes(Places(values + kNqkv4Run / 2, inverse));
  const __m256i bytes = Interleave(low, high);
  if (n >= kNqkv4Run) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(target), bytes);
  } else {
    StoreShortRun(bytes, n, target);
  }
  if constexpr (!kMeasure) return;
  MeasureHalfRun(values, low, scale, sums);
  MeasureHalfRun(values + kNqkv4Run / 2, high, scale, sums);
}

template <bool kMeasure>
[[gnu::always_inline]] inline void EncodeRow(const Shape& shape, const float* values, const float* scales,
                                             const float* inverses, std::byte* codes, RowSums& sums) {
  size_t begin = 0;
  for (size_t g = 0; g < shape.groups; ++g) {
    const __m256 inverse = _mm256_broadcast_ss(inverses + g), scale = _mm256_broadcast_ss(scales + g);
    const size_t end = begin + shape.group < shape.channels ? begin + shape.group : shape.channels;
    for (; begin < end; begin += kNqkv4Run) {
      EncodeRun<kMeasure>(values + begin, inverse, scale, shape.channels - begin, codes + begin / 2, sums);
    }
  }
}

// What the rows add to their channels' weighted energies. Apart from EncodeRow, whose registers are all taken.
template <size_t kRows>
[[gnu::always_inline]] inline void AddChannelEnergies(const Shape& shape, const float* values, const float* weights,
                                                      float* channel_energies) {
  for (size_t c = 0; c < shape.channels; c += kVector) {
    __m256 energy = _mm256_load_ps(channel_energies + c);
    for (size_t r = 0; r < kRows; ++r) {
      const __m256 x = _mm256_load_ps(values + r * shape.padded + c);
      energy = _mm256_fmadd_ps(_mm256_mul_ps(x, _mm256_broadcast_ss(weights + r)), x, energy);
    }
    _mm256_store_ps(channel_energies + c, energy);
  }
}

// A batch never wraps around the lanes: its size is a power of two up to their number.
inline size_t BatchRows(const Shape& shape) {
  size_t rows = kBatchRows;
  while (rows * shape.padded > kBatchFloats) rows /= 2;
  return rows;
}

// FloorEnergy of fidelity.h, eight channels at a time.
inline size_t CountAbove(const float* energies, size_t channels, int32_t bits) {
  const __m256i border = _mm256_set1_epi32(bits);
  __m256i counts = _mm256_setzero_si256();
  for (size_t c = 0; c < channels; c += kVector) {
    const __m256i energy = _mm256_load_si256(reinterpret_cast<const __m256i*>(energies + c));
    counts = _mm256_sub_epi32(counts, _mm256_cmpgt_epi32(energy, border));
  }
  const __m128i halves = _mm_add_epi32(_mm256_castsi256_si128(counts), _mm256_extracti128_si256(counts, 1));
  const __m128i pairs = _mm_add_epi32(halves, _mm_shuffle_epi32(halves, 0x4e));
  const int count = _mm_cvtsi128_si32(pairs) + _mm_extract_epi32(pairs, 1);
  return static_cast<size_t>(count);
}

inline int32_t LargestBits(const float* energies, size_t channels) {
  __m256i largest = _mm256_setzero_si256();
  for (size_t c = 0; c < channels; c += kVector) {
    largest = _mm256_max_epi32(largest, _mm256_load_si256(reinterpret_cast<const __m256i*>(energies + c)));
  }
  alignas(32) int32_t lanes[kLanes];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), largest);
  int32_t bits = 0;
  for (int32_t lane : lanes) bits = lane > bits ? lane : bits;
  return bits;
}

inline float FloorEnergyAvx2(const float* energies, size_t channels) {
  return SplitFloor(
      StrongChannels(channels), LargestBits(energies, channels),
      [&](int32_t bits) { return CountAbove(energies, channels, bits); },
      [&](int32_t bits) { return SumUpTo(energies, channels, bits); });
}

// Sixteen 16-bit values: their low and their high bytes, for pshufb.
struct ByteTable {
  __m256i low, high;
};

[[gnu::always_inline]] inline ByteTable SplitBytes(__m128i first, __m128i second) {
  const __m128i byte = _mm_set1_epi16(0xff);
  const __m128i low = _mm_packus_epi16(_mm_and_si128(first, byte), _mm_and_si128(second, byte));
  const __m128i high = _mm_packus_epi16(_mm_srli_epi16(first, 8), _mm_srli_epi16(second, 8));
  return {_mm256_broadcastsi128_si256(low), _mm256_broadcastsi128_si256(high)};
}

template <bool kStreaming>
[[gnu::always_inline]] inline void StoreRegister(std::byte* target, __m256i value) {
  if constexpr (kStreaming) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(target), value);
  } else {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(target), value);
  }
}

// The sixteen values that a group's codes can have, as its target wants to look them up.
template <Dtype kDtype>
struct DecodeTable {
  ByteTable bytes;

  [[gnu::always_inline]] explicit DecodeTable(uint16_t scale_bits) {
    const __m256 scale = _mm256_cvtph_ps(_mm_set1_epi16(static_cast<int16_t>(scale_bits)));
    const __m256 first = _mm256_mul_ps(_mm256_load_ps(kTables.levels), scale);
    const __m256 second = _mm256_mul_ps(_mm256_load_ps(kTables.levels + kVector), scale);
    if constexpr (kDtype == Dtype::kFloat16) {
      bytes = SplitBytes(_mm256_cvtps_ph(first, _MM_FROUND_TO_NEAREST_INT),
                         _mm256_cvtps_ph(second, _MM_FROUND_TO_NEAREST_INT));
    } else {
      bytes = SplitBytes(ToBfloat16(first), ToBfloat16(second));
    }
  }

  // 64 elements from the 32 bytes of a run.
  template <bool kStreaming>
  [[gnu::always_inline]] void DecodeRun(__m256i run, std::byte* target) const {
    // Quarters 0, 2, 1, 3: the unpack instructions below then leave the elements in order.
    const __m256i quarters = _mm256_permute4x64_epi64(run, 0xd8);
    const __m256i nibble = _mm256_set1_epi8(15);
    const __m256i codes[2] = {_mm256_and_si256(quarters, nibble),
                              _mm256_and_si256(_mm256_srli_epi16(quarters, 4), nibble)};
    for (size_t half = 0; half < 2; ++half) {
      const __m256i low = _mm256_shuffle_epi8(bytes.low, codes[half]);
      const __m256i high = _mm256_shuffle_epi8(bytes.high, codes[half]);
      StoreRegister<kStreaming>(target + 64 * half, _mm256_unpacklo_epi8(low, high));
      StoreRegister<kStreaming>(target + 64 * half + 32, _mm256_unpackhi_epi8(low, high));
    }
  }
};

template <>
struct DecodeTable<Dtype::kFloat32> {
  __m256 scale;

  [[gnu::always_inline]] explicit DecodeTable(uint16_t scale_bits)
      : scale(_mm256_cvtph_ps(_mm_set1_epi16(static_cast<int16_t>(scale_bits)))) {}

  template <bool kStreaming>
  [[gnu::always_inline]] void DecodeRun(__m256i run, std::byte* target) const {
    __m256 eighths[8];
    Decoded(run, eighths);
    for (size_t i = 0; i < 8; ++i) StoreRegister<kStreaming>(target + 32 * i, _mm256_castps_si256(eighths[i]));
  }

  // The run's numbers, in order.
  [[gnu::always_inline]] void Decoded(__m256i run, __m256 eighths[8]) const {
    const __m256i packed = _mm256_permutevar8x32_epi32(run, _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7));
    const __m256i nibble = _mm256_set1_epi8(15);
    const __m256i codes[2] = {_mm256_and_si256(packed, nibble), _mm256_and_si256(_mm256_srli_epi16(packed, 4), nibble)};
    for (size_t half = 0; half < 2; ++half) {
      Levels(codes[half], eighths + 4 * half);
      for (size_t i = 0; i < 4; ++i) eighths[4 * half + i] = _mm256_mul_ps(eighths[4 * half + i], scale);
    }
  }
};

// A short run's bytes as those of a whole run that begins with the same elements.
inline __m256i LoadShortRun(const std::byte* source, size_t n) {
  alignas(32) uint8_t bytes[32] = {};
  for (size_t i = 0; i < n; ++i) {
    const auto byte = static_cast<uint8_t>(source[i % (n / 2)]);
    const unsigned code = i < n / 2 ? byte & 15u : byte >> 4;
    bytes[i % 32] = static_cast<uint8_t>(bytes[i % 32] | code << (i < 32 ? 0 : 4));
  }
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(bytes));
}

template <Dtype kDtype>
void DecodeShortRun(const DecodeTable<kDtype>& table, const std::byte* source, size_t n, std::byte* target) {
  alignas(32) std::byte elements[kNqkv4Run * DtypeBytes(kDtype)];
  table.template DecodeRun<false>(LoadShortRun(source, n), elements);
  std::memcpy(target, elements, n * DtypeBytes(kDtype));
}

template <Dtype kDtype, bool kStreaming>
[[gnu::always_inline]] inline void DecodeRow(const Nqkv4Layout& layout, const std::byte* codes, const std::byte* scales,
                                             std::byte* target) {
  for (size_t begin = 0; begin < layout.row_elements; begin += layout.group, scales += sizeof(uint16_t)) {
    const size_t group_end = begin + layout.group;
    const size_t end = group_end < layout.row_elements ? group_end : layout.row_elements;
    uint16_t scale;
    std::memcpy(&scale, scales, sizeof(scale));
    const DecodeTable<kDtype> table(scale);
    size_t run = begin;
    for (; run + kNqkv4Run <= end; run += kNqkv4Run) {
      table.template DecodeRun<kStreaming>(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + run / 2)),
                                           target + run * DtypeBytes(kDtype));
    }
    if (run < end) DecodeShortRun(table, codes + run / 2, end - run, target + run * DtypeBytes(kDtype));
  }
}

}  // namespace nqkv::avx2
