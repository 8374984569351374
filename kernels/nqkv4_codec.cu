// Launches nqkv4's kernels: picks kernel and grid.
#include <bit>

#include "kernels/device_codec.h"
#include "kernels/device_launch.cuh"
#include "kernels/nqkv4_codec_kernels.cuh"

namespace nqkv {

namespace {

using device::Nqkv4DecodeLaunch;
using device::Nqkv4EncodeLaunch;

using EncodeKernel = void (*)(const Nqkv4EncodeLaunch);
using DecodeKernel = void (*)(const Nqkv4DecodeLaunch);

template <Dtype kDtype>
EncodeKernel EncodeKernelOf(uint16_t scale_group) {
  if (scale_group == 64) return &device::Nqkv4EncodeKernel<kDtype, 64>;
  return scale_group == 128 ? &device::Nqkv4EncodeKernel<kDtype, 128> : &device::Nqkv4EncodeKernel<kDtype, 256>;
}

EncodeKernel EncodeKernelOf(Dtype dtype, uint16_t scale_group) {
  if (dtype == Dtype::kFloat16) return EncodeKernelOf<Dtype::kFloat16>(scale_group);
  return dtype == Dtype::kBfloat16 ? EncodeKernelOf<Dtype::kBfloat16>(scale_group)
                                   : EncodeKernelOf<Dtype::kFloat32>(scale_group);
}

DecodeKernel DecodeKernelOf(Dtype dtype) {
  if (dtype == Dtype::kFloat16) return &device::Nqkv4DecodeKernel<Dtype::kFloat16>;
  return dtype == Dtype::kBfloat16 ? &device::Nqkv4DecodeKernel<Dtype::kBfloat16>
                                   : &device::Nqkv4DecodeKernel<Dtype::kFloat32>;
}

}  // namespace

absl::Status Nqkv4EncodeOnDevice(const DeviceEncodeArgs& args, StreamView stream) {
  const Nqkv4Layout layout(args.codec, args.shape);
  const auto groups = static_cast<uint32_t>(layout.groups);
  Nqkv4EncodeLaunch launch{.jobs = args.jobs,
                           .rows = device::PagedRows(args.layout),
                           .head = {},
                           .places = 0,
                           .scales = 0,
                           .tokens = args.shape.tokens,
                           .groups = groups,
                           .strip_bytes = static_cast<uint32_t>(layout.strip_bytes())};
  launch.head = device::LargestTile(args.shape, [&](device::HeadTile& tile) {
    launch.places = tile.Take(256 * sizeof(uint32_t));
    launch.scales = tile.Take(tile.step_rows * groups * static_cast<uint32_t>(sizeof(uint16_t)));
  });
  const EncodeKernel kernel = EncodeKernelOf(args.shape.dtype, args.codec.scale_group);
  return device::LaunchForJobs(
      kernel, launch, args.job_count,
      {.blocks = args.shape.heads, .threads = kEncodeThreads, .shared_bytes = launch.head.bytes}, stream,
      "encode nqkv4");
}

absl::Status Nqkv4DecodeOnDevice(const DeviceDecodeArgs& args, StreamView stream) {
  const Nqkv4Layout layout(args.codec, args.shape);
  const uint32_t heads = args.head_end - args.head_begin, row_pieces = (args.shape.channels + 15) / 16;
  const Nqkv4DecodeLaunch launch{.jobs = args.jobs,
                                 .rows = device::PagedRows(args.layout),
                                 .row_pieces = device::Divisor(row_pieces),
                                 .tokens = device::Divisor(args.shape.tokens),
                                 .pieces = heads * args.shape.tokens * row_pieces,
                                 .channels = args.shape.channels,
                                 .groups = static_cast<uint32_t>(layout.groups),
                                 .group_shift = static_cast<uint32_t>(std::countr_zero(args.codec.scale_group)),
                                 .strip_bytes = static_cast<uint32_t>(layout.strip_bytes()),
                                 .head_begin = args.head_begin,
                                 .vectors = args.shape.channels % 16 == 0 && layout.strip_bytes() % 8 == 0};
  return device::LaunchForJobs(DecodeKernelOf(args.dtype), launch, args.job_count,
                               {.blocks = (launch.pieces + kDecodeThreads - 1) / kDecodeThreads,
                                .threads = kDecodeThreads,
                                .shared_bytes = 16 * sizeof(float)},
                               stream, "decode nqkv4");
}

}  // namespace nqkv
