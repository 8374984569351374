// The codecs on a GPU: many planes of one shape a launch, gathered from and scattered to paged memory on the way.
//
// Bytes and errors equal the reference's (codec.h) bit for bit. The functions enqueue work on the caller's stream and
// return; they allocate nothing and wait for nothing. Thread-safe. All pointers are device pointers, the arrays of jobs
// too, and must stay valid until the work is done. Compiled without CUDA too; the launchers are linked with it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "kernels/codec.h"
#include "kernels/stream.h"

namespace nqkv {

// Where raw planes lie, in bytes. Element (t, h, d) of a plane is at
//
//     base + page(t) * page_stride + (t % page_tokens) * token_stride + h * head_stride + d * DtypeBytes
//
// where page(t) is t / page_tokens, or what the job's page table has in that place. Strides and bases are multiples of
// the element's size; rows that begin at multiples of 16 are read and written 16 bytes at a time.
struct DevicePlaneLayout {
  int64_t page_stride = 0;
  int64_t token_stride = 0;
  int64_t head_stride = 0;
  uint32_t page_tokens = 0;  // At least 1; with the plane's tokens or more there is one page.
};

// What encoding found out about one head; the plane's heads are folded by FoldHeads.
struct DeviceHeadSums {
  float signal = 0;
  float error = 0;
  float weighted_error = 0;
  float floor_energy = 0;
  float token_norm_error = 0;
  uint32_t weighted_rows = 0;
  uint32_t non_finite = 0;            // 1: the head holds NaN or Inf.
  uint32_t beyond_scale = 0;          // 1: it holds what has no fp16 scale.
  uint32_t rotated_beyond_scale = 0;  // 1: its rotation does.
  uint32_t reserved[3] = {};
};

struct DeviceEncodeJob {
  const std::byte* source = nullptr;  // The base.
  const int32_t* pages = nullptr;     // Page numbers of the plane's tokens in order; null: pages follow each other.
  std::byte* encoded = nullptr;       // EncodedBytes(codec, shape) bytes, aligned to 16.
  DeviceHeadSums* sums = nullptr;     // shape.heads of them.
};

struct DeviceEncodeArgs {
  const DeviceEncodeJob* jobs = nullptr;
  uint32_t job_count = 0;
  PlaneShape shape;
  PlaneCodec codec;
  DevicePlaneLayout layout;  // Of the sources.
};

struct DeviceDecodeJob {
  const std::byte* encoded = nullptr;  // The whole encoded plane, aligned to 16.
  std::byte* target = nullptr;         // The base; head_begin is the target's head 0.
  const int32_t* pages = nullptr;
};

struct DeviceDecodeArgs {
  const DeviceDecodeJob* jobs = nullptr;
  uint32_t job_count = 0;
  PlaneShape shape;  // Of the encoded planes.
  PlaneCodec codec;
  uint32_t head_begin = 0;  // Heads to decode: [head_begin, head_end).
  uint32_t head_end = 0;
  Dtype dtype = Dtype::kFloat16;  // Of the targets.
  DevicePlaneLayout layout;       // Of the targets.
};

// INVALID_ARGUMENT when no plane of a block may have this shape.
absl::Status CheckPlaneShape(const PlaneShape& shape);

// What the launchers check before they enqueue.
//
// Errors:
//   INVALID_ARGUMENT  the shape, codec, heads or layout is none that a block may have, or a stride splits elements.
//   UNIMPLEMENTED     planes in ROW layout have no kernels: they are encoded and decoded on the CPU.
absl::Status CheckDeviceEncode(const DeviceEncodeArgs& args);
absl::Status CheckDeviceDecode(const DeviceDecodeArgs& args);

// Errors: those above, and those of CudaStatus (cuda_status.h); then nothing or a part was enqueued.
absl::Status EncodeOnDevice(const DeviceEncodeArgs& args, StreamView stream);
absl::Status DecodeOnDevice(const DeviceDecodeArgs& args, StreamView stream);

struct DeviceCrcJob {
  const std::byte* data = nullptr;
  uint32_t* crc = nullptr;  // The result: CRC32C of the bytes.
  uint32_t bytes = 0;       // At least 4.
};
absl::Status Crc32cOnDevice(const DeviceCrcJob* jobs, uint32_t job_count, StreamView stream);

// Called by those above, which have checked the arguments.
absl::Status RawEncodeOnDevice(const DeviceEncodeArgs& args, StreamView stream);
absl::Status RawDecodeOnDevice(const DeviceDecodeArgs& args, StreamView stream);
absl::Status Q8EncodeOnDevice(const DeviceEncodeArgs& args, StreamView stream);
absl::Status Q8DecodeOnDevice(const DeviceDecodeArgs& args, StreamView stream);
absl::Status Nqkv4hEncodeOnDevice(const DeviceEncodeArgs& args, StreamView stream);
absl::Status Nqkv4hDecodeOnDevice(const DeviceDecodeArgs& args, StreamView stream);
absl::Status Nqkv4EncodeOnDevice(const DeviceEncodeArgs& args, StreamView stream);
absl::Status Nqkv4DecodeOnDevice(const DeviceDecodeArgs& args, StreamView stream);

// The plane's result from its heads', in order; without the CRC, which Crc32cOnDevice finds.
EncodeResult FoldHeads(std::span<const DeviceHeadSums> heads);

}  // namespace nqkv
