// Streams, events, memory and copies, on the fake device.
#include "kernels/device_memory.h"

#include <gtest/gtest.h>

#include <cstring>

#include "kernels/stream.h"
#include "tests/support/fake_cuda/fake_runtime.h"

namespace nqkv {
namespace {

class DeviceMemoryTest : public testing::Test {
 protected:
  DeviceMemoryTest() { fake_cuda::Reset({.seed = 4, .device_bytes = 1000}); }
  ~DeviceMemoryTest() override { fake_cuda::Reset({}); }
};

TEST_F(DeviceMemoryTest, CopiesThereAndBack) {
  const auto stream = Stream::Create();
  const auto source = PinnedMemory::Allocate(100), target = PinnedMemory::Allocate(100);
  const auto device = DeviceMemory::Allocate(100), other = DeviceMemory::Allocate(100);
  ASSERT_TRUE(stream.ok() && source.ok() && target.ok() && device.ok() && other.ok());
  EXPECT_EQ(device->bytes(), 100u);
  for (size_t i = 0; i < 100; ++i) source->data()[i] = static_cast<std::byte>(i);
  EXPECT_TRUE(CopyToDevice(device->data(), source->data(), 100, stream->view()).ok());
  EXPECT_TRUE(CopyOnDevice(other->data(), device->data(), 100, stream->view()).ok());
  EXPECT_TRUE(CopyToHost(target->data(), other->data(), 100, stream->view()).ok());
  EXPECT_TRUE(stream->Wait().ok());
  EXPECT_EQ(std::memcmp(target->data(), source->data(), 100), 0);
}

TEST_F(DeviceMemoryTest, EventsOrderStreams) {
  for (uint32_t seed = 1; seed < 20; ++seed) {
    fake_cuda::Reset({.seed = seed});
    const auto first = Stream::Create(), second = Stream::Create();
    const auto source = PinnedMemory::Allocate(1), target = PinnedMemory::Allocate(1);
    const auto device = DeviceMemory::Allocate(1);
    auto event = Event::Create();
    ASSERT_TRUE(first.ok() && second.ok() && source.ok() && target.ok() && device.ok() && event.ok());
    EXPECT_TRUE(*event->Passed());
    *source->data() = std::byte{7};
    EXPECT_TRUE(CopyToDevice(device->data(), source->data(), 1, first->view()).ok());
    EXPECT_TRUE(event->Record(first->view()).ok());
    EXPECT_TRUE(event->Delay(second->view()).ok());
    EXPECT_TRUE(CopyToHost(target->data(), device->data(), 1, second->view()).ok());
    EXPECT_TRUE(second->Wait().ok());
    EXPECT_EQ(*target->data(), std::byte{7});
    EXPECT_TRUE(*event->Passed());
    EXPECT_TRUE(event->Wait().ok());
  }
}

TEST_F(DeviceMemoryTest, NamesWhatCouldNotBeAllocated) {
  const auto memory = DeviceMemory::Allocate(1001);
  EXPECT_EQ(memory.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(memory.status().message().find("1001 bytes of the GPU: cudaErrorMemoryAllocation"), std::string::npos)
      << memory.status();
}

TEST_F(DeviceMemoryTest, GivesBackWhatItOwns) {
  {
    auto first = DeviceMemory::Allocate(100);
    auto second = DeviceMemory::Allocate(200);
    ASSERT_TRUE(first.ok() && second.ok());
    *first = *std::move(second);  // The first goes with the one that it was swapped into.
    EXPECT_EQ(first->bytes(), 200u);
    const auto stream = Stream::Create();
    const auto event = Event::Create();
    EXPECT_EQ(fake_cuda::Count(), (fake_cuda::InUse{.device_bytes = 300, .streams = 1, .events = 1}));
  }
  EXPECT_EQ(fake_cuda::Count(), fake_cuda::InUse{});
}

TEST_F(DeviceMemoryTest, FindsTheDevice) {
  const auto info = FindDevice();
  ASSERT_TRUE(info.ok());
  EXPECT_EQ(info->name, "fake GPU");
  EXPECT_EQ(info->total_bytes, 1000u);
  EXPECT_EQ(info->free_bytes, 1000u);
}

TEST_F(DeviceMemoryTest, SaysThatThereIsNoDevice) {
  fake_cuda::Reset({.devices = 0});
  EXPECT_EQ(FindDevice().status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(DeviceMemoryTest, ABrokenDeviceIsAnInternalError) {
  const auto stream = Stream::Create();
  ASSERT_TRUE(stream.ok());
  fake_cuda::Break();
  EXPECT_EQ(stream->Wait().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(DeviceMemory::Allocate(1).status().code(), absl::StatusCode::kInternal);
}

}  // namespace
}  // namespace nqkv
