#include "kernels/codec.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "absl/strings/str_cat.h"
#include "kernels/nqkv4_codec.h"
#include "kernels/raw_codec.h"

namespace nqkv {

absl::string_view PlaneCodecName(const PlaneCodec& codec) {
  if (codec.id == CodecId::kRaw) return "raw";
  if (codec.layout == PlaneLayout::kRow) return "nqkv4-row-g256";
  switch (codec.scale_group) {
    case 64:
      return "nqkv4-g64";
    case 128:
      return "nqkv4-g128";
    default:
      return "nqkv4-g256";
  }
}

absl::Status ValidatePlaneCodec(const PlaneCodec& codec) {
  if (codec.layout != PlaneLayout::kHead && codec.layout != PlaneLayout::kRow) {
    return absl::InvalidArgumentError(absl::StrCat("layout: ", static_cast<int>(codec.layout), " is not known"));
  }
  const bool row_layout = codec.layout == PlaneLayout::kRow;
  if (codec.id == CodecId::kRaw) {
    if (row_layout) return absl::InvalidArgumentError("layout: raw planes are always head by head");
    if (codec.scale_group == 0) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat("scale_group: raw planes have none, not ", codec.scale_group));
  }
  if (codec.id != CodecId::kNqkv4) {
    return absl::InvalidArgumentError(absl::StrCat("codec: ", static_cast<int>(codec.id), " is not known"));
  }
  const uint16_t group = codec.scale_group;
  if (row_layout ? group == 256 : group == 64 || group == 128 || group == 256) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "scale_group: ", group, " is not ", row_layout ? "256, the only one of the row layout" : "64, 128 or 256"));
}

uint64_t EncodedBytes(const PlaneCodec& codec, const PlaneShape& shape) {
  if (codec.id == CodecId::kRaw) return shape.raw_bytes();
  const Nqkv4Layout layout(codec, shape);
  return layout.strips * layout.strip_bytes();
}

EncodeResult EncodePlaneReference(const EncodeArgs& args) {
  return args.codec.id == CodecId::kRaw ? RawEncodeReference(args) : Nqkv4EncodeReference(args);
}

void DecodePlaneReference(const DecodeArgs& args) {
  args.codec.id == CodecId::kRaw ? RawDecodeReference(args) : Nqkv4DecodeReference(args);
}

namespace {

#if defined(__x86_64__)
bool HasAvx2() {
  // F16C is asked for by hand: clang 14 does not know its name here.
  unsigned a = 0, b = 0, c = 0, d = 0;
  const bool has_f16c = __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c;
}
#else
bool HasAvx2() { return false; }
#endif

bool RunsAvx2() {
  static const bool has_avx2 = HasAvx2();
  return has_avx2;
}

// The row layout is there to be read by others and never chosen by AUTO: the reference is fast enough.
bool RunsNqkv4Avx2(const PlaneCodec& codec) { return RunsAvx2() && codec.layout == PlaneLayout::kHead; }

}  // namespace

EncodeResult EncodePlane(const EncodeArgs& args) {
  if (args.codec.id == CodecId::kRaw) return RunsAvx2() ? RawEncodeAvx2(args) : RawEncodeReference(args);
  return RunsNqkv4Avx2(args.codec) ? Nqkv4EncodeAvx2(args) : Nqkv4EncodeReference(args);
}

void DecodePlane(const DecodeArgs& args) {
  if (args.codec.id == CodecId::kRaw) {
    RunsAvx2() ? RawDecodeAvx2(args) : RawDecodeReference(args);
  } else {
    RunsNqkv4Avx2(args.codec) ? Nqkv4DecodeAvx2(args) : Nqkv4DecodeReference(args);
  }
}

absl::string_view CodecPathName() { return RunsAvx2() ? "avx2" : "scalar"; }

}  // namespace nqkv
