// Launches q8's kernels: picks kernel and grid.
#include "kernels/device_codec.h"
#include "kernels/device_launch.cuh"
#include "kernels/q8_codec_kernels.cuh"

namespace nqkv {

namespace {

using device::Q8DecodeLaunch;
using device::Q8EncodeLaunch;

using EncodeKernel = void (*)(const Q8EncodeLaunch);
using DecodeKernel = void (*)(const Q8DecodeLaunch);

template <bool kByChannel>
EncodeKernel EncodeKernelOf(Dtype dtype) {
  if (dtype == Dtype::kFloat16) return &device::Q8EncodeKernel<Dtype::kFloat16, kByChannel>;
  return dtype == Dtype::kBfloat16 ? &device::Q8EncodeKernel<Dtype::kBfloat16, kByChannel>
                                   : &device::Q8EncodeKernel<Dtype::kFloat32, kByChannel>;
}

template <bool kByChannel>
DecodeKernel DecodeKernelOf(Dtype dtype) {
  if (dtype == Dtype::kFloat16) return &device::Q8DecodeKernel<Dtype::kFloat16, kByChannel>;
  return dtype == Dtype::kBfloat16 ? &device::Q8DecodeKernel<Dtype::kBfloat16, kByChannel>
                                   : &device::Q8DecodeKernel<Dtype::kFloat32, kByChannel>;
}

}  // namespace

absl::Status Q8EncodeOnDevice(const DeviceEncodeArgs& args, StreamView stream) {
  const Q8Layout layout(args.codec, args.shape);
  const auto groups = static_cast<uint32_t>(layout.groups);
  Q8EncodeLaunch launch{.jobs = args.jobs,
                        .rows = device::PagedRows(args.layout),
                        .head = {},
                        .scales = 0,
                        .tokens = args.shape.tokens,
                        .groups = groups,
                        .head_bytes = static_cast<uint32_t>(layout.head_bytes())};
  launch.head = device::LargestTile(args.shape, [&](device::HeadTile& tile) {
    const uint32_t scales = layout.by_channel ? args.shape.channels : tile.step_rows * groups;
    launch.scales = tile.Take(scales * static_cast<uint32_t>(sizeof(uint16_t)));
  });
  return device::LaunchForJobs(
      layout.by_channel ? EncodeKernelOf<true>(args.shape.dtype) : EncodeKernelOf<false>(args.shape.dtype), launch,
      args.job_count, {.blocks = args.shape.heads, .threads = kEncodeThreads, .shared_bytes = launch.head.bytes},
      stream, "encode q8");
}

absl::Status Q8DecodeOnDevice(const DeviceDecodeArgs& args, StreamView stream) {
  const Q8Layout layout(args.codec, args.shape);
  const uint32_t row_pieces = args.shape.channels / 8;
  const Q8DecodeLaunch launch{.jobs = args.jobs,
                              .rows = device::PagedRows(args.layout),
                              .row_pieces = device::Divisor(row_pieces),
                              .tokens = device::Divisor(args.shape.tokens),
                              .pieces = (args.head_end - args.head_begin) * args.shape.tokens * row_pieces,
                              .groups = static_cast<uint32_t>(layout.groups),
                              .head_bytes = static_cast<uint32_t>(layout.head_bytes()),
                              .head_begin = args.head_begin};
  return device::LaunchForJobs(
      layout.by_channel ? DecodeKernelOf<true>(args.dtype) : DecodeKernelOf<false>(args.dtype), launch, args.job_count,
      {.blocks = (launch.pieces + kDecodeThreads - 1) / kDecodeThreads, .threads = kDecodeThreads}, stream,
      "decode q8");
}

}  // namespace nqkv
