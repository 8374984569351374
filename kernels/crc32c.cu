// Launches the checksums' kernel.
#include "kernels/crc32c_kernels.cuh"
#include "kernels/device_codec.h"
#include "kernels/device_launch.cuh"

namespace nqkv {

absl::Status Crc32cOnDevice(const DeviceCrcJob* jobs, uint32_t job_count, StreamView stream) {
  return device::LaunchForJobs(
      &device::Crc32cKernel, device::CrcLaunch{.jobs = jobs}, job_count,
      {.blocks = 1, .threads = device::kCrcThreads, .shared_bytes = 4096 + device::kCrcThreads / 32 * sizeof(uint32_t)},
      stream, "checksum");
}

}  // namespace nqkv
