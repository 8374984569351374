// Eight elements at a time between their dtype and fp32, as float_format.h says. For sources built with AVX2 and F16C.
#pragma once

#include <immintrin.h>

#include <cstddef>

#include "kernels/block_layout.h"

namespace nqkv {

template <Dtype kDtype>
[[gnu::always_inline]] inline __m256 Load8(const std::byte* source) {
  if constexpr (kDtype == Dtype::kFloat32) {
    return _mm256_loadu_ps(reinterpret_cast<const float*>(source));
  } else {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source));
    if constexpr (kDtype == Dtype::kFloat16) return _mm256_cvtph_ps(bits);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
}

// fp32 bits to bf16, rounded to nearest even, in the low halves of 32-bit lanes. Not for NaN.
[[gnu::always_inline]] inline __m256i RoundToBfloat16(__m256 values) {
  const __m256i bits = _mm256_castps_si256(values);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounding = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
  return _mm256_srli_epi32(_mm256_add_epi32(bits, rounding), 16);
}

[[gnu::always_inline]] inline __m128i ToBfloat16(__m256 values) {
  const __m256i quiet = _mm256_or_si256(_mm256_srli_epi32(_mm256_castps_si256(values), 16), _mm256_set1_epi32(0x40));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(values, values, _CMP_UNORD_Q));
  const __m256i bits = _mm256_blendv_epi8(RoundToBfloat16(values), quiet, nan);
  return _mm_packus_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
}

template <Dtype kDtype>
[[gnu::always_inline]] inline void Store8(std::byte* target, __m256 values) {
  if constexpr (kDtype == Dtype::kFloat32) {
    _mm256_storeu_ps(reinterpret_cast<float*>(target), values);
  } else if constexpr (kDtype == Dtype::kFloat16) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(target), _mm256_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT));
  } else {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(target), ToBfloat16(values));
  }
}

}  // namespace nqkv
