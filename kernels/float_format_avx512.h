// Sixteen elements at a time between their dtype and fp32, as float_format.h says. For sources built with AVX-512.
#pragma once

#include <immintrin.h>

#include <cstddef>

#include "kernels/block_layout.h"

namespace nqkv {

// Elements whose bit in `mask` is clear are not read and become zero.
template <Dtype kDtype>
[[gnu::always_inline]] inline __m512 Load16(const std::byte* source, __mmask16 mask = 0xffff) {
  if constexpr (kDtype == Dtype::kFloat32) {
    return _mm512_maskz_loadu_ps(mask, source);
  } else {
    const __m256i bits = _mm256_maskz_loadu_epi16(mask, source);
    if constexpr (kDtype == Dtype::kFloat16) return _mm512_cvtph_ps(bits);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
}

[[gnu::always_inline]] inline __m256i ToFloat16x16(__m512 values) {
  return _mm512_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT);
}

// Rounded to nearest even, NaN kept quiet.
[[gnu::always_inline]] inline __m256i ToBfloat16x16(__m512 values) {
  const __m512i bits = _mm512_castps_si512(values);
  const __m512i high = _mm512_srli_epi32(bits, 16);
  const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
  const __m512i rounding = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
  const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, rounding), 16);
  const __m512i quiet = _mm512_or_si512(high, _mm512_set1_epi32(0x40));
  const __mmask16 nan = _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, nan, quiet));
}

}  // namespace nqkv
