// A GPU as a backend: planes pass through a ring of pinned staging buffers, each with a stream of its own, so that
// copies of one batch overlap the kernels of another. Nothing is allocated after the start.
#pragma once

#include <cstddef>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/backend.h"

namespace nqkv {

struct CudaBackendOptions {
  // Of each buffer, once in pinned host memory and once on the device. A raw plane must fit into one.
  size_t staging_bytes = size_t{32} << 20;
  size_t staging_buffers = 3;
};

// Errors:
//   UNAVAILABLE         no device, or built without CUDA.
//   RESOURCE_EXHAUSTED  no memory for the buffers.
absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(const CudaBackendOptions& options);

}  // namespace nqkv
