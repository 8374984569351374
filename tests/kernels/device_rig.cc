#include "tests/kernels/device_rig.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "kernels/status_macros.h"

namespace nqkv {

namespace {

void Must(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::abort();
}

// Device memory with a pinned twin.
class Buffer {
 public:
  Buffer(size_t bytes, cudaStream_t stream) : bytes_(bytes), stream_(stream) {
    Must(cudaMalloc(&device_, bytes), "cudaMalloc");
    Must(cudaHostAlloc(&host_, bytes, cudaHostAllocDefault), "cudaHostAlloc");
  }
  Buffer(std::span<const std::byte> content, cudaStream_t stream) : Buffer(content.size(), stream) {
    std::memcpy(host_, content.data(), content.size());
    Upload();
  }
  Buffer(Buffer&& other) noexcept
      : bytes_(other.bytes_),
        stream_(other.stream_),
        device_(std::exchange(other.device_, nullptr)),
        host_(std::exchange(other.host_, nullptr)) {}
  ~Buffer() {
    if (device_ == nullptr) return;
    Must(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
    Must(cudaFree(device_), "cudaFree");
    Must(cudaFreeHost(host_), "cudaFreeHost");
  }

  std::byte* device() const { return static_cast<std::byte*>(device_); }
  void Upload() { Must(cudaMemcpyAsync(device_, host_, bytes_, cudaMemcpyHostToDevice, stream_), "cudaMemcpyAsync"); }
  std::vector<std::byte> Download() const {
    Must(cudaMemcpyAsync(host_, device_, bytes_, cudaMemcpyDeviceToHost, stream_), "cudaMemcpyAsync");
    Must(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
    const auto* bytes = static_cast<const std::byte*>(host_);
    return {bytes, bytes + bytes_};
  }

 private:
  size_t bytes_;
  cudaStream_t stream_;
  void* device_ = nullptr;
  void* host_ = nullptr;
};

template <typename T>
Buffer Uploaded(const std::vector<T>& values, cudaStream_t stream) {
  return Buffer(std::as_bytes(std::span(values)), stream);
}

uint32_t PageCount(const PlaneShape& shape, const Placement& placement) {
  return (shape.tokens + placement.page_tokens - 1) / placement.page_tokens;
}

std::vector<int32_t> PageTable(const PlaneShape& shape, const Placement& placement) {
  std::vector<int32_t> pages(PageCount(shape, placement));
  for (size_t i = 0; i < pages.size(); ++i) pages[i] = static_cast<int32_t>(i);
  if (placement.page_table) {
    std::reverse(pages.begin(), pages.end());
    if (pages.size() > 2) std::swap(pages[0], pages[1]);
  }
  return pages;
}

DevicePlaneLayout LayoutOf(const PlaneShape& shape, const Placement& placement) {
  const auto row = static_cast<int64_t>(shape.channels * DtypeBytes(shape.dtype) + placement.gap_bytes);
  const auto gap = static_cast<int64_t>(placement.gap_bytes);
  DevicePlaneLayout layout{.page_tokens = placement.page_tokens};
  const int64_t page_tokens = std::min(placement.page_tokens, shape.tokens);
  if (placement.heads_first) {
    layout.token_stride = row;
    layout.head_stride = page_tokens * row + gap;
    layout.page_stride = shape.heads * layout.head_stride + gap;
  } else {
    layout.head_stride = row;
    layout.token_stride = shape.heads * row + gap;
    layout.page_stride = page_tokens * layout.token_stride + gap;
  }
  return layout;
}

size_t ImageBytes(const PlaneShape& shape, const Placement& placement) {
  return placement.base_offset +
         PageCount(shape, placement) * static_cast<size_t>(LayoutOf(shape, placement).page_stride);
}

}  // namespace

std::string Describe(const Placement& placement) {
  return std::to_string(placement.page_tokens) + " tokens a page" + (placement.page_table ? ", page table" : "") +
         (placement.heads_first ? ", heads first" : "") + ", gaps of " + std::to_string(placement.gap_bytes) +
         ", base at " + std::to_string(placement.base_offset);
}

std::vector<std::byte> Place(const Plane& plane, const Placement& placement) {
  const DevicePlaneLayout layout = LayoutOf(plane.shape, placement);
  const std::vector<int32_t> pages = PageTable(plane.shape, placement);
  std::vector<std::byte> image(ImageBytes(plane.shape, placement), std::byte{0x5a});
  for (uint32_t t = 0; t < plane.shape.tokens; ++t) {
    for (uint32_t h = 0; h < plane.shape.heads; ++h) {
      const int64_t offset = pages[t / placement.page_tokens] * layout.page_stride +
                             t % placement.page_tokens * layout.token_stride + h * layout.head_stride;
      std::memcpy(image.data() + placement.base_offset + offset, plane.row(t, h),
                  plane.shape.channels * DtypeBytes(plane.shape.dtype));
    }
  }
  return image;
}

DeviceRig::DeviceRig() {
  cudaStream_t stream = nullptr;
  Must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  stream_ = stream;
}

DeviceRig::~DeviceRig() { Must(cudaStreamDestroy(static_cast<cudaStream_t>(stream_)), "cudaStreamDestroy"); }

std::optional<std::string> DeviceRig::WhyNone() {
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  cudaGetLastError();
  if (error != cudaSuccess) return std::string("no GPU: ") + cudaGetErrorString(error);
  return devices > 0 ? std::nullopt : std::optional<std::string>("no GPU");
}

absl::StatusOr<std::vector<Encoded>> DeviceRig::Encode(std::span<const Plane> planes, const PlaneCodec& codec,
                                                       const Placement& placement) {
  const PlaneShape& shape = planes.front().shape;
  const auto stream = static_cast<cudaStream_t>(stream_);
  const Buffer pages = Uploaded(PageTable(shape, placement), stream);
  std::vector<Buffer> sources, targets, sums;
  std::vector<DeviceEncodeJob> jobs;
  for (const Plane& plane : planes) {
    sources.push_back(Uploaded(Place(plane, placement), stream));
    targets.emplace_back(EncodedBytes(codec, shape), stream);
    sums.emplace_back(shape.heads * sizeof(DeviceHeadSums), stream);
    jobs.push_back({.source = sources.back().device() + placement.base_offset,
                    .pages = placement.page_table ? reinterpret_cast<const int32_t*>(pages.device()) : nullptr,
                    .encoded = targets.back().device(),
                    .sums = reinterpret_cast<DeviceHeadSums*>(sums.back().device())});
  }
  const Buffer job_buffer = Uploaded(jobs, stream);
  NQKV_RETURN_IF_ERROR(EncodeOnDevice({.jobs = reinterpret_cast<const DeviceEncodeJob*>(job_buffer.device()),
                                       .job_count = static_cast<uint32_t>(jobs.size()),
                                       .shape = shape,
                                       .codec = codec,
                                       .layout = LayoutOf(shape, placement)},
                                      this->stream()));
  std::vector<Encoded> encoded;
  for (size_t i = 0; i < planes.size(); ++i) {
    const std::vector<std::byte> bytes = sums[i].Download();
    std::vector<DeviceHeadSums> heads(shape.heads);
    std::memcpy(heads.data(), bytes.data(), bytes.size());
    encoded.push_back({.bytes = targets[i].Download(), .result = FoldHeads(heads)});
  }
  return encoded;
}

absl::StatusOr<std::vector<std::vector<std::byte>>> DeviceRig::Decode(std::span<const std::vector<std::byte>> encoded,
                                                                      const PlaneShape& shape, const PlaneCodec& codec,
                                                                      uint32_t head_begin, Dtype dtype,
                                                                      const Placement& placement) {
  const auto stream = static_cast<cudaStream_t>(stream_);
  const PlaneShape target_shape = {shape.tokens, shape.heads - head_begin, shape.channels, dtype};
  const Buffer pages = Uploaded(PageTable(target_shape, placement), stream);
  std::vector<Buffer> sources, targets;
  std::vector<DeviceDecodeJob> jobs;
  for (const std::vector<std::byte>& plane : encoded) {
    sources.push_back(Uploaded(plane, stream));
    targets.push_back(Uploaded(std::vector<std::byte>(ImageBytes(target_shape, placement), std::byte{0x5a}), stream));
    jobs.push_back({.encoded = sources.back().device(),
                    .target = targets.back().device() + placement.base_offset,
                    .pages = placement.page_table ? reinterpret_cast<const int32_t*>(pages.device()) : nullptr});
  }
  const Buffer job_buffer = Uploaded(jobs, stream);
  NQKV_RETURN_IF_ERROR(DecodeOnDevice({.jobs = reinterpret_cast<const DeviceDecodeJob*>(job_buffer.device()),
                                       .job_count = static_cast<uint32_t>(jobs.size()),
                                       .shape = shape,
                                       .codec = codec,
                                       .head_begin = head_begin,
                                       .head_end = shape.heads,
                                       .dtype = dtype,
                                       .layout = LayoutOf(target_shape, placement)},
                                      this->stream()));
  std::vector<std::vector<std::byte>> decoded;
  for (const Buffer& target : targets) decoded.push_back(target.Download());
  return decoded;
}

absl::StatusOr<std::vector<uint32_t>> DeviceRig::Checksums(std::span<const std::vector<std::byte>> bytes,
                                                           size_t offset) {
  const auto stream = static_cast<cudaStream_t>(stream_);
  const Buffer results(bytes.size() * sizeof(uint32_t), stream);
  std::vector<Buffer> sources;
  std::vector<DeviceCrcJob> jobs;
  for (size_t i = 0; i < bytes.size(); ++i) {
    std::vector<std::byte> shifted(offset);
    shifted.insert(shifted.end(), bytes[i].begin(), bytes[i].end());
    sources.push_back(Uploaded(shifted, stream));
    jobs.push_back({.data = sources.back().device() + offset,
                    .crc = reinterpret_cast<uint32_t*>(results.device()) + i,
                    .bytes = static_cast<uint32_t>(bytes[i].size())});
  }
  const Buffer job_buffer = Uploaded(jobs, stream);
  NQKV_RETURN_IF_ERROR(Crc32cOnDevice(reinterpret_cast<const DeviceCrcJob*>(job_buffer.device()),
                                      static_cast<uint32_t>(jobs.size()), this->stream()));
  const std::vector<std::byte> downloaded = results.Download();
  std::vector<uint32_t> crcs(bytes.size());
  std::memcpy(crcs.data(), downloaded.data(), downloaded.size());
  return crcs;
}

}  // namespace nqkv
