#include "client/block_check.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/codec.h"
#include "kernels/status_macros.h"

namespace nqkv::client {
namespace {

nqkv::PlaneCodec CodecOf(const PlaneInfo& part) {
  if (part.codec == Codec::kRaw) return {};
  return {.id = static_cast<nqkv::CodecId>(part.codec),
          .scale_group = static_cast<uint16_t>(part.scale_group),
          .layout = static_cast<nqkv::PlaneLayout>(part.layout),
          .strong_channels = static_cast<uint8_t>(part.strong_channels)};
}

ptrdiff_t HeadBytes(const PlaneSpec& plane) { return static_cast<ptrdiff_t>(plane.channels * DtypeBytes(plane.dtype)); }

nqkv::PlaneShape ShapeOf(const Capture& capture, const PlaneSpec& plane, uint32_t heads) {
  return {.tokens = capture.group().block_tokens,
          .heads = heads,
          .channels = plane.channels,
          .dtype = static_cast<nqkv::Dtype>(plane.dtype)};
}

// A plane's elements as float32, [tokens][heads][channels]: the raw codec converts.
std::vector<float> ToFloats(const nqkv::PlaneShape& shape, std::span<const std::byte> plane) {
  const auto head_stride = static_cast<ptrdiff_t>(shape.channels * nqkv::DtypeBytes(shape.dtype));
  std::vector<std::byte> encoded(nqkv::EncodedBytes({}, shape));
  nqkv::EncodePlaneReference({.source = plane.data(),
                              .token_stride = head_stride * static_cast<ptrdiff_t>(shape.heads),
                              .head_stride = head_stride,
                              .shape = shape,
                              .codec = {},
                              .encoded = encoded});
  std::vector<float> floats(shape.elements());
  const auto float_stride = static_cast<ptrdiff_t>(shape.channels * sizeof(float));
  nqkv::DecodePlaneReference({.encoded = encoded,
                              .shape = shape,
                              .codec = {},
                              .head_begin = 0,
                              .head_end = shape.heads,
                              .dtype = nqkv::Dtype::kFloat32,
                              .target = reinterpret_cast<std::byte*>(floats.data()),
                              .token_stride = float_stride * static_cast<ptrdiff_t>(shape.heads),
                              .head_stride = float_stride});
  return floats;
}

void AddErrors(const std::vector<float>& source, const std::vector<float>& decoded, size_t channels,
               RoleTotals* totals) {
  for (size_t row = 0; row < source.size(); row += channels) {
    double dot = 0, source_energy = 0, decoded_energy = 0;
    for (size_t i = row; i < row + channels; ++i) {
      const double a = source[i], b = decoded[i];
      dot += a * b;
      source_energy += a * a;
      decoded_energy += b * b;
      totals->error_energy += (a - b) * (a - b);
    }
    totals->signal_energy += source_energy;
    if (source_energy > 0 && decoded_energy > 0) {
      totals->cosine = std::min(totals->cosine, dot / std::sqrt(source_energy * decoded_energy));
    }
  }
}

std::string NameOf(size_t block, const PlaneSpec& plane) {
  return absl::StrCat("block ", block, ", layer ", plane.layer, ", ", plane.role == PlaneRole::kKey ? "key" : "value");
}

absl::Status Differs(size_t block, const PlaneSpec& plane, absl::string_view what) {
  return absl::DataLossError(absl::StrCat(NameOf(block, plane), ": ", what));
}

bool SameBits(float a, float b) { return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b); }

}  // namespace

void RoleTotals::Add(const RoleTotals& other) {
  planes += other.planes;
  elements += other.elements;
  raw_bytes += other.raw_bytes;
  stored_bytes += other.stored_bytes;
  signal_energy += other.signal_energy;
  error_energy += other.error_energy;
  floor_error = std::max(floor_error, other.floor_error);
  token_norm_error = std::max(token_norm_error, other.token_norm_error);
  cosine = std::min(cosine, other.cosine);
  for (const auto& [name, count] : other.codecs) codecs[name] += count;
}

absl::Status BlockCheck::Check(size_t block, std::span<const std::byte> payload, const GetResult& result) {
  const std::vector<PlaneSpec>& planes = capture_->group().planes;
  std::vector<std::vector<const PlaneInfo*>> parts(planes.size());
  uint64_t plane_bytes = 0;
  for (const PlaneInfo& info : result.planes) {
    const auto it = std::find_if(planes.begin(), planes.end(), [&](const PlaneSpec& plane) {
      return plane.layer == info.layer && plane.role == info.role;
    });
    if (it == planes.end()) return absl::DataLossError(absl::StrCat("block ", block, ": a plane that the spec lacks"));
    parts[static_cast<size_t>(it - planes.begin())].push_back(&info);
    plane_bytes += info.stored_bytes;
  }
  if (payload.size() != capture_->block_bytes() || result.stored_bytes < plane_bytes) {
    return absl::DataLossError(absl::StrCat("block ", block, ": ", payload.size(), " bytes and ", result.stored_bytes,
                                            " stored, which the planes contradict"));
  }
  const double overhead =
      static_cast<double>(result.stored_bytes - plane_bytes) / static_cast<double>(result.planes.size());
  for (size_t i = 0; i < planes.size(); ++i) {
    const size_t bytes = capture_->Plane(block, i).size();
    NQKV_RETURN_IF_ERROR(
        CheckPlane(block, i, payload.first(bytes), parts[i], overhead * static_cast<double>(parts[i].size())));
    payload = payload.subspan(bytes);
  }
  return absl::OkStatus();
}

absl::Status BlockCheck::CheckPlane(size_t block, size_t plane, std::span<const std::byte> payload,
                                    const std::vector<const PlaneInfo*>& parts, double overhead_bytes) {
  const PlaneSpec& spec = capture_->group().planes[plane];
  RoleTotals& totals = totals_[spec.role];
  expected_.assign(payload.size(), std::byte{0});
  uint32_t head = 0;
  for (const PlaneInfo* part : parts) {
    if (part->heads.begin != head || part->heads.end <= head || part->heads.end > spec.heads) {
      return Differs(block, spec, "its stored parts do not follow one another");
    }
    head = part->heads.end;
    NQKV_RETURN_IF_ERROR(CheckPart(block, plane, *part, &totals));
  }
  if (head != spec.heads) return Differs(block, spec, "its stored parts do not make it whole");
  const auto differing = std::mismatch(payload.begin(), payload.end(), expected_.begin());
  if (differing.first != payload.end()) {
    return Differs(block, spec,
                   absl::StrCat("byte ", differing.first - payload.begin(), " differs from the reference codec's"));
  }
  const nqkv::PlaneShape shape = ShapeOf(*capture_, spec, spec.heads);
  AddErrors(ToFloats(shape, capture_->Plane(block, plane)), ToFloats(shape, payload), spec.channels, &totals);
  ++totals.planes;
  totals.elements += shape.elements();
  totals.raw_bytes += shape.raw_bytes();
  totals.stored_bytes += overhead_bytes;
  return absl::OkStatus();
}

absl::Status BlockCheck::CheckPart(size_t block, size_t plane, const PlaneInfo& part, RoleTotals* totals) {
  const PlaneSpec& spec = capture_->group().planes[plane];
  const nqkv::PlaneCodec codec = CodecOf(part);
  if (absl::Status valid = nqkv::ValidatePlaneCodec(codec, spec.channels); !valid.ok())
    return Differs(block, spec, valid.message());
  const nqkv::PlaneShape shape = ShapeOf(*capture_, spec, part.heads.end - part.heads.begin);
  encoded_.resize(nqkv::EncodedBytes(codec, shape));
  if (part.stored_bytes != encoded_.size()) {
    return Differs(block, spec, absl::StrCat(part.stored_bytes, " stored bytes, the codec makes ", encoded_.size()));
  }
  const ptrdiff_t head_stride = HeadBytes(spec);
  const ptrdiff_t token_stride = head_stride * static_cast<ptrdiff_t>(spec.heads);
  const ptrdiff_t offset = head_stride * static_cast<ptrdiff_t>(part.heads.begin);
  const nqkv::EncodeResult own = nqkv::EncodePlaneReference({.source = capture_->Plane(block, plane).data() + offset,
                                                             .token_stride = token_stride,
                                                             .head_stride = head_stride,
                                                             .shape = shape,
                                                             .codec = codec,
                                                             .encoded = encoded_});
  if (codec.id != nqkv::CodecId::kRaw && (!own.finite || !own.in_scale_range)) {
    return Differs(block, spec, "stored in a codec that cannot hold it");
  }
  if (own.crc32c != part.crc32c) return Differs(block, spec, "its CRC32C differs from the reference codec's");
  if (!SameBits(own.errors.floor_error, part.floor_error) || !SameBits(own.errors.nmse, part.nmse) ||
      !SameBits(own.errors.token_norm_error, part.token_norm_error)) {
    return Differs(block, spec,
                   absl::StrCat("its errors differ: floor error ", part.floor_error, ", the reference has ",
                                own.errors.floor_error));
  }
  nqkv::DecodePlaneReference({.encoded = encoded_,
                              .shape = shape,
                              .codec = codec,
                              .head_begin = 0,
                              .head_end = shape.heads,
                              .dtype = shape.dtype,
                              .target = expected_.data() + offset,
                              .token_stride = token_stride,
                              .head_stride = head_stride});
  totals->stored_bytes += static_cast<double>(part.stored_bytes);
  totals->floor_error = std::max(totals->floor_error, part.floor_error);
  totals->token_norm_error = std::max(totals->token_norm_error, part.token_norm_error);
  const absl::string_view name = nqkv::PlaneCodecName(codec);
  ++totals->codecs[std::string(name)];
  return absl::OkStatus();
}

}  // namespace nqkv::client
