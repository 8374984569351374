// Sixteen fp32 numbers as the codecs' vector paths use them: here two registers of AVX2. floats16_avx512.h has the same
// operations and says what each does. For sources built with AVX2, FMA and F16C.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/float_format_avx2.h"
#include "kernels/nqkv4_rows_avx2.h"

namespace nqkv::avx2 {

struct Floats16 {
  __m256 low, high;

  static Floats16 Zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static Floats16 All(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
  static Floats16 LoadAligned(const float* source) {
    return {_mm256_load_ps(source), _mm256_load_ps(source + kVector)};
  }
  void StoreAligned(float* target) const {
    _mm256_store_ps(target, low);
    _mm256_store_ps(target + kVector, high);
  }

  template <Dtype kDtype>
  [[gnu::always_inline]] static Floats16 Load(const std::byte* source, size_t count) {
    return {Load8<kDtype>(source),
            count < 16 ? _mm256_setzero_ps() : Load8<kDtype>(source + kVector * DtypeBytes(kDtype))};
  }
  template <Dtype kDtype>
  [[gnu::always_inline]] void Stream(std::byte* target) const {
    if constexpr (kDtype == Dtype::kFloat32) {
      _mm256_stream_ps(reinterpret_cast<float*>(target), low);
      _mm256_stream_ps(reinterpret_cast<float*>(target) + kVector, high);
    } else {
      alignas(32) std::byte elements[32];
      Store<kDtype>(elements, 16);
      _mm256_stream_si256(reinterpret_cast<__m256i*>(target),
                          _mm256_load_si256(reinterpret_cast<const __m256i*>(elements)));
    }
  }
  template <Dtype kDtype>
  [[gnu::always_inline]] void Store(std::byte* target, size_t count) const {
    Store8<kDtype>(target, low);
    if (count >= 16) Store8<kDtype>(target + kVector * DtypeBytes(kDtype), high);
  }

  [[gnu::always_inline]] static Floats16 LoadPlaces(const std::byte* source, size_t count) {
    const auto load = [](const std::byte* bytes) {
      return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes))));
    };
    return {load(source), count < 16 ? _mm256_setzero_ps() : load(source + kVector)};
  }
  [[gnu::always_inline]] Floats16 StorePlaces(std::byte* target, size_t count) const {
    const auto limited = [](__m256 values) {
      const __m256i places = _mm256_cvtps_epi32(values);
      return _mm256_min_epi32(_mm256_max_epi32(places, _mm256_set1_epi32(-127)), _mm256_set1_epi32(127));
    };
    const __m256i first = limited(low), second = limited(high);
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(first, second), 0xd8);
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    if (count < 16) {
      _mm_storel_epi64(reinterpret_cast<__m128i*>(target), bytes);
    } else {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(target), bytes);
    }
    return {_mm256_cvtepi32_ps(first), _mm256_cvtepi32_ps(second)};
  }

  template <Dtype kDtype>
  [[gnu::always_inline]] static float LoadOne(const std::byte* source) {
    if constexpr (kDtype == Dtype::kFloat32) {
      float value;
      __builtin_memcpy(&value, source, sizeof(value));
      return value;
    } else {
      uint16_t bits;
      __builtin_memcpy(&bits, source, sizeof(bits));
      if constexpr (kDtype == Dtype::kFloat16) return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits)));
      return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(static_cast<int>(uint32_t{bits} << 16))));
    }
  }

  static __m256 ReadScales(__m128i bits) {
    const __m128i exponent = _mm_set1_epi16(0x7c00);
    const __m128i infinite = _mm_cmpeq_epi16(_mm_and_si128(bits, exponent), exponent);
    return _mm256_cvtph_ps(_mm_andnot_si128(infinite, bits));
  }
  static Floats16 LoadScales(const std::byte* source, size_t count) {
    const auto load = [](const std::byte* bytes) {
      return ReadScales(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
    };
    return {load(source), count < 16 ? _mm256_setzero_ps() : load(source + kVector * sizeof(uint16_t))};
  }
  void StoreScales(std::byte* target, size_t count) const { Store<Dtype::kFloat16>(target, count); }
  static Floats16 InverseOf(Floats16 scale) {
    const auto inverse = [](__m256 one) {
      const __m256 nonzero = _mm256_cmp_ps(one, _mm256_setzero_ps(), _CMP_NEQ_OQ);
      return _mm256_and_ps(_mm256_div_ps(_mm256_set1_ps(127.0f), one), nonzero);
    };
    return {inverse(scale.low), inverse(scale.high)};
  }

  Floats16 operator+(Floats16 other) const { return {_mm256_add_ps(low, other.low), _mm256_add_ps(high, other.high)}; }
  Floats16 operator-(Floats16 other) const { return {_mm256_sub_ps(low, other.low), _mm256_sub_ps(high, other.high)}; }
  Floats16 operator*(Floats16 other) const { return {_mm256_mul_ps(low, other.low), _mm256_mul_ps(high, other.high)}; }
  Floats16 Fma(Floats16 b, Floats16 c) const {
    return {_mm256_fmadd_ps(low, b.low, c.low), _mm256_fmadd_ps(high, b.high, c.high)};
  }

  Floats16 MaxMagnitude(Floats16 other) const {
    const auto larger = [](__m256 a, __m256 b) {
      const __m256i magnitude = _mm256_and_si256(_mm256_castps_si256(b), _mm256_set1_epi32(0x7fffffff));
      return _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(a), magnitude));
    };
    return {larger(low, other.low), larger(high, other.high)};
  }
  float Largest() const {
    const __m256i both = _mm256_max_epi32(_mm256_castps_si256(low), _mm256_castps_si256(high));
    __m128i four = _mm_max_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
    four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1));
    return _mm_cvtss_f32(_mm_castsi128_ps(four));
  }
  static bool AreFinite(const float* eight) {
    const __m256 not_below = _mm256_cmp_ps(_mm256_load_ps(eight), _mm256_set1_ps(__builtin_inff()), _CMP_NLT_UQ);
    return _mm256_movemask_ps(not_below) == 0;
  }
  bool AnyBeyondScales() const {
    const __m256i border = _mm256_set1_epi32(kScaleRangeEndBits - 1);
    const __m256i beyond = _mm256_or_si256(_mm256_cmpgt_epi32(_mm256_castps_si256(low), border),
                                           _mm256_cmpgt_epi32(_mm256_castps_si256(high), border));
    return _mm256_movemask_epi8(beyond) != 0;
  }

  void StoreFolded(float* target) const { _mm256_store_ps(target, _mm256_add_ps(low, high)); }

  template <size_t kDistance>
  [[gnu::always_inline]] Floats16 Stage() const {
    if constexpr (kDistance == 8) {
      return {_mm256_add_ps(low, high), _mm256_sub_ps(low, high)};
    } else {
      const auto stage = [](__m256 x) {
        __m256 partner;
        if constexpr (kDistance == 1) {
          partner = _mm256_permute_ps(x, 0xb1);
        } else if constexpr (kDistance == 2) {
          partner = _mm256_permute_ps(x, 0x4e);
        } else {
          partner = _mm256_permute2f128_ps(x, x, 1);
        }
        constexpr int kUpper = kDistance == 1 ? 0xaa : kDistance == 2 ? 0xcc : 0xf0;
        return _mm256_blend_ps(_mm256_add_ps(x, partner), _mm256_sub_ps(partner, x), kUpper);
      };
      return {stage(low), stage(high)};
    }
  }

  static float FloorOf(const float* energies, size_t channels) { return FloorEnergyAvx2(energies, channels); }
};

}  // namespace nqkv::avx2
