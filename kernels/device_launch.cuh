// How launchers launch: a kernel whose only parameter holds the jobs, over as many grids as the jobs need.
#pragma once

#include <algorithm>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "kernels/cuda_status.h"
#include "kernels/device_code.cuh"
#include "kernels/head_encoder.cuh"
#include "kernels/status_macros.h"
#include "kernels/stream.h"

namespace nqkv::device {

inline constexpr uint32_t kJobsMax = 65535;          // A grid's y.
inline constexpr uint32_t kSharedBytes = 48u << 10;  // What every kernel may have without asking.

// The tile with as many rows a step as fit, and at least one. `take_rest(tile)` takes what else the kernel keeps in
// shared memory.
template <typename TakeRest>
HeadTile LargestTile(const PlaneShape& shape, TakeRest take_rest) {
  for (uint32_t rows = kStepRowsMax;; --rows) {
    HeadTile tile(shape, rows);
    take_rest(tile);
    if (tile.bytes <= kSharedBytes || rows == 1) return tile;
  }
}

struct LaunchSize {
  uint32_t blocks = 0;  // The grid's x, for each job.
  uint32_t threads = 0;
  uint32_t shared_bytes = 0;
};

// `launch.jobs` points to `job_count` jobs.
template <typename Launch>
absl::Status LaunchForJobs(void (*kernel)(const Launch), Launch launch, uint32_t job_count, const LaunchSize& size,
                           StreamView stream, absl::string_view what) {
  if (size.shared_bytes > kSharedBytes) {
    NQKV_RETURN_IF_ERROR(CudaStatus(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(size.shared_bytes)),
        what));
  }
  const auto* const jobs = launch.jobs;
  for (uint32_t first = 0; first < job_count; first += kJobsMax) {
    launch.jobs = jobs + first;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(size.blocks, std::min(kJobsMax, job_count - first));
    config.blockDim = dim3(size.threads);
    config.dynamicSmemBytes = size.shared_bytes;
    config.stream = static_cast<cudaStream_t>(stream.handle());
    NQKV_RETURN_IF_ERROR(CudaStatus(cudaLaunchKernelEx(&config, kernel, launch), what));
  }
  return absl::OkStatus();
}

}  // namespace nqkv::device
