// Without CUDA everything that would need a device says so.
#include <gtest/gtest.h>

#include "kernels/cuda_backend.h"
#include "kernels/device_codec.h"
#include "kernels/device_memory.h"
#include "kernels/stream.h"

namespace nqkv {
namespace {

TEST(NoDeviceTest, NothingCanBeCreated) {
  EXPECT_EQ(FindDevice().status(), absl::UnavailableError("built without CUDA"));
  EXPECT_EQ(Stream::Create().status(), absl::UnavailableError("built without CUDA"));
  EXPECT_EQ(Event::Create().status(), absl::UnavailableError("built without CUDA"));
  EXPECT_EQ(DeviceMemory::Allocate(1).status(), absl::UnavailableError("built without CUDA"));
  EXPECT_EQ(PinnedMemory::Allocate(1).status(), absl::UnavailableError("built without CUDA"));
  EXPECT_EQ(MakeCudaBackend({}).status(), absl::UnavailableError("built without CUDA"));
  EXPECT_EQ(EncodeOnDevice({}, {}), absl::UnavailableError("built without CUDA"));
  EXPECT_EQ(DecodeOnDevice({}, {}), absl::UnavailableError("built without CUDA"));
}

}  // namespace
}  // namespace nqkv
