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
constexpr size_t kBatchGroups = kBatchFloats / kNqkv4Run;

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
    for (int threshold : kNqkv4Thresholds) code = static_cast<uint8_t>(code + (place > threshold));
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

struct Shape {
  size_t channels;
  size_t padded;  // Up to a whole run. The padding is zeros, which change no sum and no maximum.
  size_t group;
  size_t groups;
};

// An element's bits as an integer.
template <Dtype kDtype>
using Bits = std::conditional_t<kDtype == Dtype::kFloat32, uint32_t, uint16_t>;

// Up to eight tokens' rows of one head, on the way from source to codes.
template <Dtype kDtype>
struct Batch {
  alignas(64) float values[kBatchFloats];
  alignas(64) Bits<kDtype> absmax[kBatchGroups + kVector] = {};
  alignas(64) float scales[kBatchGroups + kVector];    // As fp32.
  alignas(64) float inverses[kBatchGroups + kVector];  // 127 / scale.
  alignas(64) uint16_t scale_bits[kBatchGroups + kVector];
  RowBatch rows;
};

// The largest magnitude as the source's own bits, which order as the magnitudes do: NaN is a maximum.
template <Dtype kDtype>
[[gnu::always_inline]] inline Bits<kDtype> Absmax(const std::byte* source, size_t count) {
  constexpr size_t kElements = 64 / sizeof(Bits<kDtype>);
  if constexpr (kDtype == Dtype::kFloat32) {
    __m512i largest = _mm512_setzero_si512();
    for (size_t i = 0; i < count; i += kElements) {
      const __m512i bits = _mm512_maskz_loadu_epi32(LowBits<__mmask16>(count - i), source + i * sizeof(float));
      largest = _mm512_max_epu32(largest, _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff)));
    }
    return static_cast<uint32_t>(_mm512_reduce_max_epu32(largest));
  } else {
    // Their complement, because what finds the one of eight lanes finds the least.
    const __m512i magnitude = _mm512_set1_epi16(0x7fff);
    __m512i least = magnitude;
    for (size_t i = 0; i < count; i += kElements) {
      const __m512i bits = _mm512_maskz_loadu_epi16(LowBits<__mmask32>(count - i), source + i * sizeof(uint16_t));
      least = _mm512_min_epu16(least, _mm512_andnot_si512(bits, magnitude));
    }
    const __m256i half = _mm256_min_epu16(_mm512_castsi512_si256(least), _mm512_extracti64x4_epi64(least, 1));
    const __m128i quarter = _mm_min_epu16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    return static_cast<uint16_t>(_mm_cvtsi128_si32(_mm_minpos_epu16(quarter)) ^ 0x7fff);
  }
}

// Scales and their inverses of all groups of the batch. False when one has none. What stands behind the last group is
// zero or an earlier batch's.
template <Dtype kDtype>
[[gnu::always_inline]] inline bool MakeScales(size_t group_count, Batch<kDtype>& batch) {
  for (size_t i = 0; i < group_count; i += kVector) {
    const __m512 absmax = Load16<kDtype>(reinterpret_cast<const std::byte*>(batch.absmax + i));
    const __m512i border = _mm512_set1_epi32(kScaleRangeEndBits - 1);
    if (_mm512_cmpgt_epi32_mask(_mm512_castps_si512(absmax), border) != 0) return false;
    const __m256i bits = ToFloat16x16(absmax);
    const __m512 scale = _mm512_cvtph_ps(bits);
    const __mmask16 nonzero = _mm512_cmp_ps_mask(scale, _mm512_setzero_ps(), _CMP_NEQ_OQ);
    _mm256_store_si256(reinterpret_cast<__m256i*>(batch.scale_bits + i), bits);
    _mm512_store_ps(batch.scales + i, scale);
    _mm512_store_ps(batch.inverses + i, _mm512_maskz_div_ps(nonzero, _mm512_set1_ps(127.0f), scale));
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

// The lanes of a row's energies.
struct RowSums {
  __m512 signal = _mm512_setzero_ps();
  __m512 error = _mm512_setzero_ps();
  __m512 decoded = _mm512_setzero_ps();
};

[[gnu::always_inline]] inline void MeasureRun(const __m512 x[kQuarters], __m512i codes, __m512 values_of_codes,
                                              float* values, RowSums& sums) {
  for (size_t i = 0; i < kQuarters; ++i) {
    const __m512i quarter = i == 0 ? codes : _mm512_srli_epi32(codes, static_cast<unsigned>(8 * i));
    const __m512 y = _mm512_permutexvar_ps(quarter, values_of_codes);
    const __m512 difference = _mm512_sub_ps(x[i], y);
    sums.signal = _mm512_fmadd_ps(x[i], x[i], sums.signal);
    sums.error = _mm512_fmadd_ps(difference, difference, sums.error);
    sums.decoded = _mm512_fmadd_ps(y, y, sums.decoded);
    _mm512_store_ps(values + i * kVector, x[i]);
  }
}

// `values` receives the row as fp32 when it is measured.
template <Dtype kDtype, bool kMeasure>
[[gnu::always_inline]] inline void EncodeRow(const Shape& shape, const std::byte* source, const float* scales,
                                             const float* inverses, std::byte* codes, float* values, RowSums& sums) {
  size_t begin = 0;
  for (size_t g = 0; g < shape.groups; ++g) {
    const __m512 inverse = _mm512_set1_ps(inverses[g]);
    const __m512 values_of_codes = _mm512_mul_ps(_mm512_load_ps(kTables.levels.data()), _mm512_set1_ps(scales[g]));
    const size_t end = begin + shape.group < shape.channels ? begin + shape.group : shape.channels;
    for (; begin < end; begin += kNqkv4Run) {
      const std::byte* run = source + begin * DtypeBytes(kDtype);
      const size_t n = shape.channels - begin;
      __m512 x[kQuarters];
      __m512i run_codes;
      if (n >= kNqkv4Run) {
        for (size_t i = 0; i < kQuarters; ++i) x[i] = Load16<kDtype>(run + i * kVector * DtypeBytes(kDtype));
        run_codes = Codes<kDtype>(x, inverse);
        StoreRun(run_codes, codes + begin / 2);
      } else {
        for (size_t i = 0; i < kQuarters; ++i) {
          const auto mask = static_cast<__mmask16>(LowBits<__mmask64>(n) >> (i * kVector));
          x[i] = Load16<kDtype>(run + i * kVector * DtypeBytes(kDtype), mask);
        }
        run_codes = Codes<kDtype>(x, inverse);
        StoreShortRun(run_codes, n, codes + begin / 2);
      }
      if constexpr (kMeasure) MeasureRun(x, run_codes, values_of_codes, values + begin, sums);
    }
  }
}

// SumRow's first step.
[[gnu::always_inline]] inline void StoreFolded(__m512 lanes, float* target) {
  _mm256_store_ps(target, _mm256_add_ps(_mm512_castps512_ps256(lanes), _mm512_extractf32x8_ps(lanes, 1)));
}

// What the rows add to their channels' weighted energies.
template <size_t kRows>
[[gnu::always_inline]] inline void AddChannelEnergies(const Shape& shape, const float* values, const float* weights,
                                                      float* channel_energies) {
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

struct BatchPlace {
  size_t head;
  size_t token;
  size_t rows;
};

const std::byte* SourceOf(const EncodeArgs& args, const BatchPlace& place) {
  return args.source + static_cast<ptrdiff_t>(place.token) * args.token_stride +
         static_cast<ptrdiff_t>(place.head) * args.head_stride;
}

// Asks for rows of a later batch: they are far apart and few, so that the processor does not guess them. Inlined by
// force: GCC drops calls of functions that do nothing but prefetch.
[[gnu::always_inline]] inline void Prefetch(const EncodeArgs& args, const BatchPlace& place) {
  const size_t row_bytes = args.shape.channels * DtypeBytes(args.shape.dtype);
  const std::byte* row = SourceOf(args, place);
  for (size_t r = 0; r < place.rows; ++r, row += args.token_stride) {
    for (size_t i = 0; i < row_bytes; i += 64) _mm_prefetch(reinterpret_cast<const char*>(row + i), _MM_HINT_T0);
  }
}

template <Dtype kDtype, bool kMeasure>
bool EncodeBatch(const EncodeArgs& args, const Nqkv4Layout& layout, const Shape& shape, const BatchPlace& place,
                 Batch<kDtype>& batch, float* channel_energies, HeadFidelity& fidelity) {
  const size_t rows = place.rows, first_lane = place.token % kLanes;
  const std::byte* source = SourceOf(args, place);
  for (size_t r = 0; r < rows; ++r) {
    const std::byte* row = source + static_cast<ptrdiff_t>(r) * args.token_stride;
    for (size_t g = 0, begin = 0; g < shape.groups; ++g, begin += shape.group) {
      const size_t left = shape.channels - begin;
      batch.absmax[r * shape.groups + g] =
          Absmax<kDtype>(row + begin * DtypeBytes(kDtype), left < shape.group ? left : shape.group);
    }
  }
  const size_t group_count = rows * shape.groups;
  if (!MakeScales<kDtype>(group_count, batch)) return false;
  std::byte* strip = args.encoded.data() + place.head * layout.strip_bytes();
  std::memcpy(strip + layout.scales_offset() + place.token * shape.groups * sizeof(uint16_t), batch.scale_bits,
              group_count * sizeof(uint16_t));
  if (kMeasure && rows < kLanes) ClearLanes(batch.rows);
  for (size_t r = 0; r < rows; ++r) {
    RowSums sums;
    const size_t lane = first_lane + r, g = r * shape.groups;
    EncodeRow<kDtype, kMeasure>(shape, source + static_cast<ptrdiff_t>(r) * args.token_stride, batch.scales + g,
                                batch.inverses + g, strip + (place.token + r) * layout.row_code_bytes(),
                                batch.values + r * shape.padded, sums);
    if constexpr (!kMeasure) continue;
    StoreFolded(sums.signal, batch.rows.signal_lanes[lane]);
    StoreFolded(sums.error, batch.rows.error_lanes[lane]);
    StoreFolded(sums.decoded, batch.rows.decoded_lanes[lane]);
  }
  if constexpr (!kMeasure) return true;
  MakeWeights(batch.rows);
  AddRows(batch.rows, fidelity);
  if (rows == kBatchRows) {
    AddChannelEnergies<kBatchRows>(shape, batch.values, batch.rows.weights, channel_energies);
  } else {
    for (size_t r = 0; r < rows; ++r) {
      AddChannelEnergies<1>(shape, batch.values + r * shape.padded, batch.rows.weights + first_lane + r,
                            channel_energies);
    }
  }
  return true;
}

// A batch never wraps around the lanes: its size is a power of two up to their number.
size_t BatchRows(const Shape& shape) {
  size_t rows = kBatchRows;
  while (rows * shape.padded > kBatchFloats) rows /= 2;
  return rows;
}

template <Dtype kDtype, bool kMeasure>
bool EncodeHeads(const EncodeArgs& args, const Nqkv4Layout& layout, const Shape& shape, HeadGroup& heads) {
  Batch<kDtype> batch;
  std::memset(heads.channel_energies, 0, heads.count * shape.padded * sizeof(float));
  for (size_t h = 0; h < heads.count; ++h) heads.fidelity[h] = HeadFidelity();
  const size_t batch_rows = BatchRows(shape);
  const auto place_of = [&](size_t token, size_t h) {
    const size_t left = token < layout.rows ? layout.rows - token : 0;
    return BatchPlace{heads.first + h, token, left < batch_rows ? left : batch_rows};
  };
  for (size_t token = 0; token < layout.rows; token += batch_rows) {
    for (size_t h = 0; h < heads.count; ++h) {
      Prefetch(args, place_of(token + batch_rows, h));
      if (!EncodeBatch<kDtype, kMeasure>(args, layout, shape, place_of(token, h), batch,
                                         heads.channel_energies + h * shape.padded, heads.fidelity[h])) {
        return false;
      }
    }
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
                       .groups = layout.groups};
  const size_t room = kBatchFloats / shape.padded, heads_max = room < kHeadsMax ? room : kHeadsMax;
  EncodeResult result;
  PlaneFidelity fidelity;
  HeadGroup heads;
  for (heads.first = 0; heads.first < layout.strips; heads.first += heads.count) {
    const size_t left = layout.strips - heads.first;
    heads.count = left < heads_max ? left : heads_max;
    if (!EncodeHeads<kDtype, kMeasure>(args, layout, shape, heads)) return Nqkv4Unrepresentable(args);
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
  for (size_t t = 0; t < layout.rows; ++t) {
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
