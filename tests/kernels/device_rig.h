// Runs the codecs' launchers on planes that lie in host memory: on a GPU, or on the CPU under the fake runtime,
// whichever the test is linked with.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/device_codec.h"
#include "tests/kernels/plane_values.h"

namespace nqkv {

// How a plane's rows lie in device memory.
struct Placement {
  uint32_t page_tokens = 1024;  // From a plane's tokens on: one page.
  bool page_table = false;      // Pages in another order than tokens; else one behind the other.
  bool heads_first = false;     // In a page: [heads][tokens] instead of [tokens][heads].
  size_t gap_bytes = 0;         // Behind each row, token or head, and page.
  size_t base_offset = 0;       // From a multiple of 256.
};

std::string Describe(const Placement& placement);

// Owns a stream. Ends the process when the device fails: tests of failures use the backend.
class DeviceRig {
 public:
  DeviceRig();
  ~DeviceRig();
  DeviceRig(const DeviceRig&) = delete;
  DeviceRig& operator=(const DeviceRig&) = delete;

  // Why there is nothing to run on; absent when there is.
  static std::optional<std::string> WhyNone();

  StreamView stream() const { return StreamView(stream_); }

  // Encodes planes of one shape in one launch. Everything but the checksums is filled.
  absl::StatusOr<std::vector<Encoded>> Encode(std::span<const Plane> planes, const PlaneCodec& codec,
                                              const Placement& placement);

  // Decodes heads [head_begin, shape.heads) of each in one launch, into memory that held 5a everywhere. Returns that
  // memory, a plane each.
  absl::StatusOr<std::vector<std::vector<std::byte>>> Decode(std::span<const std::vector<std::byte>> encoded,
                                                             const PlaneShape& shape, const PlaneCodec& codec,
                                                             uint32_t head_begin, Dtype dtype,
                                                             const Placement& placement);

  // CRC32C of each, in one launch. `offset`: bytes between the start of the memory and the first byte.
  absl::StatusOr<std::vector<uint32_t>> Checksums(std::span<const std::vector<std::byte>> bytes, size_t offset);

 private:
  void* stream_ = nullptr;
};

// The memory that holds `plane` in this placement; 5a where no element is.
std::vector<std::byte> Place(const Plane& plane, const Placement& placement);

}  // namespace nqkv
