#include "kernels/codec.h"

#include "absl/strings/str_cat.h"
#include "kernels/codec_path.h"
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

CodecPath FastestPath() {
  CodecPath fastest = CodecPath::kScalar;
  for (CodecPath path : kCodecPaths) {
    if (HasCodecPath(path)) fastest = path;
  }
  return fastest;
}

CodecPath ChosenPath() {
  static const CodecPath path = FastestPath();
  return path;
}

}  // namespace

EncodeResult EncodePlane(const EncodeArgs& args) { return EncodePlaneOn(ChosenPath(), args); }

void DecodePlane(const DecodeArgs& args) { DecodePlaneOn(ChosenPath(), args); }

absl::string_view CodecPathName() { return CodecPathName(ChosenPath()); }

}  // namespace nqkv
