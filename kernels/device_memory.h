// Memory on the GPU, host memory that it reads and writes by itself, and copies between them.
//
// As in stream.h, everything is UNAVAILABLE where NQKV is built without CUDA or there is no device.
#pragma once

#include <cstddef>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/stream.h"

namespace nqkv {

// What the process will use.
struct DeviceInfo {
  std::string name;
  size_t total_bytes = 0;
  size_t free_bytes = 0;
};
absl::StatusOr<DeviceInfo> FindDevice();

// Owns memory on the device, aligned to 256 bytes; its content is unspecified at first. Going back waits for the work
// that the device has, so allocate once and cut it up.
class DeviceMemory {
 public:
  // `bytes` is at least 1. RESOURCE_EXHAUSTED when the device has no more.
  static absl::StatusOr<DeviceMemory> Allocate(size_t bytes);
  DeviceMemory(DeviceMemory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~DeviceMemory();

  std::byte* data() const { return data_; }  // A device pointer: not for the host to read.
  size_t bytes() const { return bytes_; }

 private:
  DeviceMemory(std::byte* data, size_t bytes) : data_(data), bytes_(bytes) {}

  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
};

// Owns pinned host memory: the host's like any other, and the only kind that copies here take.
class PinnedMemory {
 public:
  // As DeviceMemory's.
  static absl::StatusOr<PinnedMemory> Allocate(size_t bytes);
  PinnedMemory(PinnedMemory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  PinnedMemory& operator=(PinnedMemory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~PinnedMemory();

  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  PinnedMemory(std::byte* data, size_t bytes) : data_(data), bytes_(bytes) {}

  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
};

// Enqueue a copy and return. Both sides must stay as they are until it is done. Nothing happens for 0 bytes.
absl::Status CopyToDevice(std::byte* device, const std::byte* pinned, size_t bytes, StreamView stream);
absl::Status CopyToHost(std::byte* pinned, const std::byte* device, size_t bytes, StreamView stream);
absl::Status CopyOnDevice(std::byte* target, const std::byte* source, size_t bytes, StreamView stream);

}  // namespace nqkv
