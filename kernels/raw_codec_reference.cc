#include <cmath>

#include "kernels/raw_codec.h"

namespace nqkv {

EncodeResult RawEncodeReference(const EncodeArgs& args) {
  const size_t row_bytes = args.shape.channels * DtypeBytes(args.shape.dtype);
  EncodeResult result;
  std::byte* encoded = args.encoded.data();
  for (size_t h = 0; h < args.shape.heads; ++h) {
    for (size_t t = 0; t < args.shape.tokens; ++t, encoded += row_bytes) {
      const std::byte* row = SourceRow(args, t, h);
      std::memcpy(encoded, row, row_bytes);
      for (size_t c = 0; c < args.shape.channels; ++c) {
        result.finite &= std::isfinite(LoadElement(row, c, args.shape.dtype));
      }
    }
  }
  if (args.measure) result.crc32c = Crc32c(args.encoded);
  return result;
}

void RawDecodeReference(const DecodeArgs& args) {
  const size_t row_bytes = args.shape.channels * DtypeBytes(args.shape.dtype);
  for (size_t h = args.head_begin; h < args.head_end; ++h) {
    for (size_t t = 0; t < args.shape.tokens; ++t) {
      const std::byte* encoded = args.encoded.data() + (h * args.shape.tokens + t) * row_bytes;
      std::byte* row = TargetRow(args, t, h);
      if (args.dtype == args.shape.dtype) {
        std::memcpy(row, encoded, row_bytes);
        continue;
      }
      for (size_t c = 0; c < args.shape.channels; ++c) {
        StoreElement(row, c, args.dtype, LoadElement(encoded, c, args.shape.dtype));
      }
    }
  }
}

}  // namespace nqkv
