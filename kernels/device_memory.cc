#include "kernels/device_memory.h"

#include "absl/strings/str_cat.h"
#include "kernels/cuda_status.h"
#include "kernels/status_macros.h"

namespace nqkv {

namespace {

absl::Status Copy(std::byte* target, const std::byte* source, size_t bytes, cudaMemcpyKind kind, StreamView stream,
                  absl::string_view what) {
  if (bytes == 0) return absl::OkStatus();
  return CudaStatus(cudaMemcpyAsync(target, source, bytes, kind, static_cast<cudaStream_t>(stream.handle())), what);
}

}  // namespace

absl::StatusOr<DeviceInfo> FindDevice() {
  int devices = 0;
  NQKV_RETURN_IF_ERROR(CudaStatus(cudaGetDeviceCount(&devices), "look for a GPU"));
  DeviceInfo info;
  NQKV_RETURN_IF_ERROR(CudaStatus(cudaMemGetInfo(&info.free_bytes, &info.total_bytes), "look at the GPU's memory"));
  cudaDeviceProp properties;
  NQKV_RETURN_IF_ERROR(CudaStatus(cudaGetDeviceProperties(&properties, 0), "look at the GPU"));
  info.name = properties.name;
  return info;
}

absl::StatusOr<DeviceMemory> DeviceMemory::Allocate(size_t bytes) {
  void* memory = nullptr;
  NQKV_RETURN_IF_ERROR(CudaStatus(cudaMalloc(&memory, bytes), absl::StrCat("allocate ", bytes, " bytes of the GPU")));
  return DeviceMemory(static_cast<std::byte*>(memory), bytes);
}

DeviceMemory::~DeviceMemory() {
  if (data_ != nullptr) cudaFree(data_);
}

absl::StatusOr<PinnedMemory> PinnedMemory::Allocate(size_t bytes) {
  void* memory = nullptr;
  NQKV_RETURN_IF_ERROR(CudaStatus(cudaHostAlloc(&memory, bytes, cudaHostAllocDefault),
                                  absl::StrCat("allocate ", bytes, " bytes of pinned memory")));
  return PinnedMemory(static_cast<std::byte*>(memory), bytes);
}

PinnedMemory::~PinnedMemory() {
  if (data_ != nullptr) cudaFreeHost(data_);
}

absl::Status CopyToDevice(std::byte* device, const std::byte* pinned, size_t bytes, StreamView stream) {
  return Copy(device, pinned, bytes, cudaMemcpyHostToDevice, stream, "copy to the GPU");
}

absl::Status CopyToHost(std::byte* pinned, const std::byte* device, size_t bytes, StreamView stream) {
  return Copy(pinned, device, bytes, cudaMemcpyDeviceToHost, stream, "copy from the GPU");
}

absl::Status CopyOnDevice(std::byte* target, const std::byte* source, size_t bytes, StreamView stream) {
  return Copy(target, source, bytes, cudaMemcpyDeviceToDevice, stream, "copy on the GPU");
}

}  // namespace nqkv
