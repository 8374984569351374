// Built with AVX2 and F16C and run only where they are: nothing here may be inline code that other sources share.
#include <cstring>

#include "kernels/float_format_avx2.h"
#include "kernels/raw_codec.h"

namespace nqkv {

namespace {

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
