// Launches nqkv4h's kernels: picks kernel and grid.
#include <bit>

#include "kernels/device_codec.h"
#include "kernels/device_launch.cuh"
#include "kernels/nqkv4h_codec_kernels.cuh"

namespace nqkv {

namespace {

using device::Nqkv4hDecodeLaunch;
using device::Nqkv4hEncodeLaunch;

using EncodeKernel = void (*)(const Nqkv4hEncodeLaunch);
using DecodeKernel = void (*)(const Nqkv4hDecodeLaunch);

template <Dtype kDtype>
EncodeKernel EncodeKernelOf(uint16_t scale_group) {
  if (scale_group == 64) return &device::Nqkv4hEncodeKernel<kDtype, 64>;
  return scale_group == 128 ? &device::Nqkv4hEncodeKernel<kDtype, 128> : &device::Nqkv4hEncodeKernel<kDtype, 256>;
}

EncodeKernel EncodeKernelOf(Dtype dtype, uint16_t scale_group) {
  if (dtype == Dtype::kFloat16) return EncodeKernelOf<Dtype::kFloat16>(scale_group);
  return dtype == Dtype::kBfloat16 ? EncodeKernelOf<Dtype::kBfloat16>(scale_group)
                                   : EncodeKernelOf<Dtype::kFloat32>(scale_group);
}

DecodeKernel DecodeKernelOf(Dtype dtype) {
  if (dtype == Dtype::kFloat16) return &device::Nqkv4hDecodeKernel<Dtype::kFloat16>;
  return dtype == Dtype::kBfloat16 ? &device::Nqkv4hDecodeKernel<Dtype::kBfloat16>
                                   : &device::Nqkv4hDecodeKernel<Dtype::kFloat32>;
}

}  // namespace

absl::Status Nqkv4hEncodeOnDevice(const DeviceEncodeArgs& args, StreamView stream) {
  const Nqkv4hLayout layout(args.codec, args.shape);
  const Rotation rotation(args.shape.channels);
  const auto groups = static_cast<uint32_t>(layout.rotated.groups);
  Nqkv4hEncodeLaunch launch{.rotated = {.jobs = args.jobs,
                                        .rows = device::PagedRows(args.layout),
                                        .head = {},
                                        .places = 0,
                                        .scales = 0,
                                        .tokens = args.shape.tokens,
                                        .groups = groups,
                                        .strip_bytes = static_cast<uint32_t>(layout.head_bytes())},
                            .jobs = args.jobs,
                            .channel_scales = 0,
                            .strong = 0,
                            .strong_count = static_cast<uint32_t>(layout.strong),
                            .strong_offset = static_cast<uint32_t>(layout.strong_offset()),
                            .block = static_cast<uint32_t>(rotation.block),
                            .forward = rotation.forward,
                            .energy = rotation.energy};
  PlaneShape shape = args.shape;
  shape.dtype = Dtype::kFloat32;
  launch.rotated.head = device::LargestTile(shape, [&](device::HeadTile& tile) {
    launch.rotated.places = tile.Take(256 * sizeof(uint32_t));
    launch.rotated.scales = tile.Take(tile.step_rows * groups * static_cast<uint32_t>(sizeof(uint16_t)));
    launch.channel_scales = tile.Take(shape.channels * static_cast<uint32_t>(sizeof(uint16_t)));
    launch.strong = tile.Take(kStrongChannelsMax * sizeof(uint32_t));
  });
  return device::LaunchForJobs(
      EncodeKernelOf(args.shape.dtype, args.codec.scale_group), launch, args.job_count,
      {.blocks = args.shape.heads, .threads = kEncodeThreads, .shared_bytes = launch.rotated.head.bytes}, stream,
      "encode nqkv4h");
}

absl::Status Nqkv4hDecodeOnDevice(const DeviceDecodeArgs& args, StreamView stream) {
  const Nqkv4hLayout layout(args.codec, args.shape);
  const Rotation rotation(args.shape.channels);
  const uint32_t row_bytes = 4 * args.shape.channels + kTilePadding;
  uint32_t step_rows = kStepRowsMax;
  while (step_rows > 1 && 64 + step_rows * row_bytes > device::kSharedBytes) --step_rows;
  const uint32_t steps = (args.shape.tokens + step_rows - 1) / step_rows;
  const Nqkv4hDecodeLaunch launch{.jobs = args.jobs,
                                  .rows = device::PagedRows(args.layout),
                                  .steps = device::Divisor(steps),
                                  .step_rows = step_rows,
                                  .tokens = args.shape.tokens,
                                  .channels = args.shape.channels,
                                  .groups = static_cast<uint32_t>(layout.rotated.groups),
                                  .group_shift = static_cast<uint32_t>(std::countr_zero(args.codec.scale_group)),
                                  .head_bytes = static_cast<uint32_t>(layout.head_bytes()),
                                  .head_begin = args.head_begin,
                                  .strong_count = static_cast<uint32_t>(layout.strong),
                                  .strong_offset = static_cast<uint32_t>(layout.strong_offset()),
                                  .block = static_cast<uint32_t>(rotation.block),
                                  .backward = rotation.backward};
  return device::LaunchForJobs(DecodeKernelOf(args.dtype), launch, args.job_count,
                               {.blocks = (args.head_end - args.head_begin) * steps,
                                .threads = kEncodeThreads,
                                .shared_bytes = 64 + step_rows * row_bytes},
                               stream, "decode nqkv4h");
}

}  // namespace nqkv
