#include "kernels/block_encoder.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"

namespace nqkv {

namespace {

constexpr PlaneCodec kRawCodec = {.id = CodecId::kRaw};

absl::Status NonFinite(const PlaneSpec& plane) {
  return absl::InvalidArgumentError(absl::StrCat("payload: layer ", plane.layer, ", role ",
                                                 static_cast<int>(plane.role),
                                                 " holds NaN or Inf, which this cache refuses"));
}

}  // namespace

BlockEncoder::BlockEncoder(CodecPlan* plan, const BlockHeader& header)
    : plan_(plan),
      header_(header),
      span_(PlanesIn(plan->group(), header.range)),
      next_(span_.first),
      end_(PlanesOffset(span_.last - span_.first)) {
  entries_.reserve(span_.last - span_.first);
}

PlaneShape BlockEncoder::next_shape() const { return ShapeOf(plan_->group(), next_plane(), header_.range); }

absl::StatusOr<std::span<std::byte>> BlockEncoder::Place(const PlaneCodec& codec, std::span<std::byte> block) {
  const uint64_t start = (end_ + kPlaneAlignment - 1) / kPlaneAlignment * kPlaneAlignment;
  const uint64_t bytes = EncodedBytes(codec, next_shape());
  if (start + bytes > std::numeric_limits<uint32_t>::max()) {
    return absl::OutOfRangeError(absl::StrCat("block: ", start + bytes, " bytes pass the format's 4 GiB"));
  }
  needed_ = start + bytes;
  if (needed_ > block.size()) {
    return absl::ResourceExhaustedError(absl::StrCat("block: needs ", needed_, " bytes, has ", block.size()));
  }
  return block.subspan(start, bytes);
}

absl::Status BlockEncoder::Add(const std::byte* source, ptrdiff_t token_stride, ptrdiff_t head_stride,
                               std::span<std::byte> block) {
  // Kept over a repeated call, so that the repetition neither counts as a block nor tries a codec that has failed.
  if (!codec_.has_value()) codec_ = plan_->Choose(next_, header_.first_in_sequence);
  const PlaneShape shape = next_shape();
  EncodeArgs args{.source = source,
                  .token_stride = token_stride,
                  .head_stride = head_stride,
                  .shape = shape,
                  .codec = *codec_,
                  .encoded = {}};
  for (;;) {
    const absl::StatusOr<std::span<std::byte>> place = Place(args.codec, block);
    if (!place.ok()) return place.status();
    args.encoded = *place;
    const EncodeResult result = EncodePlane(args);
    if (!result.finite && !plan_->policy().allow_non_finite) return NonFinite(next_plane());
    if (plan_->Accept(next_, args.codec, result, header_.first_in_sequence) || args.codec.id == CodecId::kRaw) {
      Append(args, result, static_cast<uint32_t>(place->data() - block.data()));
      return absl::OkStatus();
    }
    // Where there is NaN or Inf, only raw will do.
    args.codec = result.finite ? plan_->Next(next_, args.codec, header_.first_in_sequence) : kRawCodec;
    codec_ = args.codec;
  }
}

void BlockEncoder::Append(const EncodeArgs& args, const EncodeResult& result, uint32_t offset) {
  const PlaneSpec& plane = next_plane();
  entries_.push_back({.layer = plane.layer,
                      .role = plane.role,
                      .dtype = plane.dtype,
                      .codec = args.codec,
                      .channels = plane.channels,
                      .offset = offset,
                      .length = static_cast<uint32_t>(args.encoded.size()),
                      .errors = result.errors,
                      .crc32c = result.crc32c});
  end_ = offset + args.encoded.size();
  needed_ = end_;
  codec_.reset();
  ++next_;
}

BlockEncoder::Summary BlockEncoder::Finish(std::span<std::byte> block) {
  WriteBlockHead(header_, entries_, block.first(end_));
  Summary summary{.raw_bytes = RawBytes(plan_->group(), header_.range)};
  for (const PlaneEntry& entry : entries_) {
    summary.worst.floor_error = std::max(summary.worst.floor_error, entry.errors.floor_error);
    summary.worst.token_norm_error = std::max(summary.worst.token_norm_error, entry.errors.token_norm_error);
    summary.worst.nmse = std::max(summary.worst.nmse, entry.errors.nmse);
    summary.fallback_planes += entry.codec.id == CodecId::kRaw;
  }
  if (plan_->policy().codec == CodecChoice::kRaw) summary.fallback_planes = 0;
  return summary;
}

}  // namespace nqkv
