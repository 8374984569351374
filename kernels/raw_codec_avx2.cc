// Built with AVX2 and F16C and run only where they are: nothing here may be inline code that other sources share.
#include <immintrin.h>

#include <cstring>

#include "kernels/float_format_avx2.h"
#include "kernels/raw_codec.h"

namespace nqkv {

namespace {

constexpr size_t kVectorBytes = sizeof(__m256i);

// Heads are copied together, so that a token's row is read once from end to end, as long as their encoded bytes stay in
// the second-level cache for the checksum.
constexpr size_t kCheckedBytes = size_t{256} << 10;

// NaN and infinity are the magnitudes from here on, as integers.
constexpr uint32_t NonFiniteBits(Dtype dtype) {
  if (dtype == Dtype::kFloat32) return 0x7f800000;
  return dtype == Dtype::kFloat16 ? 0x7c00 : 0x7f80;
}

// The largest magnitudes by lane, as integers.
template <size_t kElementBytes>
[[gnu::always_inline]] inline __m256i Largest(__m256i largest, __m256i elements) {
  if constexpr (kElementBytes == 2) {
    return _mm256_max_epi16(largest, _mm256_and_si256(elements, _mm256_set1_epi16(0x7fff)));
  } else {
    return _mm256_max_epi32(largest, _mm256_and_si256(elements, _mm256_set1_epi32(0x7fffffff)));
  }
}

// Rows are whole halves of a register: eight elements of two bytes or more.
template <size_t kElementBytes>
[[gnu::always_inline]] inline __m256i CopyRow(const std::byte* source, size_t bytes, std::byte* target,
                                              __m256i largest) {
  size_t i = 0;
  for (; i + kVectorBytes <= bytes; i += kVectorBytes) {
    const __m256i elements = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source + i));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(target + i), elements);
    largest = Largest<kElementBytes>(largest, elements);
  }
  if (i < bytes) {
    const __m128i elements = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(target + i), elements);
    largest = Largest<kElementBytes>(largest, _mm256_zextsi128_si256(elements));
  }
  return largest;
}

template <size_t kElementBytes>
bool AllBelow(__m256i magnitudes, uint32_t border) {
  __m256i below;
  if constexpr (kElementBytes == 2) {
    below = _mm256_cmpgt_epi16(_mm256_set1_epi16(static_cast<int16_t>(border)), magnitudes);
  } else {
    below = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int32_t>(border)), magnitudes);
  }
  return _mm256_movemask_epi8(below) == -1;
}

template <size_t kElementBytes>
EncodeResult Encode(const EncodeArgs& args) {
  const PlaneShape& shape = args.shape;
  const size_t row_bytes = shape.channels * kElementBytes, head_bytes = shape.tokens * row_bytes;
  const size_t heads_at_once = 1 + kCheckedBytes / (head_bytes + 1);
  __m256i largest = _mm256_setzero_si256();
  EncodeResult result;
  for (size_t first = 0; first < shape.heads; first += heads_at_once) {
    const size_t left = shape.heads - first, heads = left < heads_at_once ? left : heads_at_once;
    std::byte* encoded = args.encoded.data() + first * head_bytes;
    for (size_t t = 0; t < shape.tokens; ++t) {
      const std::byte* row = args.source + static_cast<ptrdiff_t>(t) * args.token_stride +
                             static_cast<ptrdiff_t>(first) * args.head_stride;
      for (size_t h = 0; h < heads; ++h, row += args.head_stride) {
        largest = CopyRow<kElementBytes>(row, row_bytes, encoded + h * head_bytes + t * row_bytes, largest);
      }
    }
    if (args.measure) result.crc32c = ExtendCrc32c(result.crc32c, {encoded, heads * head_bytes});
  }
  result.finite = AllBelow<kElementBytes>(largest, NonFiniteBits(shape.dtype));
  return result;
}

using ConvertRow = void (*)(const std::byte* source, size_t channels, std::byte* target);

template <Dtype kSource, Dtype kTarget>
void Convert(const std::byte* source, size_t channels, std::byte* target) {
  if constexpr (kSource == kTarget) {
    std::memcpy(target, source, channels * DtypeBytes(kSource));
    return;
  }
  for (size_t c = 0; c < channels; c += 8) {
    Store8<kTarget>(target + c * DtypeBytes(kTarget), Load8<kSource>(source + c * DtypeBytes(kSource)));
  }
}

template <Dtype kSource>
ConvertRow ConvertTo(Dtype target) {
  switch (target) {
    case Dtype::kFloat16:
      return &Convert<kSource, Dtype::kFloat16>;
    case Dtype::kBfloat16:
      return &Convert<kSource, Dtype::kBfloat16>;
    default:
      return &Convert<kSource, Dtype::kFloat32>;
  }
}

ConvertRow ConvertBetween(Dtype source, Dtype target) {
  switch (source) {
    case Dtype::kFloat16:
      return ConvertTo<Dtype::kFloat16>(target);
    case Dtype::kBfloat16:
      return ConvertTo<Dtype::kBfloat16>(target);
    default:
      return ConvertTo<Dtype::kFloat32>(target);
  }
}

}  // namespace

EncodeResult RawEncodeAvx2(const EncodeArgs& args) {
  return args.shape.dtype == Dtype::kFloat32 ? Encode<4>(args) : Encode<2>(args);
}

void RawDecodeAvx2(const DecodeArgs& args) {
  const ConvertRow convert = ConvertBetween(args.shape.dtype, args.dtype);
  const size_t row_bytes = args.shape.channels * DtypeBytes(args.shape.dtype);
  for (size_t t = 0; t < args.shape.tokens; ++t) {
    std::byte* target = args.target + static_cast<ptrdiff_t>(t) * args.token_stride;
    for (size_t h = args.head_begin; h < args.head_end; ++h, target += args.head_stride) {
      convert(args.encoded.data() + (h * args.shape.tokens + t) * row_bytes, args.shape.channels, target);
    }
  }
}

}  // namespace nqkv
