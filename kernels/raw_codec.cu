// Launches raw's kernels: picks kernel and grid.
#include "kernels/device_codec.h"
#include "kernels/device_launch.cuh"
#include "kernels/raw_codec_kernels.cuh"

namespace nqkv {

namespace {

using device::RawDecodeLaunch;
using device::RawEncodeLaunch;

using EncodeKernel = void (*)(const RawEncodeLaunch);
using DecodeKernel = void (*)(const RawDecodeLaunch);

EncodeKernel EncodeKernelOf(Dtype dtype) {
  if (dtype == Dtype::kFloat16) return &device::RawEncodeKernel<Dtype::kFloat16>;
  return dtype == Dtype::kBfloat16 ? &device::RawEncodeKernel<Dtype::kBfloat16>
                                   : &device::RawEncodeKernel<Dtype::kFloat32>;
}

template <Dtype kFrom>
DecodeKernel DecodeKernelOf(Dtype to) {
  if (to == Dtype::kFloat16) return &device::RawDecodeKernel<kFrom, Dtype::kFloat16>;
  return to == Dtype::kBfloat16 ? &device::RawDecodeKernel<kFrom, Dtype::kBfloat16>
                                : &device::RawDecodeKernel<kFrom, Dtype::kFloat32>;
}

DecodeKernel DecodeKernelOf(Dtype from, Dtype to) {
  if (from == Dtype::kFloat16) return DecodeKernelOf<Dtype::kFloat16>(to);
  return from == Dtype::kBfloat16 ? DecodeKernelOf<Dtype::kBfloat16>(to) : DecodeKernelOf<Dtype::kFloat32>(to);
}

}  // namespace

absl::Status RawEncodeOnDevice(const DeviceEncodeArgs& args, StreamView stream) {
  const auto row_pieces = static_cast<uint32_t>(args.shape.channels * DtypeBytes(args.shape.dtype) / 16);
  const RawEncodeLaunch launch{.jobs = args.jobs,
                               .rows = device::PagedRows(args.layout),
                               .row_pieces = device::Divisor(row_pieces),
                               .pieces = args.shape.tokens * row_pieces,
                               .tokens = args.shape.tokens};
  return device::LaunchForJobs(EncodeKernelOf(args.shape.dtype), launch, args.job_count,
                               {.blocks = args.shape.heads,
                                .threads = device::kRawThreads,
                                .shared_bytes = device::kRawThreads / 32 * sizeof(uint32_t)},
                               stream, "encode raw");
}

absl::Status RawDecodeOnDevice(const DeviceDecodeArgs& args, StreamView stream) {
  const uint32_t row_pieces = args.shape.channels / 8;
  const RawDecodeLaunch launch{.jobs = args.jobs,
                               .rows = device::PagedRows(args.layout),
                               .row_pieces = device::Divisor(row_pieces),
                               .tokens = device::Divisor(args.shape.tokens),
                               .pieces = (args.head_end - args.head_begin) * args.shape.tokens * row_pieces,
                               .head_begin = args.head_begin};
  return device::LaunchForJobs(
      DecodeKernelOf(args.shape.dtype, args.dtype), launch, args.job_count,
      {.blocks = (launch.pieces + device::kRawThreads - 1) / device::kRawThreads, .threads = device::kRawThreads},
      stream, "decode raw");
}

}  // namespace nqkv
