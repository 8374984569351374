#include "kernels/codec_path.h"

#include <cpuid.h>

#include "kernels/nqkv4_codec.h"
#include "kernels/nqkv4h_codec.h"
#include "kernels/q8_codec.h"
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

// One codec on one path.
struct Coder {
  EncodeResult (*encode)(const EncodeArgs&);
  void (*decode)(const DecodeArgs&);
};

constexpr Coder kReference = {&EncodePlaneReference, &DecodePlaneReference};
constexpr Coder kRawAvx2 = {&RawEncodeAvx2, &RawDecodeAvx2};
constexpr Coder kNqkv4Avx2 = {&Nqkv4EncodeAvx2, &Nqkv4DecodeAvx2};
constexpr Coder kNqkv4Avx512 = {&Nqkv4EncodeAvx512, &Nqkv4DecodeAvx512};
constexpr Coder kNqkv4hAvx2 = {&Nqkv4hEncodeAvx2, &Nqkv4hDecodeAvx2};
constexpr Coder kNqkv4hAvx512 = {&Nqkv4hEncodeAvx512, &Nqkv4hDecodeAvx512};
constexpr Coder kQ8Avx2 = {&Q8EncodeAvx2, &Q8DecodeAvx2};
constexpr Coder kQ8Avx512 = {&Q8EncodeAvx512, &Q8DecodeAvx512};

// The row layout is there to be read by others and never chosen by AUTO: the reference is fast enough. Copies of whole
// rows gain nothing from wider registers.
const Coder& CoderFor(CodecPath path, const PlaneCodec& codec) {
  if (codec.layout == PlaneLayout::kRow || path == CodecPath::kScalar) return kReference;
  const bool wide = path == CodecPath::kAvx512;
  switch (codec.id) {
    case CodecId::kRaw:
      return kRawAvx2;
    case CodecId::kQ8:
      return wide ? kQ8Avx512 : kQ8Avx2;
    case CodecId::kNqkv4h:
      return wide ? kNqkv4hAvx512 : kNqkv4hAvx2;
    default:
      return wide ? kNqkv4Avx512 : kNqkv4Avx2;
  }
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

EncodeResult EncodePlaneOn(CodecPath path, const EncodeArgs& args) { return CoderFor(path, args.codec).encode(args); }

void DecodePlaneOn(CodecPath path, const DecodeArgs& args) { CoderFor(path, args.codec).decode(args); }

}  // namespace nqkv
