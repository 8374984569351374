#include "kernels/codec_path.h"

#include <cpuid.h>

#include "kernels/nqkv4_codec.h"
#include "kernels/raw_codec.h"

namespace nqkv {

namespace {

bool HasAvx2() {
  // F16C is asked for by hand: clang 14 does not know its name here.
  unsigned a = 0, b = 0, c = 0, d = 0;
  const bool has_f16c = __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c;
}

bool HasAvx512() {
  return HasAvx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vbmi");
}

// The row layout is there to be read by others and never chosen by AUTO: the reference is fast enough. Copies of whole
// rows gain nothing from wider registers.
CodecPath PathFor(CodecPath path, const PlaneCodec& codec) {
  if (codec.layout == PlaneLayout::kRow) return CodecPath::kScalar;
  if (codec.id == CodecId::kNqkv4h || codec.id == CodecId::kQ8) return CodecPath::kScalar;
  return codec.id == CodecId::kRaw && path == CodecPath::kAvx512 ? CodecPath::kAvx2 : path;
}

}  // namespace

absl::string_view CodecPathName(CodecPath path) {
  switch (path) {
    case CodecPath::kAvx512:
      return "avx512";
    case CodecPath::kAvx2:
      return "avx2";
    default:
      return "scalar";
  }
}

bool HasCodecPath(CodecPath path) {
  switch (path) {
    case CodecPath::kAvx512:
      return HasAvx512();
    case CodecPath::kAvx2:
      return HasAvx2();
    default:
      return true;
  }
}

EncodeResult EncodePlaneOn(CodecPath path, const EncodeArgs& args) {
  const bool raw = args.codec.id == CodecId::kRaw;
  switch (PathFor(path, args.codec)) {
    case CodecPath::kAvx512:
      return Nqkv4EncodeAvx512(args);
    case CodecPath::kAvx2:
      return raw ? RawEncodeAvx2(args) : Nqkv4EncodeAvx2(args);
    default:
      return EncodePlaneReference(args);
  }
}

void DecodePlaneOn(CodecPath path, const DecodeArgs& args) {
  const bool raw = args.codec.id == CodecId::kRaw;
  switch (PathFor(path, args.codec)) {
    case CodecPath::kAvx512:
      return Nqkv4DecodeAvx512(args);
    case CodecPath::kAvx2:
      return raw ? RawDecodeAvx2(args) : Nqkv4DecodeAvx2(args);
    default:
      return DecodePlaneReference(args);
  }
}

}  // namespace nqkv
