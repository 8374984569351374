// The bytes of an encoded block: a 64-byte header, a table of planes, the planes. FORMAT.md gives every byte.
//
// A block holds one part (PartRange) of one layer group. Planes start at multiples of 16 bytes, the first at a multiple
// of 64. The header's own CRC32C covers header and table; each plane has one of its own in the table.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/statusor.h"
#include "kernels/block_layout.h"
#include "kernels/codec.h"

namespace nqkv {

using SpecFingerprint = std::array<std::byte, 16>;

// Numbers equal those of the wire contract.
enum class Provenance : uint8_t { kOriginal = 1, kOnLossyPrefix = 2, kDecoded = 3 };
enum class Measurer : uint8_t { kServer = 1, kClient = 2 };

struct BlockHeader {
  SpecFingerprint fingerprint = {};
  uint16_t layer_group = 0;
  uint16_t tokens = 0;
  PartRange range;
  Provenance provenance = Provenance::kOriginal;
  Measurer measurer = Measurer::kServer;
  bool first_in_sequence = false;
  uint64_t token_start = 0;  // Position of the block's first token in its sequence; at most 2^48 - 1.
};

struct PlaneEntry {
  uint16_t layer = 0;
  PlaneRole role = PlaneRole::kKey;
  Dtype dtype = Dtype::kFloat16;  // Of the source.
  PlaneCodec codec;
  uint16_t channels = 0;
  uint32_t offset = 0;  // From the start of the block.
  uint32_t length = 0;
  PlaneErrors errors;
  uint32_t crc32c = 0;
};

inline constexpr size_t kBlockHeaderBytes = 64;
inline constexpr size_t kPlaneEntryBytes = 40;
inline constexpr size_t kPlaneAlignment = 16;

// Where the first plane of a block with `plane_count` planes starts.
constexpr size_t PlanesOffset(size_t plane_count) {
  return (kBlockHeaderBytes + kPlaneEntryBytes * plane_count + 63) / 64 * 64;
}

// Writes header, table and their CRC to the front of `block`, whose planes are already in place.
// Precondition: `block` is the whole block, from its header to the end of its last plane.
void WriteBlockHead(const BlockHeader& header, std::span<const PlaneEntry> planes, std::span<std::byte> block);

// A checked view of an encoded block; points into bytes that the caller keeps alive.
class BlockView {
 public:
  // Checks structure and the header's CRC, not the planes' CRCs. Reads nothing outside `block`; time is linear in the
  // table.
  //
  // Errors:
  //   DATA_LOSS         the header's CRC does not match.
  //   INVALID_ARGUMENT  no block, an unknown version, or a table that contradicts itself or the size; the field
  //                     is named.
  static absl::StatusOr<BlockView> Parse(std::span<const std::byte> block);

  const BlockHeader& header() const { return header_; }
  size_t plane_count() const { return plane_count_; }
  PlaneEntry plane(size_t index) const;
  std::span<const std::byte> plane_bytes(const PlaneEntry& entry) const {
    return block_.subspan(entry.offset, entry.length);
  }
  // Shape of a stored plane.
  PlaneShape shape(const PlaneEntry& entry) const;
  // DATA_LOSS, naming the plane, when its bytes do not have its CRC or contradict themselves.
  absl::Status CheckPlane(const PlaneEntry& entry) const;

 private:
  std::span<const std::byte> block_;
  BlockHeader header_;
  size_t plane_count_ = 0;
};

}  // namespace nqkv
