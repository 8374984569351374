// Where encoded planes lie and who encodes and decodes them: the host, or a GPU. Raw planes are always in host memory.
//
// All calls return when their work is done, so memory may be used for something else at once, on whatever stream. Calls
// of several threads run side by side; a GPU takes what waits at the same time in one batch. Thread-safe.
#pragma once

#include <cstddef>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/codec.h"

namespace nqkv {

// Memory that a backend allocated, aligned to 64 bytes. May lie on a device: its addresses are for the backend alone.
// Goes before the backend.
class BackendMemory {
 public:
  virtual ~BackendMemory() = default;
  virtual std::span<std::byte> bytes() const = 0;
};

struct PlaneEncodeJob {
  const std::byte* source = nullptr;  // As in EncodeArgs, in host memory.
  ptrdiff_t token_stride = 0;
  ptrdiff_t head_stride = 0;
  PlaneShape shape;
  PlaneCodec codec;
  std::byte* encoded = nullptr;  // EncodedBytes(codec, shape) bytes of the backend's memory, aligned to 16.
};

struct PlaneDecodeJob {
  const std::byte* encoded = nullptr;  // The whole plane, in the backend's memory, aligned to 16.
  uint32_t crc32c = 0;                 // That the encoded plane must have.
  PlaneShape shape;
  PlaneCodec codec;
  uint32_t head_begin = 0;  // As in DecodeArgs.
  uint32_t head_end = 0;
  Dtype dtype = Dtype::kFloat16;
  std::byte* target = nullptr;  // In host memory.
  ptrdiff_t token_stride = 0;
  ptrdiff_t head_stride = 0;
};

class Backend {
 public:
  virtual ~Backend() = default;

  // "cpu", "cuda".
  virtual absl::string_view name() const = 0;
  // Whether planes may have this codec here.
  virtual bool Has(const PlaneCodec& codec) const = 0;

  // RESOURCE_EXHAUSTED when there is no more.
  virtual absl::StatusOr<std::unique_ptr<BackendMemory>> Allocate(size_t bytes) = 0;

  // Encodes each plane and fills its result, checksum included, with the bits that codec.h defines.
  //
  // Errors (what was encoded is then unspecified):
  //   INVALID_ARGUMENT    a shape or codec that no plane may have.
  //   UNIMPLEMENTED       Has() is false of a codec.
  //   RESOURCE_EXHAUSTED  a plane is larger than the backend can hold on its way.
  //   INTERNAL            the device failed. It may be unusable from then on; then every call fails.
  virtual absl::Status Encode(std::span<const PlaneEncodeJob> planes, std::span<EncodeResult> results) = 0;

  // Checks each plane's checksum and decodes it.
  //
  // Errors (the targets are then unspecified): those of Encode, and
  //   DATA_LOSS           a plane does not have its checksum; its number among `planes` is named.
  virtual absl::Status Decode(std::span<const PlaneDecodeJob> planes) = 0;

  // Copies between host memory and the backend's, bytes as they are. Errors: INTERNAL, as above.
  virtual absl::Status Write(std::span<const std::byte> source, std::byte* target) = 0;
  virtual absl::Status Read(const std::byte* source, std::span<std::byte> target) = 0;
};

}  // namespace nqkv
