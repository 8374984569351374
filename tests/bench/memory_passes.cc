#include "tests/bench/memory_passes.h"

#include <immintrin.h>

namespace nqkv::bench {

bool HasMemoryPasses() { return __builtin_cpu_supports("avx2"); }

__attribute__((target("avx2"))) void NtCopy(std::byte* target, const std::byte* source, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 64) {
    const __m256i a = _mm256_load_si256(reinterpret_cast<const __m256i*>(source + i));
    const __m256i b = _mm256_load_si256(reinterpret_cast<const __m256i*>(source + i + 32));
    _mm256_stream_si256(reinterpret_cast<__m256i*>(target + i), a);
    _mm256_stream_si256(reinterpret_cast<__m256i*>(target + i + 32), b);
  }
  _mm_sfence();
}

__attribute__((target("avx2"))) void NtFill(std::byte* target, size_t bytes) {
  const __m256i value = _mm256_set1_epi8(1);
  for (size_t i = 0; i < bytes; i += 64) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(target + i), value);
    _mm256_stream_si256(reinterpret_cast<__m256i*>(target + i + 32), value);
  }
  _mm_sfence();
}

__attribute__((target("avx2"))) unsigned ReadPass(const std::byte* source, size_t bytes) {
  __m256i sums[4] = {};
  for (size_t i = 0; i < bytes; i += 128) {
    for (size_t j = 0; j < 4; ++j) {
      const __m256i value = _mm256_load_si256(reinterpret_cast<const __m256i*>(source + i + 32 * j));
      sums[j] = _mm256_xor_si256(sums[j], value);
    }
  }
  const __m256i all = _mm256_xor_si256(_mm256_xor_si256(sums[0], sums[1]), _mm256_xor_si256(sums[2], sums[3]));
  return static_cast<unsigned>(_mm256_extract_epi32(all, 0));
}

}  // namespace nqkv::bench
