#include "kernels/codec.h"

#include "absl/strings/str_cat.h"
#include "kernels/codec_path.h"
#include "kernels/nqkv4_codec.h"
#include "kernels/nqkv4h_codec.h"
#include "kernels/q8_codec.h"
#include "kernels/raw_codec.h"
#include "kernels/status_macros.h"

namespace nqkv {

namespace {

constexpr std::array<absl::string_view, kPlaneCodecs.size()> kPlaneCodecNames = {"raw",
                                                                                 "nqkv4-g64",
                                                                                 "nqkv4-g128",
                                                                                 "nqkv4-g256",
                                                                                 "nqkv4-row-g256",
                                                                                 "nqkv4h-g64",
                                                                                 "nqkv4h-g64-k4",
                                                                                 "nqkv4h-g64-k8",
                                                                                 "nqkv4h-g128",
                                                                                 "nqkv4h-g128-k4",
                                                                                 "nqkv4h-g128-k8",
                                                                                 "nqkv4h-g256",
                                                                                 "nqkv4h-g256-k4",
                                                                                 "nqkv4h-g256-k8",
                                                                                 "q8-channel",
                                                                                 "q8-token"};

template <typename... Parts>
absl::Status Bad(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(parts...));
}

absl::Status ValidateScaleGroup(const PlaneCodec& codec) {
  const uint16_t group = codec.scale_group;
  switch (codec.id) {
    case CodecId::kRaw:
      return group == 0 ? absl::OkStatus() : Bad("scale_group: raw planes have none, not ", group);
    case CodecId::kQ8:
      return group == kQ8ChannelGroup || group == kQ8TokenGroup
                 ? absl::OkStatus()
                 : Bad("scale_group: ", group, " is not 0 or 128, which q8 has");
    default:
      if (codec.layout == PlaneLayout::kRow) {
        return group == 256 ? absl::OkStatus()
                            : Bad("scale_group: ", group, " is not 256, the only one of the row layout");
      }
      return group == 64 || group == 128 || group == 256 ? absl::OkStatus()
                                                         : Bad("scale_group: ", group, " is not 64, 128 or 256");
  }
}

}  // namespace

absl::string_view PlaneCodecName(const PlaneCodec& codec) {
  for (size_t i = 0; i < kPlaneCodecs.size(); ++i) {
    if (kPlaneCodecs[i] == codec) return kPlaneCodecNames[i];
  }
  return "unknown";
}

absl::Status ValidatePlaneCodec(const PlaneCodec& codec) {
  if (codec.id < CodecId::kRaw || codec.id > CodecId::kQ8) {
    return Bad("codec: ", static_cast<int>(codec.id), " is not known");
  }
  if (codec.layout != PlaneLayout::kHead && codec.layout != PlaneLayout::kRow) {
    return Bad("layout: ", static_cast<int>(codec.layout), " is not known");
  }
  if (codec.layout == PlaneLayout::kRow && codec.id != CodecId::kNqkv4) {
    return Bad("layout: only nqkv4 has planes that are not head by head");
  }
  NQKV_RETURN_IF_ERROR(ValidateScaleGroup(codec));
  const uint8_t strong = codec.strong_channels;
  if (strong == 0 || (codec.id == CodecId::kNqkv4h && (strong == 4 || strong == 8))) return absl::OkStatus();
  return Bad("strong_channels: ", strong, " is not ", codec.id == CodecId::kNqkv4h ? "0, 4 or 8" : "0");
}

absl::Status ValidatePlaneCodec(const PlaneCodec& codec, uint32_t channels) {
  NQKV_RETURN_IF_ERROR(ValidatePlaneCodec(codec));
  if (16u * codec.strong_channels <= channels) return absl::OkStatus();
  return Bad("strong_channels: ", codec.strong_channels, " is more than a sixteenth of ", channels, " channels");
}

uint64_t EncodedBytes(const PlaneCodec& codec, const PlaneShape& shape) {
  switch (codec.id) {
    case CodecId::kRaw:
      return shape.raw_bytes();
    case CodecId::kQ8:
      return shape.heads * Q8Layout(codec, shape).head_bytes();
    case CodecId::kNqkv4h:
      return shape.heads * Nqkv4hLayout(codec, shape).head_bytes();
    default: {
      const Nqkv4Layout layout(codec, shape);
      return layout.strips * layout.strip_bytes();
    }
  }
}

EncodeResult EncodePlaneReference(const EncodeArgs& args) {
  switch (args.codec.id) {
    case CodecId::kRaw:
      return RawEncodeReference(args);
    case CodecId::kQ8:
      return Q8EncodeReference(args);
    case CodecId::kNqkv4h:
      return Nqkv4hEncodeReference(args);
    default:
      return Nqkv4EncodeReference(args);
  }
}

void DecodePlaneReference(const DecodeArgs& args) {
  switch (args.codec.id) {
    case CodecId::kRaw:
      return RawDecodeReference(args);
    case CodecId::kQ8:
      return Q8DecodeReference(args);
    case CodecId::kNqkv4h:
      return Nqkv4hDecodeReference(args);
    default:
      return Nqkv4DecodeReference(args);
  }
}

absl::Status CheckEncodedPlane(const PlaneCodec& codec, const PlaneShape& shape, std::span<const std::byte> encoded) {
  return codec.strong_channels == 0 ? absl::OkStatus() : CheckStrongChannels(codec, shape, encoded);
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
