#include "kernels/block_format.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/status_macros.h"

namespace nqkv {

namespace {

static_assert(std::endian::native == std::endian::little, "The format is little-endian and so is this code.");

constexpr uint32_t kMagic = 0x564b514e;  // "NQKV"
constexpr uint16_t kVersion = 1;
constexpr uint16_t kFirstInSequence = 1;
constexpr uint64_t kTokenStartMax = (uint64_t{1} << 48) - 1;
constexpr uint16_t kTokensMax = 1024;
constexpr uint16_t kHeadsMax = 1024;
constexpr uint16_t kChannelsMax = 8192;

struct RawHeader {
  uint32_t magic;
  uint16_t version;
  uint16_t flags;
  std::byte fingerprint[16];
  uint16_t layer_group;
  uint16_t tokens;
  uint16_t layer_begin;
  uint16_t layer_end;
  uint16_t head_begin;
  uint16_t head_end;
  uint16_t plane_count;
  uint8_t provenance;
  uint8_t measurer;
  uint64_t token_start;
  uint64_t block_bytes;
  uint32_t reserved;
  uint32_t crc32c;
};
static_assert(sizeof(RawHeader) == kBlockHeaderBytes && offsetof(RawHeader, crc32c) == 60);

struct RawPlane {
  uint16_t layer;
  uint8_t role;
  uint8_t dtype;
  uint8_t codec;
  uint8_t layout;
  uint16_t scale_group;
  uint16_t channels;
  uint8_t strong_channels;
  uint8_t reserved;
  uint32_t offset;
  uint32_t length;
  float floor_error;
  float token_norm_error;
  float nmse;
  uint32_t crc32c;
  uint32_t reserved2;
};
static_assert(sizeof(RawPlane) == kPlaneEntryBytes && offsetof(RawPlane, crc32c) == 32);

template <typename Raw>
Raw Load(std::span<const std::byte> block, size_t offset) {
  Raw raw;
  std::memcpy(&raw, block.data() + offset, sizeof(raw));
  return raw;
}

RawPlane LoadPlane(std::span<const std::byte> block, size_t index) {
  return Load<RawPlane>(block, kBlockHeaderBytes + index * kPlaneEntryBytes);
}

size_t HeadEnd(size_t plane_count) { return kBlockHeaderBytes + plane_count * kPlaneEntryBytes; }

// Of everything in front of the planes but the CRC itself.
uint32_t HeadCrc(std::span<const std::byte> block, size_t plane_count) {
  const uint32_t crc = Crc32c(block.first(offsetof(RawHeader, crc32c)));
  return ExtendCrc32c(crc, block.subspan(kBlockHeaderBytes, plane_count * kPlaneEntryBytes));
}

PlaneEntry ToEntry(const RawPlane& raw) {
  return {.layer = raw.layer,
          .role = static_cast<PlaneRole>(raw.role),
          .dtype = static_cast<Dtype>(raw.dtype),
          .codec = {.id = static_cast<CodecId>(raw.codec),
                    .scale_group = raw.scale_group,
                    .layout = static_cast<PlaneLayout>(raw.layout),
                    .strong_channels = raw.strong_channels},
          .channels = raw.channels,
          .offset = raw.offset,
          .length = raw.length,
          .errors = {raw.floor_error, raw.token_norm_error, raw.nmse},
          .crc32c = raw.crc32c};
}

RawPlane ToRaw(const PlaneEntry& entry) {
  return {.layer = entry.layer,
          .role = static_cast<uint8_t>(entry.role),
          .dtype = static_cast<uint8_t>(entry.dtype),
          .codec = static_cast<uint8_t>(entry.codec.id),
          .layout = static_cast<uint8_t>(entry.codec.layout),
          .scale_group = entry.codec.scale_group,
          .channels = entry.channels,
          .strong_channels = entry.codec.strong_channels,
          .reserved = 0,
          .offset = entry.offset,
          .length = entry.length,
          .floor_error = entry.errors.floor_error,
          .token_norm_error = entry.errors.token_norm_error,
          .nmse = entry.errors.nmse,
          .crc32c = entry.crc32c,
          .reserved2 = 0};
}

template <typename... Parts>
absl::Status Bad(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat("block: ", parts...));
}

absl::Status BadNumber(absl::string_view field, uint64_t value, absl::string_view want) {
  return Bad(field, ": ", value, ", must be ", want);
}

absl::Status CheckHeader(const RawHeader& raw, size_t size) {
  if ((raw.flags & ~kFirstInSequence) != 0) return BadNumber("flags", raw.flags, "0 or 1");
  if (raw.tokens == 0 || raw.tokens > kTokensMax) return BadNumber("tokens", raw.tokens, "1 to 1024");
  if (raw.layer_begin >= raw.layer_end) return BadNumber("layer_end", raw.layer_end, "above layer_begin");
  if (raw.head_begin >= raw.head_end) return BadNumber("head_end", raw.head_end, "above head_begin");
  if (raw.head_end > kHeadsMax) return BadNumber("head_end", raw.head_end, "at most 1024");
  if (raw.provenance < 1 || raw.provenance > 3) return BadNumber("provenance", raw.provenance, "1 to 3");
  if (raw.measurer < 1 || raw.measurer > 2) return BadNumber("measurer", raw.measurer, "1 or 2");
  if (raw.token_start > kTokenStartMax) return BadNumber("token_start", raw.token_start, "below 2^48");
  if (raw.block_bytes != size)
    return BadNumber("block_bytes", raw.block_bytes, absl::StrCat(size, ", the block's size"));
  if (raw.reserved != 0) return BadNumber("reserved", raw.reserved, "0");
  return absl::OkStatus();
}

bool IsError(float error) { return error >= 0; }  // Not NaN; infinity is what a plane without a floor has.

absl::Status CheckEntry(const RawHeader& header, const RawPlane& raw) {
  if (raw.layer < header.layer_begin || raw.layer >= header.layer_end) {
    return BadNumber("layer", raw.layer, absl::StrCat(header.layer_begin, " to ", header.layer_end - 1));
  }
  if (raw.role < 1 || raw.role > 4) return BadNumber("role", raw.role, "1 to 4");
  if (raw.dtype < 1 || raw.dtype > 3) return BadNumber("dtype", raw.dtype, "1 to 3");
  if (raw.channels % 8 != 0 || raw.channels == 0 || raw.channels > kChannelsMax) {
    return BadNumber("channels", raw.channels, "a multiple of 8, 8 to 8192");
  }
  const absl::Status codec = ValidatePlaneCodec(ToEntry(raw).codec, raw.channels);
  if (!codec.ok()) return Bad(codec.message());
  if (raw.reserved != 0 || raw.reserved2 != 0) return BadNumber("reserved", raw.reserved | raw.reserved2, "0");
  if (!IsError(raw.floor_error)) return Bad("floor_error: must not be negative or NaN");
  if (!IsError(raw.token_norm_error)) return Bad("token_norm_error: must not be negative or NaN");
  if (!IsError(raw.nmse)) return Bad("nmse: must not be negative or NaN");
  return absl::OkStatus();
}

bool AllZero(std::span<const std::byte> bytes) {
  for (std::byte byte : bytes) {
    if (byte != std::byte{0}) return false;
  }
  return true;
}

PlaneShape ShapeOf(uint32_t tokens, uint32_t heads, const PlaneEntry& entry) {
  return {.tokens = tokens, .heads = heads, .channels = entry.channels, .dtype = entry.dtype};
}

// Checks that plane `index` is where it must be, `end` being the end of what is in front of it, and moves `end` behind
// it.
absl::Status CheckPlace(std::span<const std::byte> block, const RawHeader& header, const RawPlane& raw, uint64_t start,
                        uint64_t& end) {
  if (raw.offset != start) return BadNumber("offset", raw.offset, absl::StrCat(start));
  const PlaneEntry entry = ToEntry(raw);
  const uint64_t length =
      EncodedBytes(entry.codec, ShapeOf(header.tokens, uint32_t{header.head_end} - header.head_begin, entry));
  if (raw.length != length) return BadNumber("length", raw.length, absl::StrCat(length));
  if (start + length > block.size()) return Bad("length: the plane ends at ", start + length, " of ", block.size());
  if (!AllZero(block.subspan(end, start - end))) return Bad("padding: must be zero");
  end = start + length;
  return absl::OkStatus();
}

absl::Status CheckTable(std::span<const std::byte> block, const RawHeader& header) {
  uint64_t end = HeadEnd(header.plane_count), start = PlanesOffset(header.plane_count);
  uint32_t order = 0;
  for (size_t i = 0; i < header.plane_count; ++i) {
    const RawPlane raw = LoadPlane(block, i);
    absl::Status status = CheckEntry(header, raw);
    if (status.ok()) {
      const uint32_t place = uint32_t{raw.layer} << 8 | raw.role;
      if (i > 0 && place <= order) status = Bad("layer: planes must be in order of layer and role, each once");
      order = place;
    }
    if (status.ok()) status = CheckPlace(block, header, raw, start, end);
    if (!status.ok()) return absl::InvalidArgumentError(absl::StrCat(status.message(), " (plane ", i, ")"));
    start = (end + kPlaneAlignment - 1) / kPlaneAlignment * kPlaneAlignment;
  }
  if (end != block.size()) return BadNumber("block_bytes", block.size(), absl::StrCat(end, ", where the planes end"));
  return absl::OkStatus();
}

}  // namespace

void WriteBlockHead(const BlockHeader& header, std::span<const PlaneEntry> planes, std::span<std::byte> block) {
  RawHeader raw = {.magic = kMagic,
                   .version = kVersion,
                   .flags = header.first_in_sequence ? kFirstInSequence : uint16_t{0},
                   .fingerprint = {},
                   .layer_group = header.layer_group,
                   .tokens = header.tokens,
                   .layer_begin = header.range.layer_begin,
                   .layer_end = header.range.layer_end,
                   .head_begin = header.range.head_begin,
                   .head_end = header.range.head_end,
                   .plane_count = static_cast<uint16_t>(planes.size()),
                   .provenance = static_cast<uint8_t>(header.provenance),
                   .measurer = static_cast<uint8_t>(header.measurer),
                   .token_start = header.token_start,
                   .block_bytes = block.size(),
                   .reserved = 0,
                   .crc32c = 0};
  std::memcpy(raw.fingerprint, header.fingerprint.data(), sizeof(raw.fingerprint));
  std::memcpy(block.data(), &raw, sizeof(raw));
  size_t end = HeadEnd(planes.size());
  for (size_t i = 0; i < planes.size(); ++i) {
    const RawPlane plane = ToRaw(planes[i]);
    std::memcpy(block.data() + kBlockHeaderBytes + i * kPlaneEntryBytes, &plane, sizeof(plane));
    std::memset(block.data() + end, 0, planes[i].offset - end);
    end = size_t{planes[i].offset} + planes[i].length;
  }
  const uint32_t crc = HeadCrc(block, planes.size());
  std::memcpy(block.data() + offsetof(RawHeader, crc32c), &crc, sizeof(crc));
}

absl::StatusOr<BlockView> BlockView::Parse(std::span<const std::byte> block) {
  if (block.size() < kBlockHeaderBytes) return Bad("size: ", block.size(), " bytes, a header has 64");
  const auto raw = Load<RawHeader>(block, 0);
  if (raw.magic != kMagic) return Bad("magic: these bytes are not an NQKV block");
  if (raw.version != kVersion) return BadNumber("version", raw.version, "1");
  if (raw.plane_count == 0) return BadNumber("plane_count", 0, "at least 1");
  if (PlanesOffset(raw.plane_count) > block.size()) {
    return Bad("plane_count: the table of ", raw.plane_count, " planes does not fit into ", block.size(), " bytes");
  }
  if (HeadCrc(block, raw.plane_count) != raw.crc32c) {
    return absl::DataLossError("block: the header's CRC32C does not match");
  }
  NQKV_RETURN_IF_ERROR(CheckHeader(raw, block.size()));
  NQKV_RETURN_IF_ERROR(CheckTable(block, raw));

  BlockView view;
  view.block_ = block;
  view.plane_count_ = raw.plane_count;
  view.header_ = {.fingerprint = {},
                  .layer_group = raw.layer_group,
                  .tokens = raw.tokens,
                  .range = {raw.layer_begin, raw.layer_end, raw.head_begin, raw.head_end},
                  .provenance = static_cast<Provenance>(raw.provenance),
                  .measurer = static_cast<Measurer>(raw.measurer),
                  .first_in_sequence = (raw.flags & kFirstInSequence) != 0,
                  .token_start = raw.token_start};
  std::memcpy(view.header_.fingerprint.data(), raw.fingerprint, sizeof(raw.fingerprint));
  return view;
}

PlaneEntry BlockView::plane(size_t index) const { return ToEntry(LoadPlane(block_, index)); }

PlaneShape BlockView::shape(const PlaneEntry& entry) const {
  return ShapeOf(header_.tokens, header_.range.heads(), entry);
}

absl::Status BlockView::CheckPlane(const PlaneEntry& entry) const {
  const std::string place = absl::StrCat("layer ", entry.layer, ", role ", static_cast<int>(entry.role));
  if (Crc32c(plane_bytes(entry)) != entry.crc32c) {
    return absl::DataLossError(absl::StrCat("block: the CRC32C of ", place, " does not match its bytes"));
  }
  const absl::Status status = CheckEncodedPlane(entry.codec, shape(entry), plane_bytes(entry));
  return status.ok() ? status : absl::DataLossError(absl::StrCat("block: ", place, ": ", status.message()));
}

}  // namespace nqkv
