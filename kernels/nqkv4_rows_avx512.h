// Rows of one head between numbers and nqkv4's codes, with what measuring them needs.
//
// For sources built with AVX-512 and run only where it is; other sources must not include this.
//
// A run of 64 elements is the unit: one register of 64 bytes, in which byte v of 32-bit lane j stands for element
// 16 v + j ("lane order"). So four registers of sixteen fp32 numbers become one of codes without a crossing of lanes,
// and a shift brings each quarter's codes to where the lookup of sixteen levels reads them.
#pragma once

#include <immintrin.h>

#include <array>
#include <bit>
#include <cstring>
#include <type_traits>

#include "kernels/fidelity_avx2.h"
#include "kernels/float_format.h"
#include "kernels/float_format_avx512.h"
#include "kernels/nqkv4_codec.h"

namespace nqkv::avx512 {

constexpr size_t kVector = 16;  // fp32 numbers of a register.
constexpr size_t kQuarters = kNqkv4Run / kVector;

// Rows are encoded in batches, so that scales come sixteen at a time and row energies eight: one division for all.
// 8192 numbers are 32 KiB, one row of the widest head or eight of up to 1024 channels.
constexpr size_t kBatchFloats = 8192;
constexpr size_t kBatchRows = kLanes;
constexpr size_t kMeasuredRows = 4;
constexpr size_t kBlockGroups = kBatchRows * kBatchFloats / kNqkv4Run;

constexpr int32_t kScaleRangeEndBits = 0x477ff000;  // 65520, which rounds to infinity in fp16.

// Added to a number below 2^22, it leaves the number, rounded to nearest even, in the low bits.
constexpr float kRounder = 0x1.8p23f;

struct Tables {
  alignas(64) std::array<uint8_t, 256> codes;  // By place, its low byte.
  alignas(64) std::array<float, kVector> levels;
  alignas(64) std::array<uint8_t, 64> lane_bytes;   // For each byte of a 32-bit lane the lane's first.
  alignas(64) std::array<uint8_t, 64> from_lanes;   // Lane order to the elements' order.
  alignas(64) std::array<uint8_t, 64> interleaved;  // Two bytes of each lane to a run's 32 bytes.
  alignas(64) std::array<uint8_t, 64> iota;
};

constexpr Tables MakeTables() {
  Tables tables = {};
  for (int place = -128; place < 128; ++place) {
    uint8_t code = 0;
    for (const int8_t threshold : kNqkv4Thresholds) code = static_cast<uint8_t>(code + (place > threshold));
    tables.codes[static_cast<uint8_t>(place)] = code;
  }
  for (size_t code = 0; code < kVector; ++code) tables.levels[code] = Float16ToFloat(kNqkv4Levels[code]);
  for (size_t i = 0; i < 64; ++i) {
    const size_t quarter = i / kVector, lane = i % kVector;
    tables.lane_bytes[i] = static_cast<uint8_t>(i / 4 * 4 % 16);
    tables.from_lanes[i] = static_cast<uint8_t>(4 * lane + quarter);
    tables.interleaved[i] = static_cast<uint8_t>(4 * lane + quarter % 2);
    tables.iota[i] = static_cast<uint8_t>(i);
  }
  return tables;
}

constexpr Tables kTables = MakeTables();

template <typename Table>
[[gnu::always_inline]] inline __m512i LoadTable(const Table& table, size_t first = 0) {
  return _mm512_load_si512(table.data() + first);
}

// The lowest `count` bits; all of them when there are fewer.
template <typename Mask>
[[gnu::always_inline]] inline Mask LowBits(size_t count) {
  return count >= 8 * sizeof(Mask) ? static_cast<Mask>(~Mask{0}) : static_cast<Mask>((uint64_t{1} << count) - 1);
}

// Never faults, so that it may point behind its array.
[[gnu::always_inline]] inline void Prefetch(const std::byte* base, ptrdiff_t offset) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(base) + static_cast<uintptr_t>(offset);
  _mm_prefetch(reinterpret_cast<const char*>(address), _MM_HINT_T0);
}

struct Shape {
  size_t channels;
  size_t padded;  // Up to a whole run. The padding is zeros, which change no sum and no maximum.
  size_t group;
  size_t groups;
  unsigned group_shift;  // A run's number to its group's.
};

// An element's bits as an integer.
template <Dtype kDtype>
using Bits = std::conditional_t<kDtype == Dtype::kFloat32, uint32_t, uint16_t>;

// Of the groups of up to eight tokens' rows of several heads, [head][row][group].
template <Dtype kDtype>
struct Scales {
  alignas(64) Bits<kDtype> absmax[kBlockGroups + kVector] = {};
  alignas(64) float scales[kBlockGroups + kVector];    // As fp32.
  alignas(64) float inverses[kBlockGroups + kVector];  // 127 / scale.
  alignas(64) uint16_t scale_bits[kBlockGroups + kVector];
};

// Up to eight tokens' rows of one head, on the way from source to codes.
struct Batch {
  alignas(64) float values[kBatchFloats];
  alignas(64) std::byte codes[kBatchFloats];  // In lane order.
  RowBatch rows;
};

// A register of elements that become one of the running extremes. 16-bit elements have the least complement, because
// what reduces a register of them finds the least.
template <Dtype kDtype>
[[gnu::always_inline]] inline __m512i Extreme(__m512i extreme, __m512i bits) {
  if constexpr (kDtype == Dtype::kFloat32) {
    return _mm512_max_epu32(extreme, _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff)));
  } else {
    return _mm512_min_epu16(extreme, _mm512_andnot_si512(bits, _mm512_set1_epi16(0x7fff)));
  }
}

template <Dtype kDtype>
[[gnu::always_inline]] inline __m512i NoExtreme() {
  return kDtype == Dtype::kFloat32 ? _mm512_setzero_si512() : _mm512_set1_epi16(0x7fff);
}

// The largest magnitude as the source's own bits, which order as the magnitudes do: NaN is a maximum.
template <Dtype kDtype>
[[gnu::always_inline]] inline Bits<kDtype> AbsmaxOf(__m512i extreme) {
  if constexpr (kDtype == Dtype::kFloat32) {
    return static_cast<uint32_t>(_mm512_reduce_max_epu32(extreme));
  } else {
    const __m256i half = _mm256_min_epu16(_mm512_castsi512_si256(extreme), _mm512_extracti64x4_epi64(extreme, 1));
    const __m128i quarter = _mm_min_epu16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    const __m128i absmax = _mm_xor_si128(_mm_minpos_epu16(quarter), _mm_set1_epi16(0x7fff));
    return static_cast<uint16_t>(_mm_extract_epi16(absmax, 0));
  }
}

template <Dtype kDtype>
Bits<kDtype> ShortGroupAbsmax(const std::byte* source, size_t count) {
  constexpr size_t kElements = 64 / sizeof(Bits<kDtype>);
  __m512i extreme = NoExtreme<kDtype>();
  for (size_t i = 0; i < count; i += kElements) {
    const __mmask64 mask = LowBits<__mmask64>((count - i) * sizeof(Bits<kDtype>));
    const __m512i bits = _mm512_maskz_loadu_epi8(mask, source + i * sizeof(Bits<kDtype>));
    extreme = Extreme<kDtype>(extreme, bits);
  }
  return AbsmaxOf<kDtype>(extreme);
}

// Of all groups of the rows; whole groups are kGroup elements. Returns the end of the absmaxes.
template <Dtype kDtype, size_t kGroup>
Bits<kDtype>* FindAbsmax(const std::byte* source, ptrdiff_t row_stride, size_t rows, size_t channels,
                         Bits<kDtype>* absmax) {
  constexpr size_t kRegisters = kGroup * sizeof(Bits<kDtype>) / 64;
  const size_t whole = channels / kGroup;
  for (size_t r = 0; r < rows; ++r, source += row_stride) {
    const std::byte* group = source;
    for (size_t g = 0; g < whole; ++g, group += kRegisters * 64) {
      __m512i extreme = NoExtreme<kDtype>();
      for (size_t i = 0; i < kRegisters; ++i) extreme = Extreme<kDtype>(extreme, _mm512_loadu_si512(group + 64 * i));
      *absmax++ = AbsmaxOf<kDtype>(extreme);
    }
    const size_t rest = channels % kGroup;
    if (rest > 0) *absmax++ = ShortGroupAbsmax<kDtype>(group, rest);
  }
  return absmax;
}

template <Dtype kDtype>
Bits<kDtype>* FindAbsmax(const std::byte* source, ptrdiff_t row_stride, size_t rows, const Shape& shape,
                         Bits<kDtype>* absmax) {
  switch (shape.group) {
    case 64:
      return FindAbsmax<kDtype, 64>(source, row_stride, rows, shape.channels, absmax);
    case 128:
      return FindAbsmax<kDtype, 128>(source, row_stride, rows, shape.channels, absmax);
    default:
      return FindAbsmax<kDtype, 256>(source, row_stride, rows, shape.channels, absmax);
  }
}

// Scales and their inverses of all groups. False when one has none. What stands behind the last group is zero or of
// earlier rows.
template <Dtype kDtype>
bool MakeScales(size_t group_count, Scales<kDtype>& groups) {
  for (size_t i = 0; i < group_count; i += kVector) {
    const __m512 absmax = Load16<kDtype>(reinterpret_cast<const std::byte*>(groups.absmax + i));
    const __m512i border = _mm512_set1_epi32(kScaleRangeEndBits - 1);
    if (_mm512_cmpgt_epi32_mask(_mm512_castps_si512(absmax), border) != 0) return false;
    const __m256i bits = ToFloat16x16(absmax);
    const __m512 scale = _mm512_cvtph_ps(bits);
    const __mmask16 nonzero = _mm512_cmp_ps_mask(scale, _mm512_setzero_ps(), _CMP_NEQ_OQ);
    _mm256_store_si256(reinterpret_cast<__m256i*>(groups.scale_bits + i), bits);
    _mm512_store_ps(groups.scales + i, scale);
    _mm512_store_ps(groups.inverses + i, _mm512_maskz_div_ps(nonzero, _mm512_set1_ps(127.0f), scale));
  }
  return true;
}

// The place's low byte is the number's.
template <bool kLimit>
[[gnu::always_inline]] inline __m512i Place(__m512 x, __m512 inverse) {
  __m512 scaled = _mm512_mul_ps(x, inverse);
  if constexpr (kLimit) {
    constexpr int kSmallerMagnitude = 2;
    scaled = _mm512_range_ps(scaled, _mm512_set1_ps(127.0f), kSmallerMagnitude);
  }
  return _mm512_castps_si512(_mm512_add_ps(scaled, _mm512_set1_ps(kRounder)));
}

// The codes of a run in lane order. `kLimit`: a number may be far larger than its scale.
template <bool kLimit>
[[gnu::always_inline]] inline __m512i Codes(const __m512 x[kQuarters], __m512 inverse) {
  const __m512i lane_bytes = LoadTable(kTables.lane_bytes);
  __m512i places = Place<kLimit>(x[0], inverse);
  places = _mm512_mask_shuffle_epi8(places, 0x2222222222222222, Place<kLimit>(x[1], inverse), lane_bytes);
  places = _mm512_mask_shuffle_epi8(places, 0x4444444444444444, Place<kLimit>(x[2], inverse), lane_bytes);
  places = _mm512_mask_shuffle_epi8(places, 0x8888888888888888, Place<kLimit>(x[3], inverse), lane_bytes);
  const auto look_up = [&](size_t first) {
    return _mm512_permutex2var_epi8(LoadTable(kTables.codes, first), places, LoadTable(kTables.codes, first + 64));
  };
  return _mm512_mask_mov_epi8(look_up(0), _mm512_movepi8_mask(places), look_up(128));
}

// A run of n < 64 elements has its own interleaving: byte j holds elements j and j + n/2.
[[gnu::always_inline]] inline void StoreShortRun(__m512i codes, size_t n, std::byte* target) {
  const __m512i low = _mm512_permutexvar_epi8(LoadTable(kTables.from_lanes), codes);
  const __m512i second = _mm512_add_epi8(LoadTable(kTables.iota), _mm512_set1_epi8(static_cast<char>(n / 2)));
  const __m512i high = _mm512_permutexvar_epi8(second, low);
  const __m512i bytes = _mm512_or_si512(low, _mm512_slli_epi16(high, 4));
  _mm512_mask_storeu_epi8(target, LowBits<__mmask64>(n / 2), bytes);
}

[[gnu::always_inline]] inline void StoreRun(__m512i codes, std::byte* target) {
  const __m512i pairs = _mm512_or_si512(codes, _mm512_srli_epi32(codes, 12));
  const __m512i bytes = _mm512_permutexvar_epi8(LoadTable(kTables.interleaved), pairs);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(target), _mm512_castsi512_si256(bytes));
}

// `values` receive the run as fp32 and `lane_codes` its codes when it is going to be measured.
template <bool kMeasure>
[[gnu::always_inline]] inline void KeepForMeasure(const __m512 x[kQuarters], __m512i codes, float* values,
                                                  std::byte* lane_codes) {
  if constexpr (!kMeasure) return;
  _mm512_store_si512(lane_codes, codes);
  for (size_t i = 0; i < kQuarters; ++i) _mm512_store_ps(values + i * kVector, x[i]);
}

// Rows of one head.
struct Rows {
  const std::byte* data;
  ptrdiff_t stride;
  size_t count;
  // From what is read now to what is asked for: the next round's rows, which are too far apart for the processor to
  // guess them, or those behind the plane, where the next plane most often is.
  ptrdiff_t ahead;
};

// Only fp16 has every absmax as its scale: rounded to a subnormal one, an absmax can lie far outside.
template <Dtype kDtype, bool kMeasure, bool kLimit = kDtype != Dtype::kFloat16, bool kPrefetch = true>
void EncodeRows(const Rows& source, const Shape& shape, const float* inverses, std::byte* codes, Batch& batch) {
  constexpr size_t kQuarterBytes = kVector * DtypeBytes(kDtype);
  const size_t whole = shape.channels / kNqkv4Run, rest = shape.channels % kNqkv4Run;
  const unsigned group_shift = shape.group_shift;
  float* values = batch.values;
  std::byte* lane_codes = batch.codes;
  const std::byte* row = source.data;
  const auto codes_ahead = static_cast<ptrdiff_t>(source.count * shape.channels / 2);
  for (size_t r = 0; r < source.count; ++r, row += source.stride, inverses += shape.groups) {
    const std::byte* run = row;
    for (size_t i = 0; i < whole; ++i) {
      __m512 x[kQuarters];
      for (size_t q = 0; q < kQuarters; ++q) x[q] = Load16<kDtype>(run + q * kQuarterBytes);
      const __m512i run_codes = Codes<kLimit>(x, _mm512_set1_ps(inverses[i >> group_shift]));
      StoreRun(run_codes, codes);
      KeepForMeasure<kMeasure>(x, run_codes, values, lane_codes);
      if constexpr (kPrefetch) {
        for (size_t line = 0; line < kQuarters * kQuarterBytes; line += 64) {
          Prefetch(run, source.ahead + static_cast<ptrdiff_t>(line));
        }
      }
      Prefetch(codes, codes_ahead);  // A store that waits for its line holds up all those behind it.
      run += kQuarters * kQuarterBytes;
      codes += kNqkv4Run / 2;
      values += kNqkv4Run;
      lane_codes += kNqkv4Run;
    }
    if (rest == 0) continue;
    __m512 x[kQuarters];
    for (size_t q = 0; q < kQuarters; ++q) {
      const auto mask = static_cast<__mmask16>(LowBits<__mmask64>(rest) >> (q * kVector));
      x[q] = Load16<kDtype>(run + q * kQuarterBytes, mask);
    }
    const __m512i run_codes = Codes<kLimit>(x, _mm512_set1_ps(inverses[whole >> group_shift]));
    StoreShortRun(run_codes, rest, codes);
    KeepForMeasure<kMeasure>(x, run_codes, values, lane_codes);
    codes += rest / 2;
    values += kNqkv4Run;
    lane_codes += kNqkv4Run;
  }
}

// SumRow's first step.
[[gnu::always_inline]] inline void StoreFolded(__m512 lanes, float* target) {
  _mm256_store_ps(target, _mm256_add_ps(_mm512_castps512_ps256(lanes), _mm512_extractf32x8_ps(lanes, 1)));
}

// The energies of kRows rows at once: each is a chain of additions that a vector unit would wait for.
template <size_t kRows, bool kSignal = true>
void MeasureRows(const Shape& shape, const float* scales, size_t row, size_t lane, Batch& batch) {
  const size_t padded = shape.padded, groups = shape.groups;
  const unsigned group_shift = shape.group_shift;
  const float* values = batch.values + row * padded;
  const std::byte* codes = batch.codes + row * padded;
  scales += row * groups;
  const __m512 levels = _mm512_load_ps(kTables.levels.data());
  __m512 signal[kRows], error[kRows], decoded[kRows];
  for (size_t r = 0; r < kRows; ++r) signal[r] = error[r] = decoded[r] = _mm512_setzero_ps();
  for (size_t begin = 0, run = 0; begin < padded; begin += kNqkv4Run, ++run) {
    __m512 values_of_codes[kRows];
    __m512i run_codes[kRows];
    for (size_t r = 0; r < kRows; ++r) {
      values_of_codes[r] = _mm512_mul_ps(levels, _mm512_set1_ps(scales[r * groups + (run >> group_shift)]));
      run_codes[r] = _mm512_load_si512(codes + r * padded + begin);
    }
    for (size_t q = 0; q < kQuarters; ++q) {
      for (size_t r = 0; r < kRows; ++r) {
        const __m512 x = _mm512_load_ps(values + r * padded + begin + q * kVector);
        const __m512 y = _mm512_permutexvar_ps(run_codes[r], values_of_codes[r]);
        const __m512 difference = _mm512_sub_ps(x, y);
        if constexpr (kSignal) signal[r] = _mm512_fmadd_ps(x, x, signal[r]);
        error[r] = _mm512_fmadd_ps(difference, difference, error[r]);
        decoded[r] = _mm512_fmadd_ps(y, y, decoded[r]);
        run_codes[r] = _mm512_srli_epi32(run_codes[r], 8);
      }
    }
  }
  for (size_t r = 0; r < kRows; ++r) {
    if constexpr (kSignal) StoreFolded(signal[r], batch.rows.signal_lanes[lane + r]);
    StoreFolded(error[r], batch.rows.error_lanes[lane + r]);
    StoreFolded(decoded[r], batch.rows.decoded_lanes[lane + r]);
  }
}

// What the rows add to their channels' weighted energies.
template <size_t kRows>
void AddChannelEnergies(const Shape& shape, const float* values, const float* weights, float* channel_energies) {
  for (size_t c = 0; c < shape.channels; c += kVector) {
    __m512 energy = _mm512_load_ps(channel_energies + c);
    for (size_t r = 0; r < kRows; ++r) {
      const __m512 x = _mm512_load_ps(values + r * shape.padded + c);
      energy = _mm512_fmadd_ps(_mm512_mul_ps(x, _mm512_set1_ps(weights[r])), x, energy);
    }
    _mm512_store_ps(channel_energies + c, energy);
  }
}

// A batch never wraps around the lanes: its size is a power of two up to their number.
inline size_t BatchRows(const Shape& shape) {
  size_t rows = kBatchRows;
  while (rows * shape.padded > kBatchFloats) rows /= 2;
  return rows;
}

// A few tokens of all heads of the group.
// FloorEnergy of fidelity.h, sixteen channels at a time.
inline size_t CountAbove(const float* energies, size_t channels, int32_t bits) {
  const __m512i border = _mm512_set1_epi32(bits);
  int count = 0;
  for (size_t c = 0; c < channels; c += kVector) {
    const __m512i energy = _mm512_load_si512(energies + c);
    count += __builtin_popcount(_mm512_mask_cmpgt_epi32_mask(LowBits<__mmask16>(channels - c), energy, border));
  }
  return static_cast<size_t>(count);
}

inline int32_t LargestBits(const float* energies, size_t channels) {
  __m512i largest = _mm512_setzero_si512();
  for (size_t c = 0; c < channels; c += kVector) {
    largest = _mm512_max_epi32(largest, _mm512_maskz_load_epi32(LowBits<__mmask16>(channels - c), energies + c));
  }
  return _mm512_reduce_max_epi32(largest);
}

inline float FloorEnergyAvx512(const float* energies, size_t channels) {
  return SplitFloor(
      StrongChannels(channels), LargestBits(energies, channels),
      [&](int32_t bits) { return CountAbove(energies, channels, bits); },
      [&](int32_t bits) { return SumUpTo(energies, channels, bits); });
}

template <bool kStreaming>
[[gnu::always_inline]] inline void StoreRegister(std::byte* target, __m512i value) {
  if constexpr (kStreaming) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(target), value);
  } else {
    _mm512_storeu_si512(target, value);
  }
}

// The sixteen values that a group's codes can have. The lookups read no more of an index than the code.
template <Dtype kDtype>
struct DecodeTable {
  __m512i values;  // Twice, so that an index's fifth bit does not matter.

  [[gnu::always_inline]] explicit DecodeTable(uint16_t scale_bits) {
    const __m512 scale = _mm512_cvtph_ps(_mm256_set1_epi16(static_cast<int16_t>(scale_bits)));
    const __m512 products = _mm512_mul_ps(_mm512_load_ps(kTables.levels.data()), scale);
    __m256i half;
    if constexpr (kDtype == Dtype::kFloat16) {
      half = ToFloat16x16(products);
    } else {
      half = ToBfloat16x16(products);
    }
    values = _mm512_broadcast_i64x4(half);
  }

  // 64 elements from the 32 bytes of a run.
  template <bool kStreaming>
  [[gnu::always_inline]] void DecodeRun(__m256i run, std::byte* target) const {
    const __m512i codes = _mm512_cvtepu8_epi16(run);
    StoreRegister<kStreaming>(target, _mm512_permutexvar_epi16(codes, values));
    StoreRegister<kStreaming>(target + 64, _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 4), values));
  }
};

template <>
struct DecodeTable<Dtype::kFloat32> {
  __m512 values;

  [[gnu::always_inline]] explicit DecodeTable(uint16_t scale_bits)
      : values(_mm512_mul_ps(_mm512_load_ps(kTables.levels.data()),
                             _mm512_cvtph_ps(_mm256_set1_epi16(static_cast<int16_t>(scale_bits))))) {}

  template <bool kStreaming>
  [[gnu::always_inline]] void DecodeRun(__m256i run, std::byte* target) const {
    __m512 quarters[kQuarters];
    Decoded(run, quarters);
    for (size_t q = 0; q < kQuarters; ++q) {
      StoreRegister<kStreaming>(target + 64 * q, _mm512_castps_si512(quarters[q]));
    }
  }

  // The run's numbers, in order.
  [[gnu::always_inline]] void Decoded(__m256i run, __m512 quarters[kQuarters]) const {
    const __m512i first = _mm512_cvtepu8_epi32(_mm256_castsi256_si128(run));
    const __m512i second = _mm512_cvtepu8_epi32(_mm256_extracti128_si256(run, 1));
    quarters[0] = _mm512_permutexvar_ps(first, values);
    quarters[1] = _mm512_permutexvar_ps(second, values);
    quarters[2] = _mm512_permutexvar_ps(_mm512_srli_epi32(first, 4), values);
    quarters[3] = _mm512_permutexvar_ps(_mm512_srli_epi32(second, 4), values);
  }
};

// A short run's bytes as those of a whole run that begins with the same elements.
inline __m256i LoadShortRun(const std::byte* source, size_t n) {
  const __m512i bytes = _mm512_maskz_loadu_epi8(LowBits<__mmask64>(n / 2), source);
  const __m512i second = _mm512_sub_epi8(LoadTable(kTables.iota), _mm512_set1_epi8(static_cast<char>(n / 2)));
  const __m512i high = _mm512_permutexvar_epi8(second, _mm512_srli_epi16(bytes, 4));
  const __m512i codes =
      _mm512_and_si512(_mm512_mask_mov_epi8(high, LowBits<__mmask64>(n / 2), bytes), _mm512_set1_epi8(15));
  return _mm256_or_si256(_mm512_castsi512_si256(codes), _mm256_slli_epi16(_mm512_extracti64x4_epi64(codes, 1), 4));
}

template <Dtype kDtype>
void DecodeShortRun(const DecodeTable<kDtype>& table, const std::byte* source, size_t n, std::byte* target) {
  alignas(64) std::byte elements[kNqkv4Run * DtypeBytes(kDtype)];
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

}  // namespace nqkv::avx512
