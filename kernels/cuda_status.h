// CUDA's errors as statuses: the only place that translates them.
#pragma once

#include <cuda_runtime.h>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace nqkv {

// OK, or a status that names `what` was tried and CUDA's error. Forgets the error where CUDA lets it be forgotten.
//
// Codes:
//   RESOURCE_EXHAUSTED   no memory.
//   UNAVAILABLE          no driver, or no device.
//   INTERNAL             everything else; the device may be unusable from then on.
absl::Status CudaStatus(cudaError_t error, absl::string_view what);

}  // namespace nqkv
