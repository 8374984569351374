// The backend's queue and buffers under many threads. Kernels do not run, so that the thread sanitizer can watch.
#include <gtest/gtest.h>

#include <memory>
#include <thread>
#include <vector>

#include "kernels/cuda_backend.h"
#include "tests/kernels/plane_values.h"
#include "tests/support/fake_cuda/fake_runtime.h"

namespace nqkv {
namespace {

constexpr PlaneShape kShape = {.tokens = 16, .heads = 2, .channels = 64};
constexpr size_t kPlaneBytes = 2304;  // Encoded, rounded up.
constexpr size_t kPlanes = 9, kThreads = 6, kRounds = 20;

// Encodes, decodes and copies planes of its own. False when a call failed.
bool Use(Backend& backend, std::byte* memory, uint32_t seed) {
  const Plane plane = NormalPlane(kShape, seed);
  Plane target(kShape);
  std::vector<PlaneEncodeJob> encodes;
  std::vector<PlaneDecodeJob> decodes;
  for (size_t i = 0; i < kPlanes; ++i) {
    encodes.push_back({.source = plane.bytes.data(),
                       .token_stride = plane.token_stride,
                       .head_stride = plane.head_stride,
                       .shape = kShape,
                       .codec = Nqkv4(64),
                       .encoded = memory + i * kPlaneBytes});
    decodes.push_back({.encoded = memory + i * kPlaneBytes,
                       .shape = kShape,
                       .codec = Nqkv4(64),
                       .head_begin = 0,
                       .head_end = kShape.heads,
                       .target = target.bytes.data(),
                       .token_stride = target.token_stride,
                       .head_stride = target.head_stride});
  }
  std::vector<EncodeResult> results(kPlanes);
  std::vector<std::byte> bytes(kPlanes * kPlaneBytes, static_cast<std::byte>(seed)), back(bytes.size());
  for (size_t round = 0; round < kRounds; ++round) {
    if (!backend.Encode(encodes, results).ok()) return false;
    // No kernel has found the checksums.
    if (!absl::IsDataLoss(backend.Decode(decodes))) return false;
    if (!backend.Write(bytes, memory).ok() || !backend.Read(memory, back).ok() || back != bytes) return false;
  }
  return true;
}

TEST(CudaBackendThreadsTest, ShareBuffersAndBatches) {
  fake_cuda::Reset({.seed = 5, .skip_kernels = true});
  {
    const auto backend = MakeCudaBackend({.staging_bytes = 20000, .staging_buffers = 2});
    ASSERT_TRUE(backend.ok());
    const auto memory = (*backend)->Allocate(kThreads * kPlanes * kPlaneBytes);
    ASSERT_TRUE(memory.ok());
    std::vector<std::thread> threads;
    std::vector<int> succeeded(kThreads);
    for (uint32_t i = 0; i < kThreads; ++i) {
      threads.emplace_back(
          [&, i] { succeeded[i] = Use(**backend, (*memory)->bytes().data() + i * kPlanes * kPlaneBytes, i + 1); });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(succeeded, std::vector<int>(kThreads, 1));
  }
  fake_cuda::Reset({});
}

}  // namespace
}  // namespace nqkv
