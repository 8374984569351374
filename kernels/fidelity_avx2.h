// The sums of fidelity.h, eight rows or channels at a time. For sources built with AVX2.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/fidelity.h"

namespace nqkv {

// Eight registers to one of eight results, each the sum (or maximum) of one register's lanes in SumLanes' order.
template <typename Combine>
[[gnu::always_inline]] inline __m256 ReduceEight(const float (*rows)[kLanes], Combine combine) {
  __m256 halves[4];
  for (size_t i = 0; i < 4; ++i) {
    const __m256 a = _mm256_load_ps(rows[i]), b = _mm256_load_ps(rows[i + 4]);
    halves[i] = combine(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
  }
  __m256 quarters[2];
  for (size_t i = 0; i < 2; ++i) {
    const __m256d a = _mm256_castps_pd(halves[2 * i]), b = _mm256_castps_pd(halves[2 * i + 1]);
    quarters[i] = combine(_mm256_castpd_ps(_mm256_unpacklo_pd(a, b)), _mm256_castpd_ps(_mm256_unpackhi_pd(a, b)));
  }
  return combine(_mm256_shuffle_ps(quarters[0], quarters[1], 0x88), _mm256_shuffle_ps(quarters[0], quarters[1], 0xdd));
}

[[gnu::always_inline]] inline __m256 SumEight(const float (*rows)[kLanes]) {
  return ReduceEight(rows, [](__m256 a, __m256 b) { return _mm256_add_ps(a, b); });
}

// Up to eight tokens' rows of one head, each in the place of its token's lane. Lanes without a row are zero, which
// changes no sum.
struct RowBatch {
  alignas(32) float signal_lanes[kLanes][kLanes];  // SumRow's, folded.
  alignas(32) float error_lanes[kLanes][kLanes];
  alignas(32) float decoded_lanes[kLanes][kLanes];
  alignas(32) float signals[kLanes];
  alignas(32) float weights[kLanes];
};

[[gnu::always_inline]] inline void ClearLanes(RowBatch& batch) {
  for (size_t lane = 0; lane < kLanes; ++lane) {
    _mm256_store_ps(batch.signal_lanes[lane], _mm256_setzero_ps());
    _mm256_store_ps(batch.error_lanes[lane], _mm256_setzero_ps());
    _mm256_store_ps(batch.decoded_lanes[lane], _mm256_setzero_ps());
  }
}

// RowWeight of all rows.
[[gnu::always_inline]] inline void MakeWeights(RowBatch& batch) {
  const __m256 signal = SumEight(batch.signal_lanes);
  const __m256 weighted = _mm256_cmp_ps(signal, _mm256_set1_ps(kRowEnergyMin), _CMP_GE_OQ);
  _mm256_store_ps(batch.signals, signal);
  _mm256_store_ps(batch.weights, _mm256_and_ps(_mm256_div_ps(_mm256_set1_ps(1.0f), signal), weighted));
}

// HeadFidelity::Add for up to eight rows at once; what stands in lanes without a row is zero.
[[gnu::always_inline]] inline void AddRows(__m256 signal, __m256 error, __m256 decoded, __m256 weight,
                                           HeadFidelity& head) {
  const auto add = [](float* lanes, __m256 values) {
    _mm256_storeu_ps(lanes, _mm256_add_ps(_mm256_loadu_ps(lanes), values));
  };
  add(head.signal, signal);
  add(head.error, error);
  add(head.weighted_error, _mm256_mul_ps(error, weight));

  const __m256 weighted = _mm256_cmp_ps(weight, _mm256_setzero_ps(), _CMP_NEQ_OQ);
  head.weighted_rows += static_cast<uint32_t>(__builtin_popcount(_mm256_movemask_ps(weighted)));
  const __m256 norm_ratio = _mm256_sqrt_ps(_mm256_mul_ps(decoded, weight));
  const __m256 sign = _mm256_set1_ps(-0.0f);
  const __m256 norm_error = _mm256_andnot_ps(sign, _mm256_sub_ps(norm_ratio, _mm256_set1_ps(1.0f)));
  alignas(32) float norm_errors[kLanes];
  _mm256_store_ps(norm_errors, _mm256_and_ps(norm_error, weighted));
  for (float value : norm_errors) head.token_norm_error = value > head.token_norm_error ? value : head.token_norm_error;
}

// The same for a batch, after MakeWeights.
[[gnu::always_inline]] inline void AddRows(const RowBatch& batch, HeadFidelity& head) {
  AddRows(_mm256_load_ps(batch.signals), SumEight(batch.error_lanes), SumEight(batch.decoded_lanes),
          _mm256_load_ps(batch.weights), head);
}

// The sum in FloorEnergy's order of the energies whose bits are not above `bits`. `energies` are aligned, their number
// a multiple of 8.
[[gnu::always_inline]] inline float SumUpTo(const float* energies, size_t channels, int32_t bits) {
  const __m256i border = _mm256_set1_epi32(bits);
  __m256 sums = _mm256_setzero_ps();
  for (size_t c = 0; c < channels; c += kLanes) {
    const __m256 energy = _mm256_load_ps(energies + c);
    const __m256i above = _mm256_cmpgt_epi32(_mm256_castps_si256(energy), border);
    sums = _mm256_add_ps(sums, _mm256_andnot_ps(_mm256_castsi256_ps(above), energy));
  }
  alignas(32) float lanes[kLanes];
  _mm256_store_ps(lanes, sums);
  return SumLanes(lanes);
}

}  // namespace nqkv
