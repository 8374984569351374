// Sixteen fp32 numbers as the codecs' vector paths use them: here one register of AVX-512. floats16_avx2.h has the same
// operations. For sources built with AVX-512.
#pragma once

#include <immintrin.h>

#include <bit>
#include <cstddef>
#include <cstdint>

#include "kernels/float_format_avx512.h"
#include "kernels/nqkv4_rows_avx512.h"

namespace nqkv::avx512 {

// Of a stage of the Hadamard transform: 1 for the lower of two neighbours 1, 2, 4 or 8 apart, -1 for the upper.
struct StageSigns {
  alignas(64) float of[4][kVector];
};
constexpr StageSigns MakeStageSigns() {
  StageSigns signs = {};
  for (size_t stage = 0; stage < 4; ++stage) {
    for (size_t i = 0; i < kVector; ++i) signs.of[stage][i] = (i >> stage) % 2 == 0 ? 1.0f : -1.0f;
  }
  return signs;
}
inline constexpr StageSigns kStageSigns = MakeStageSigns();

struct Floats16 {
  __m512 v;

  static Floats16 Zero() { return {_mm512_setzero_ps()}; }
  static Floats16 All(float value) { return {_mm512_set1_ps(value)}; }
  static Floats16 LoadAligned(const float* source) { return {_mm512_load_ps(source)}; }
  void StoreAligned(float* target) const { _mm512_store_ps(target, v); }

  // The first `count` of sixteen elements, 8 or 16; the others become zero or are not written.
  static __mmask16 MaskOf(size_t count) { return static_cast<__mmask16>(count >= 16 ? 0xffff : 0xff); }
  template <Dtype kDtype>
  [[gnu::always_inline]] static Floats16 Load(const std::byte* source, size_t count) {
    return {Load16<kDtype>(source, MaskOf(count))};
  }
  // Around the cache, all sixteen, to a multiple of their size.
  template <Dtype kDtype>
  [[gnu::always_inline]] void Stream(std::byte* target) const {
    if constexpr (kDtype == Dtype::kFloat32) {
      _mm512_stream_si512(reinterpret_cast<__m512i*>(target), _mm512_castps_si512(v));
    } else if constexpr (kDtype == Dtype::kFloat16) {
      _mm256_stream_si256(reinterpret_cast<__m256i*>(target), ToFloat16x16(v));
    } else {
      _mm256_stream_si256(reinterpret_cast<__m256i*>(target), ToBfloat16x16(v));
    }
  }
  template <Dtype kDtype>
  [[gnu::always_inline]] void Store(std::byte* target, size_t count) const {
    const __mmask16 mask = MaskOf(count);
    if constexpr (kDtype == Dtype::kFloat32) {
      _mm512_mask_storeu_ps(target, mask, v);
    } else if constexpr (kDtype == Dtype::kFloat16) {
      _mm256_mask_storeu_epi16(target, mask, ToFloat16x16(v));
    } else {
      _mm256_mask_storeu_epi16(target, mask, ToBfloat16x16(v));
    }
  }

  // Eight-bit places: rounded to nearest even and limited to -127 .. 127.
  [[gnu::always_inline]] static Floats16 LoadPlaces(const std::byte* source, size_t count) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(MaskOf(count), source)))};
  }
  // Returns the places as numbers.
  [[gnu::always_inline]] Floats16 StorePlaces(std::byte* target, size_t count) const {
    __m512i places = _mm512_cvtps_epi32(v);
    places = _mm512_min_epi32(_mm512_max_epi32(places, _mm512_set1_epi32(-127)), _mm512_set1_epi32(127));
    _mm_mask_storeu_epi8(target, MaskOf(count), _mm512_cvtepi32_epi8(places));
    return {_mm512_cvtepi32_ps(places)};
  }

  template <Dtype kDtype>
  [[gnu::always_inline]] static float LoadOne(const std::byte* source) {
    return _mm512_cvtss_f32(Load16<kDtype>(source, 1));
  }

  // fp16 scales as q8 reads them.
  static __m512 ReadScales(__m256i bits) {
    const __m256i exponent = _mm256_set1_epi16(0x7c00);
    const __mmask16 finite = _mm256_cmpneq_epi16_mask(_mm256_and_si256(bits, exponent), exponent);
    return _mm512_cvtph_ps(_mm256_maskz_mov_epi16(finite, bits));
  }
  static Floats16 LoadScales(const std::byte* source, size_t count) {
    return {ReadScales(_mm256_maskz_loadu_epi16(MaskOf(count), source))};
  }
  // These numbers, not negative, as fp16 bits.
  void StoreScales(std::byte* target, size_t count) const {
    _mm256_mask_storeu_epi16(target, MaskOf(count), ToFloat16x16(v));
  }
  // 127 / scale, 0 for 0.
  static Floats16 InverseOf(Floats16 scale) {
    const __mmask16 nonzero = _mm512_cmp_ps_mask(scale.v, _mm512_setzero_ps(), _CMP_NEQ_OQ);
    return {_mm512_maskz_div_ps(nonzero, _mm512_set1_ps(127.0f), scale.v)};
  }

  Floats16 operator+(Floats16 other) const { return {_mm512_add_ps(v, other.v)}; }
  Floats16 operator-(Floats16 other) const { return {_mm512_sub_ps(v, other.v)}; }
  Floats16 operator*(Floats16 other) const { return {_mm512_mul_ps(v, other.v)}; }
  // this * b + c, rounded once.
  Floats16 Fma(Floats16 b, Floats16 c) const { return {_mm512_fmadd_ps(v, b.v, c.v)}; }

  // The larger of this and the other's magnitude, as integers, so that NaN is a maximum.
  Floats16 MaxMagnitude(Floats16 other) const {
    const __m512i magnitude = _mm512_and_si512(_mm512_castps_si512(other.v), _mm512_set1_epi32(0x7fffffff));
    return {_mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(v), magnitude))};
  }
  // The largest of all sixteen, which are not negative.
  float Largest() const {
    return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(_mm512_reduce_max_epi32(_mm512_castps_si512(v)))));
  }
  // Whether all eight are finite.
  static bool AreFinite(const float* eight) {
    return _mm256_cmp_ps_mask(_mm256_load_ps(eight), _mm256_set1_ps(__builtin_inff()), _CMP_NLT_UQ) == 0;
  }
  bool AnyBeyondScales() const {
    return _mm512_cmpgt_epi32_mask(_mm512_castps_si512(v), _mm512_set1_epi32(kScaleRangeEndBits - 1)) != 0;
  }

  // SumRow's first step: eight lanes.
  void StoreFolded(float* target) const { avx512::StoreFolded(v, target); }

  // A stage of the Hadamard transform between neighbours `kDistance` apart, 1 to 8.
  template <size_t kDistance>
  [[gnu::always_inline]] Floats16 Stage() const {
    __m512 partner;
    if constexpr (kDistance == 1) {
      partner = _mm512_permute_ps(v, 0xb1);
    } else if constexpr (kDistance == 2) {
      partner = _mm512_permute_ps(v, 0x4e);
    } else if constexpr (kDistance == 4) {
      partner = _mm512_shuffle_f32x4(v, v, 0xb1);
    } else {
      partner = _mm512_shuffle_f32x4(v, v, 0x4e);
    }
    // a + b is x + partner; a - b is partner - x, where x is the upper one.
    return {_mm512_fmadd_ps(v, _mm512_load_ps(kStageSigns.of[std::countr_zero(kDistance)]), partner)};
  }

  static float FloorOf(const float* energies, size_t channels) { return FloorEnergyAvx512(energies, channels); }
};

}  // namespace nqkv::avx512
