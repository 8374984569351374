// Built with AVX-512 and run only where it is: nothing here may be inline code that other sources share.
//
// A run of 64 elements is the unit: one register of 64 bytes, in which byte v of 32-bit lane j stands for element
// 16 v + j ("lane order"). So four registers of sixteen fp32 numbers become one of codes without a crossing of lanes,
// and a shift brings each quarter's codes to where the lookup of sixteen levels reads them.
#include <immintrin.h>

#include <array>
#include <bit>
#include <cstring>
#include <type_traits>

#include "kernels/fidelity_avx2.h"
#include "kernels/float_format.h"
#include "kernels/float_format_avx512.h"
#include "kernels/nqkv4_codec.h"

namespace nqkv {

namespace {

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
template <Dtype kDtype>
[[gnu::always_inline]] inline __m512i Place(__m512 x, __m512 inverse) {
  __m512 scaled = _mm512_mul_ps(x, inverse);
  // Only fp16 has every absmax as its scale: rounded to a subnormal one, an absmax can lie far outside.
  if constexpr (kDtype != Dtype::kFloat16) {
    constexpr int kSmallerMagnitude = 2;
    scaled = _mm512_range_ps(scaled, _mm512_set1_ps(127.0f), kSmallerMagnitude);
  }
  return _mm512_castps_si512(_mm512_add_ps(scaled, _mm512_set1_ps(kRounder)));
}

// The codes of a run in lane order.
template <Dtype kDtype>
[[gnu::always_inline]] inline __m512i Codes(const __m512 x[kQuarters], __m512 inverse) {
  const __m512i lane_bytes = LoadTable(kTables.lane_bytes);
  __m512i places = Place<kDtype>(x[0], inverse);
  places = _mm512_mask_shuffle_epi8(places, 0x2222222222222222, Place<kDtype>(x[1], inverse), lane_bytes);
  places = _mm512_mask_shuffle_epi8(places, 0x4444444444444444, Place<kDtype>(x[2], inverse), lane_bytes);
  places = _mm512_mask_shuffle_epi8(places, 0x8888888888888888, Place<kDtype>(x[3], inverse), lane_bytes);
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

template <Dtype kDtype, bool kMeasure>
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
      const __m512i run_codes = Codes<kDtype>(x, _mm512_set1_ps(inverses[i >> group_shift]));
      StoreRun(run_codes, codes);
      KeepForMeasure<kMeasure>(x, run_codes, values, lane_codes);
      for (size_t line = 0; line < kQuarters * kQuarterBytes; line += 64)
        Prefetch(run, source.ahead + static_cast<ptrdiff_t>(line));
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
    const __m512i run_codes = Codes<kDtype>(x, _mm512_set1_ps(inverses[whole >> group_shift]));
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
template <size_t kRows>
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
        signal[r] = _mm512_fmadd_ps(x, x, signal[r]);
        error[r] = _mm512_fmadd_ps(difference, difference, error[r]);
        decoded[r] = _mm512_fmadd_ps(y, y, decoded[r]);
        run_codes[r] = _mm512_srli_epi32(run_codes[r], 8);
      }
    }
  }
  for (size_t r = 0; r < kRows; ++r) {
    StoreFolded(signal[r], batch.rows.signal_lanes[lane + r]);
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

// FloorEnergy of fidelity.h, sixteen channels at a time.
size_t CountAbove(const float* energies, size_t channels, int32_t bits) {
  const __m512i border = _mm512_set1_epi32(bits);
  int count = 0;
  for (size_t c = 0; c < channels; c += kVector) {
    const __m512i energy = _mm512_load_si512(energies + c);
    count += __builtin_popcount(_mm512_mask_cmpgt_epi32_mask(LowBits<__mmask16>(channels - c), energy, border));
  }
  return static_cast<size_t>(count);
}

int32_t LargestBits(const float* energies, size_t channels) {
  __m512i largest = _mm512_setzero_si512();
  for (size_t c = 0; c < channels; c += kVector) {
    largest = _mm512_max_epi32(largest, _mm512_maskz_load_epi32(LowBits<__mmask16>(channels - c), energies + c));
  }
  return _mm512_reduce_max_epi32(largest);
}

float FloorEnergyAvx512(const float* energies, size_t channels) {
  return SplitFloor(
      StrongChannels(channels), LargestBits(energies, channels),
      [&](int32_t bits) { return CountAbove(energies, channels, bits); },
      [&](int32_t bits) { return SumUpTo(energies, channels, bits); });
}

// Several heads at once, so that the source is read in the order in which it lies.
constexpr size_t kHeadsMax = 32;

struct HeadGroup {
  size_t first;
  size_t count;
  alignas(64) float channel_energies[kBatchFloats];  // [count][padded]
  HeadFidelity fidelity[kHeadsMax];
};

// What measuring adds to a head.
void MeasureBatch(const Shape& shape, const float* scales, size_t rows, size_t first_lane, Batch& batch,
                  float* channel_energies, HeadFidelity& fidelity) {
  if (rows < kLanes) ClearLanes(batch.rows);
  size_t r = 0;
  for (; r + kMeasuredRows <= rows; r += kMeasuredRows) {
    MeasureRows<kMeasuredRows>(shape, scales, r, first_lane + r, batch);
  }
  for (; r < rows; ++r) MeasureRows<1>(shape, scales, r, first_lane + r, batch);
  MakeWeights(batch.rows);
  AddRows(batch.rows, fidelity);
  if (rows == kBatchRows) {
    AddChannelEnergies<kBatchRows>(shape, batch.values, batch.rows.weights, channel_energies);
    return;
  }
  for (r = 0; r < rows; ++r) {
    AddChannelEnergies<1>(shape, batch.values + r * shape.padded, batch.rows.weights + first_lane + r,
                          channel_energies);
  }
}

// A batch never wraps around the lanes: its size is a power of two up to their number.
size_t BatchRows(const Shape& shape) {
  size_t rows = kBatchRows;
  while (rows * shape.padded > kBatchFloats) rows /= 2;
  return rows;
}

// A few tokens of all heads of the group.
template <Dtype kDtype, bool kMeasure>
bool EncodeTokens(const EncodeArgs& args, const Nqkv4Layout& layout, const Shape& shape, size_t token, size_t rows,
                  ptrdiff_t ahead, HeadGroup& heads, Scales<kDtype>& groups, Batch& batch) {
  const std::byte* source = args.source + static_cast<ptrdiff_t>(token) * args.token_stride +
                            static_cast<ptrdiff_t>(heads.first) * args.head_stride;
  Bits<kDtype>* absmax = groups.absmax;
  for (size_t h = 0; h < heads.count; ++h) {
    absmax = FindAbsmax<kDtype>(source + static_cast<ptrdiff_t>(h) * args.head_stride, args.token_stride, rows, shape,
                                absmax);
  }
  const size_t head_groups = rows * shape.groups;
  if (!MakeScales<kDtype>(heads.count * head_groups, groups)) return false;
  for (size_t h = 0; h < heads.count; ++h, source += args.head_stride) {
    const size_t head = heads.first + h, first_group = h * head_groups;
    std::memcpy(args.encoded.data() + layout.scales_offset(head, token), groups.scale_bits + first_group,
                head_groups * sizeof(uint16_t));
    EncodeRows<kDtype, kMeasure>({source, args.token_stride, rows, ahead}, shape, groups.inverses + first_group,
                                 args.encoded.data() + layout.codes_offset(head, token), batch);
    if constexpr (!kMeasure) continue;
    MeasureBatch(shape, groups.scales + first_group, rows, token % kLanes, batch,
                 heads.channel_energies + h * shape.padded, heads.fidelity[h]);
  }
  return true;
}

template <Dtype kDtype, bool kMeasure>
bool EncodeHeads(const EncodeArgs& args, const Nqkv4Layout& layout, const Shape& shape, HeadGroup& heads) {
  Batch batch;
  Scales<kDtype> groups;
  std::memset(heads.channel_energies, 0, heads.count * shape.padded * sizeof(float));
  for (size_t h = 0; h < heads.count; ++h) heads.fidelity[h] = HeadFidelity();
  const size_t batch_rows = BatchRows(shape);
  for (size_t token = 0; token < layout.rows; token += batch_rows) {
    const size_t left = layout.rows - token, rows = left < batch_rows ? left : batch_rows;
    const ptrdiff_t ahead = static_cast<ptrdiff_t>(batch_rows) * args.token_stride;
    if (!EncodeTokens<kDtype, kMeasure>(args, layout, shape, token, rows, ahead, heads, groups, batch)) return false;
  }
  return true;
}

template <Dtype kDtype, bool kMeasure>
EncodeResult Encode(const EncodeArgs& args) {
  const Nqkv4Layout layout(args.codec, args.shape);
  const size_t channels = args.shape.channels;
  const Shape shape = {.channels = channels,
                       .padded = (channels + kNqkv4Run - 1) / kNqkv4Run * kNqkv4Run,
                       .group = layout.group,
                       .groups = layout.groups,
                       .group_shift = static_cast<unsigned>(std::countr_zero(layout.group / kNqkv4Run))};
  const size_t room = kBatchFloats / shape.padded, heads_max = room < kHeadsMax ? room : kHeadsMax;
  EncodeResult result;
  PlaneFidelity fidelity;
  HeadGroup heads;
  for (heads.first = 0; heads.first < layout.strips; heads.first += heads.count) {
    const size_t left = layout.strips - heads.first;
    heads.count = left < heads_max ? left : heads_max;
    if (!EncodeHeads<kDtype, kMeasure>(args, layout, shape, heads)) return Unrepresentable(args);
    if constexpr (!kMeasure) continue;
    for (size_t h = 0; h < heads.count; ++h) {
      fidelity.Add(heads.fidelity[h], FloorEnergyAvx512(heads.channel_energies + h * shape.padded, channels));
    }
    const size_t offset = heads.first * layout.strip_bytes();
    result.crc32c = ExtendCrc32c(result.crc32c, {args.encoded.data() + offset, heads.count * layout.strip_bytes()});
  }
  result.errors = fidelity.errors();
  return result;
}

template <Dtype kDtype>
EncodeResult Encode(const EncodeArgs& args) {
  return args.measure ? Encode<kDtype, true>(args) : Encode<kDtype, false>(args);
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
    const __m512i first = _mm512_cvtepu8_epi32(_mm256_castsi256_si128(run));
    const __m512i second = _mm512_cvtepu8_epi32(_mm256_extracti128_si256(run, 1));
    const auto store = [&](size_t quarter, __m512i codes) {
      StoreRegister<kStreaming>(target + 64 * quarter, _mm512_castps_si512(_mm512_permutexvar_ps(codes, values)));
    };
    store(0, first);
    store(1, second);
    store(2, _mm512_srli_epi32(first, 4));
    store(3, _mm512_srli_epi32(second, 4));
  }
};

// A short run's bytes as those of a whole run that begins with the same elements.
__m256i LoadShortRun(const std::byte* source, size_t n) {
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

template <Dtype kDtype, bool kStreaming>
void Decode(const DecodeArgs& args) {
  const Nqkv4Layout layout(args.codec, args.shape);
  // Planes lie one behind the other. While this one is written around the cache, the next one's codes are asked for.
  const std::byte* next_plane = args.encoded.data() + args.encoded.size();
  const size_t share = layout.strips * layout.row_code_bytes();
  for (size_t t = 0; t < layout.rows; ++t) {
    if constexpr (kStreaming) {
      for (size_t i = 0; i < share; i += 64) Prefetch(next_plane, static_cast<ptrdiff_t>(t * share + i));
    }
    std::byte* target = args.target + static_cast<ptrdiff_t>(t) * args.token_stride;
    for (size_t h = args.head_begin; h < args.head_end; ++h, target += args.head_stride) {
      const std::byte* strip = args.encoded.data() + h * layout.strip_bytes();
      DecodeRow<kDtype, kStreaming>(layout, strip + t * layout.row_code_bytes(),
                                    strip + layout.scales_offset() + t * layout.groups * sizeof(uint16_t), target);
    }
  }
  if constexpr (kStreaming) _mm_sfence();
}

// Stores around the cache must be aligned.
bool CanStream(const DecodeArgs& args) {
  const auto bits = reinterpret_cast<uintptr_t>(args.target) | static_cast<uintptr_t>(args.token_stride) |
                    static_cast<uintptr_t>(args.head_stride);
  return bits % 64 == 0;
}

template <Dtype kDtype>
void Decode(const DecodeArgs& args) {
  args.streaming&& CanStream(args) ? Decode<kDtype, true>(args) : Decode<kDtype, false>(args);
}

}  // namespace

EncodeResult Nqkv4EncodeAvx512(const EncodeArgs& args) {
  switch (args.shape.dtype) {
    case Dtype::kFloat16:
      return Encode<Dtype::kFloat16>(args);
    case Dtype::kBfloat16:
      return Encode<Dtype::kBfloat16>(args);
    default:
      return Encode<Dtype::kFloat32>(args);
  }
}

void Nqkv4DecodeAvx512(const DecodeArgs& args) {
  switch (args.dtype) {
    case Dtype::kFloat16:
      return Decode<Dtype::kFloat16>(args);
    case Dtype::kBfloat16:
      return Decode<Dtype::kBfloat16>(args);
    default:
      return Decode<Dtype::kFloat32>(args);
  }
}

}  // namespace nqkv
