// Builds one encoded block, plane by plane, in memory that the caller owns.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/block_format.h"
#include "kernels/codec_plan.h"

namespace nqkv {

// Not thread-safe: one block, one thread at a time.
class BlockEncoder {
 public:
  // `plan` must outlive the encoder. Planes of `header.range` are expected by layer and then by role.
  BlockEncoder(CodecPlan* plan, const BlockHeader& header);

  // The next plane, and how it must be handed over: its spec and its shape in this part.
  bool done() const { return next_ == span_.last; }
  const PlaneSpec& next_plane() const { return plan_->group().planes[next_]; }
  PlaneShape next_shape() const;

  // Encodes the next plane from `source` (strides in bytes) to its place in `block`, choosing and checking its codec.
  //
  // Errors (nothing was added, the call may be repeated):
  //   RESOURCE_EXHAUSTED  `block` is too small; bytes_needed() says for what. Move the first bytes_used() bytes of the
  //                       block to a larger one and call again.
  //   INVALID_ARGUMENT    the plane holds NaN or Inf and the policy refuses them; layer and role are named.
  //   OUT_OF_RANGE        the block would pass the format's 4 GiB.
  absl::Status Add(const std::byte* source, ptrdiff_t token_stride, ptrdiff_t head_stride, std::span<std::byte> block);

  // What the whole block will most likely take.
  uint64_t bytes_typical() const { return plan_->EncodedBytesTypical(header_.range, header_.first_in_sequence); }
  size_t bytes_used() const { return end_; }
  size_t bytes_needed() const { return needed_; }

  struct Summary {
    uint64_t raw_bytes = 0;
    PlaneErrors worst;             // The largest of each.
    uint32_t fallback_planes = 0;  // Stored raw though the policy prefers another codec.
  };
  // Writes header and table. Precondition: done(). The block is the first bytes_used() bytes of `block`.
  Summary Finish(std::span<std::byte> block);

  std::span<const PlaneEntry> planes() const { return entries_; }

 private:
  // Where the next plane goes when `codec` encodes it.
  absl::StatusOr<std::span<std::byte>> Place(const PlaneCodec& codec, std::span<std::byte> block);
  void Append(const EncodeArgs& args, const EncodeResult& result, uint32_t offset);

  CodecPlan* plan_;
  BlockHeader header_;
  PlaneSpan span_;
  size_t next_;
  size_t end_;
  size_t needed_ = 0;
  std::optional<PlaneCodec> codec_;  // Of the next plane, once chosen.
  std::vector<PlaneEntry> entries_;
};

}  // namespace nqkv
