#include "kernels/codec_plan.h"

#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/block_format.h"
#include "kernels/status_macros.h"

namespace nqkv {

namespace {

constexpr PlaneCodec kRawCodec = {.id = CodecId::kRaw};

PlaneCodec CheapCodec(const CodecPolicy& policy) {
  if (policy.codec == CodecChoice::kRaw) return kRawCodec;
  return {.id = CodecId::kNqkv4, .scale_group = policy.scale_group, .layout = policy.layout};
}

// Header, table and the planes as `codec_of(plane)` encodes them.
template <typename CodecOf>
uint64_t BlockBytes(const GroupLayout& group, const PartRange& range, CodecOf codec_of) {
  const PlaneSpan span = PlanesIn(group, range);
  uint64_t end = PlanesOffset(span.last - span.first);
  for (size_t plane = span.first; plane < span.last; ++plane) {
    const uint64_t start = (end + kPlaneAlignment - 1) / kPlaneAlignment * kPlaneAlignment;
    end = start + EncodedBytes(codec_of(plane), ShapeOf(group, group.planes[plane], range));
  }
  return end;
}

bool IsBound(float bound) { return std::isfinite(bound) && bound > 0; }

}  // namespace

absl::Status CodecPolicy::Validate() const {
  if (codec != CodecChoice::kAuto && codec != CodecChoice::kRaw && codec != CodecChoice::kNqkv4) {
    return absl::InvalidArgumentError(absl::StrCat("codec: ", static_cast<int>(codec), " is not known"));
  }
  if (codec != CodecChoice::kRaw) {
    NQKV_RETURN_IF_ERROR(ValidatePlaneCodec(CheapCodec(*this)));
  }
  if (codec == CodecChoice::kAuto && layout == PlaneLayout::kRow) {
    return absl::InvalidArgumentError("layout: auto never picks the row layout; name the codec nqkv4");
  }
  if (!IsBound(floor_error_max)) return absl::InvalidArgumentError("floor_error_max: must be finite and above 0");
  if (!IsBound(token_norm_error_max)) {
    return absl::InvalidArgumentError("token_norm_error_max: must be finite and above 0");
  }
  return absl::OkStatus();
}

std::string CodecPolicy::Name() const {
  return codec == CodecChoice::kAuto ? "auto" : std::string(PlaneCodecName(CheapCodec(*this)));
}

CodecPlan::CodecPlan(const CodecPolicy& policy, GroupLayout group)
    : policy_(policy),
      group_(std::move(group)),
      blocks_until_retry_(std::make_unique<std::atomic<uint32_t>[]>(group_.planes.size())) {}

PlaneCodec CodecPlan::Choose(size_t plane) {
  if (policy_.codec != CodecChoice::kAuto) return CheapCodec(policy_);
  std::atomic<uint32_t>& blocks = blocks_until_retry_[plane];
  uint32_t left = blocks.load(std::memory_order_relaxed);
  while (left > 0) {
    if (blocks.compare_exchange_weak(left, left - 1, std::memory_order_relaxed)) return kRawCodec;
  }
  return CheapCodec(policy_);
}

bool CodecPlan::Accept(size_t plane, const PlaneCodec& codec, const EncodeResult& result) {
  if (!result.finite) return false;  // A damaged block says nothing about the plane.
  if (codec.id == CodecId::kRaw) return true;
  const bool within = result.errors.floor_error <= policy_.floor_error_max &&
                      result.errors.token_norm_error <= policy_.token_norm_error_max;
  if (policy_.codec != CodecChoice::kAuto) return result.in_scale_range;
  const bool accepted = result.in_scale_range && within;
  if (!accepted) blocks_until_retry_[plane].store(kRetryBlocks - 1, std::memory_order_relaxed);
  return accepted;
}

uint64_t CodecPlan::EncodedBytesMin(const PartRange& range) const {
  return BlockBytes(group_, range, [this](size_t) { return CheapCodec(policy_); });
}

uint64_t CodecPlan::EncodedBytesTypical(const PartRange& range) const {
  return BlockBytes(group_, range, [this](size_t plane) {
    return blocks_until_retry_[plane].load(std::memory_order_relaxed) > 0 ? kRawCodec : CheapCodec(policy_);
  });
}

uint64_t CodecPlan::EncodedBytesMax(const PartRange& range) const {
  return BlockBytes(group_, range, [this](size_t plane) {
    // A plane of fp16 always has an fp16 scale, so under a fixed policy only NaN and Inf can force it to raw.
    const bool always = policy_.codec == CodecChoice::kNqkv4 && !policy_.allow_non_finite &&
                        group_.planes[plane].dtype == Dtype::kFloat16;
    return always ? CheapCodec(policy_) : kRawCodec;
  });
}

}  // namespace nqkv
