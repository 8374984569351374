#include "kernels/device_codec.h"

#include "absl/strings/str_cat.h"
#include "kernels/fidelity.h"
#include "kernels/status_macros.h"

namespace nqkv {

namespace {

constexpr uint32_t kTokensMax = 1024;
constexpr uint32_t kHeadsMax = 1024;

absl::Status CheckCodec(const PlaneCodec& codec, const PlaneShape& shape) {
  NQKV_RETURN_IF_ERROR(ValidatePlaneCodec(codec, shape.channels));
  if (codec.layout == PlaneLayout::kHead) return absl::OkStatus();
  return absl::UnimplementedError(absl::StrCat("codec: ", PlaneCodecName(codec), " has no kernels"));
}

absl::Status CheckLayout(const DevicePlaneLayout& layout, Dtype dtype) {
  if (layout.page_tokens == 0) return absl::InvalidArgumentError("page_tokens: a page has at least one token");
  const auto element = static_cast<int64_t>(DtypeBytes(dtype));
  for (int64_t stride : {layout.page_stride, layout.token_stride, layout.head_stride}) {
    if (stride % element != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("stride: ", stride, " bytes are no multiple of the element's ", element));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckPlaneShape(const PlaneShape& shape) {
  const bool valid = shape.tokens >= 1 && shape.tokens <= kTokensMax && shape.heads >= 1 && shape.heads <= kHeadsMax &&
                     shape.channels >= 8 && shape.channels <= kChannelsMax && shape.channels % 8 == 0;
  if (valid) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("shape: no plane has ", shape.tokens, " tokens, ", shape.heads,
                                                 " heads and ", shape.channels, " channels"));
}

absl::Status CheckDeviceEncode(const DeviceEncodeArgs& args) {
  NQKV_RETURN_IF_ERROR(CheckPlaneShape(args.shape));
  NQKV_RETURN_IF_ERROR(CheckCodec(args.codec, args.shape));
  return CheckLayout(args.layout, args.shape.dtype);
}

absl::Status CheckDeviceDecode(const DeviceDecodeArgs& args) {
  NQKV_RETURN_IF_ERROR(CheckPlaneShape(args.shape));
  NQKV_RETURN_IF_ERROR(CheckCodec(args.codec, args.shape));
  if (args.head_begin >= args.head_end || args.head_end > args.shape.heads) {
    return absl::InvalidArgumentError(
        absl::StrCat("heads: [", args.head_begin, ", ", args.head_end, ") of ", args.shape.heads));
  }
  return CheckLayout(args.layout, args.dtype);
}

EncodeResult FoldHeads(std::span<const DeviceHeadSums> heads) {
  EncodeResult result;
  PlaneFidelity plane;
  bool rotated_in_range = true;
  for (const DeviceHeadSums& sums : heads) {
    rotated_in_range &= sums.rotated_beyond_scale == 0;
    result.finite &= sums.non_finite == 0;
    result.in_scale_range &= sums.beyond_scale == 0;
    // The lanes are added up already; one lane holds the sum.
    HeadFidelity head;
    head.signal[0] = sums.signal;
    head.error[0] = sums.error;
    head.weighted_error[0] = sums.weighted_error;
    head.token_norm_error = sums.token_norm_error;
    head.weighted_rows = sums.weighted_rows;
    plane.Add(head, sums.floor_energy);
  }
  if (result.finite) result.in_scale_range &= rotated_in_range;  // What NaN is rotated to says nothing.
  if (result.finite && result.in_scale_range) result.errors = plane.errors();
  return result;
}

}  // namespace nqkv
