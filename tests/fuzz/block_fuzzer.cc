// Any bytes as a block: parsing never reads outside them, and what parses decodes, to the reference's bits.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <vector>

#include "kernels/block_format.h"
#include "kernels/codec.h"

namespace nqkv {
namespace {

constexpr uint64_t kElementsMax = 1 << 16;  // Of a plane: more says nothing new.

// Makes the header's checksum right, so that the fuzzer gets behind it.
void Sign(std::vector<std::byte>& block) {
  if (block.size() < kBlockHeaderBytes) return;
  uint16_t planes;
  std::memcpy(&planes, block.data() + 36, sizeof(planes));
  const size_t table = planes * kPlaneEntryBytes;
  if (kBlockHeaderBytes + table > block.size()) return;
  const std::span<const std::byte> bytes(block);
  const uint32_t crc = ExtendCrc32c(Crc32c(bytes.first(60)), bytes.subspan(kBlockHeaderBytes, table));
  std::memcpy(block.data() + 60, &crc, sizeof(crc));
}

std::vector<std::byte> Decoded(void (*decode)(const DecodeArgs&), DecodeArgs args) {
  const size_t row = args.shape.channels * DtypeBytes(args.dtype), heads = args.head_end - args.head_begin;
  std::vector<std::byte> target(args.shape.tokens * heads * row);
  args.target = target.data();
  args.head_stride = static_cast<ptrdiff_t>(row);
  args.token_stride = static_cast<ptrdiff_t>(heads * row);
  decode(args);
  return target;
}

void DecodeEverything(const BlockView& view) {
  for (size_t i = 0; i < view.plane_count(); ++i) {
    const PlaneEntry entry = view.plane(i);
    const PlaneShape shape = view.shape(entry);
    view.CheckPlane(entry).IgnoreError();
    if (shape.elements() > kElementsMax) continue;
    for (Dtype dtype : {Dtype::kFloat16, Dtype::kBfloat16, Dtype::kFloat32}) {
      const DecodeArgs args{.encoded = view.plane_bytes(entry),
                            .shape = shape,
                            .codec = entry.codec,
                            .head_begin = shape.heads / 2,
                            .head_end = shape.heads,
                            .dtype = dtype};
      if (Decoded(&DecodePlane, args) != Decoded(&DecodePlaneReference, args)) std::abort();
    }
  }
}

}  // namespace
}  // namespace nqkv

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // A vector of exactly the size, so that a sanitizer sees a read behind it.
  std::vector<std::byte> block(size);
  if (size > 0) std::memcpy(block.data(), data, size);
  nqkv::BlockView::Parse(block).IgnoreError();
  nqkv::Sign(block);
  const absl::StatusOr<nqkv::BlockView> view = nqkv::BlockView::Parse(block);
  if (view.ok()) nqkv::DecodeEverything(*view);
  return 0;
}
