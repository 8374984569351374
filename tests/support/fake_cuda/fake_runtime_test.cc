#include "tests/support/fake_cuda/fake_runtime.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <set>
#include <vector>

namespace nqkv::fake_cuda {
namespace {

class FakeRuntimeTest : public testing::Test {
 protected:
  FakeRuntimeTest() { Reset({}); }
  ~FakeRuntimeTest() override { Reset({}); }
};

void Append(std::vector<int>* log, int value) { log->push_back(value); }

TEST_F(FakeRuntimeTest, StreamsKeepTheirOwnOrderAndNoOther) {
  std::set<std::vector<int>> orders;
  for (uint32_t seed = 1; seed < 20; ++seed) {
    Reset({.seed = seed});
    cudaStream_t a = nullptr, b = nullptr;
    ASSERT_EQ(cudaStreamCreateWithFlags(&a, cudaStreamNonBlocking), cudaSuccess);
    ASSERT_EQ(cudaStreamCreateWithFlags(&b, cudaStreamNonBlocking), cudaSuccess);
    std::vector<int> log;
    const cudaLaunchConfig_t on_a{.stream = a}, on_b{.stream = b};
    cudaLaunchKernelEx(&on_a, &Append, &log, 1);
    cudaLaunchKernelEx(&on_b, &Append, &log, 2);
    cudaLaunchKernelEx(&on_a, &Append, &log, 3);
    cudaStreamSynchronize(b);
    cudaStreamSynchronize(a);
    ASSERT_EQ(log.size(), 3u);
    EXPECT_LT(std::find(log.begin(), log.end(), 1), std::find(log.begin(), log.end(), 3));
    orders.insert(log);
    cudaStreamDestroy(a);
    cudaStreamDestroy(b);
  }
  EXPECT_EQ(orders.size(), 3u);  // 123, 132, 213.
}

TEST_F(FakeRuntimeTest, EventsOrderStreams) {
  for (uint32_t seed = 1; seed < 20; ++seed) {
    Reset({.seed = seed});
    cudaStream_t a = nullptr, b = nullptr;
    cudaEvent_t event = nullptr;
    cudaStreamCreateWithFlags(&a, cudaStreamNonBlocking);
    cudaStreamCreateWithFlags(&b, cudaStreamNonBlocking);
    cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
    EXPECT_EQ(cudaEventQuery(event), cudaSuccess);  // Never recorded.
    std::vector<int> log;
    const cudaLaunchConfig_t on_a{.stream = a}, on_b{.stream = b};
    cudaLaunchKernelEx(&on_a, &Append, &log, 1);
    cudaEventRecord(event, a);
    cudaStreamWaitEvent(b, event, 0);
    cudaLaunchKernelEx(&on_b, &Append, &log, 2);
    cudaStreamSynchronize(b);
    EXPECT_EQ(log, (std::vector<int>{1, 2}));
    EXPECT_EQ(cudaEventQuery(event), cudaSuccess);
    cudaEventDestroy(event);
    cudaStreamDestroy(a);
    cudaStreamDestroy(b);
  }
}

// What is changed before the copy was waited for may or may not be copied.
TEST_F(FakeRuntimeTest, CopiesReadTheirSourceLate) {
  std::set<int> copied;
  for (uint32_t seed = 1; seed < 20; ++seed) {
    Reset({.seed = seed});
    cudaStream_t stream = nullptr;
    void *pinned = nullptr, *device = nullptr, *back = nullptr;
    cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    cudaHostAlloc(&pinned, 4, cudaHostAllocDefault);
    cudaHostAlloc(&back, 4, cudaHostAllocDefault);
    cudaMalloc(&device, 4);
    std::memset(pinned, 1, 4);
    cudaMemcpyAsync(device, pinned, 4, cudaMemcpyHostToDevice, stream);
    cudaEvent_t event = nullptr;
    cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
    std::memset(pinned, 2, 4);
    cudaMemcpyAsync(back, device, 4, cudaMemcpyDeviceToHost, stream);
    cudaStreamSynchronize(stream);
    copied.insert(*static_cast<const unsigned char*>(back));
    cudaEventDestroy(event);
    cudaFree(device);
    cudaFreeHost(pinned);
    cudaFreeHost(back);
    cudaStreamDestroy(stream);
  }
  EXPECT_EQ(copied, (std::set<int>{1, 2}));
}

TEST_F(FakeRuntimeTest, MemoryEnds) {
  Reset({.device_bytes = 1000});
  void *first = nullptr, *second = nullptr;
  EXPECT_EQ(cudaMalloc(&first, 600), cudaSuccess);
  EXPECT_EQ(cudaMalloc(&second, 600), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaGetLastError(), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  EXPECT_EQ(Count().device_bytes, 600u);
  cudaFree(first);
}

TEST_F(FakeRuntimeTest, CallsFailAsOftenAsTold) {
  Reset({.seed = 3, .failure_rate = 0.5});
  int failures = 0, devices = 0;
  for (int i = 0; i < 200; ++i) failures += cudaGetDeviceCount(&devices) != cudaSuccess;
  EXPECT_GT(failures, 50);
  EXPECT_LT(failures, 150);
  EXPECT_EQ(FailedCalls(), static_cast<uint64_t>(failures));
  SetFailureRate(0);
  EXPECT_EQ(cudaGetDeviceCount(&devices), cudaSuccess);
  Break();
  EXPECT_EQ(cudaGetDeviceCount(&devices), cudaErrorIllegalAddress);
  cudaGetLastError();
}

TEST_F(FakeRuntimeTest, PageableMemoryAndLeaksEndTheProcess) {
  EXPECT_DEATH(
      {
        cudaStream_t stream = nullptr;
        void* device = nullptr;
        cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
        cudaMalloc(&device, 4);
        int pageable = 0;
        cudaMemcpyAsync(device, &pageable, 4, cudaMemcpyHostToDevice, stream);
      },
      "copy: memory");
  EXPECT_DEATH(
      {
        void* device = nullptr;
        cudaMalloc(&device, 4);
        Reset({});
      },
      "still in use");
}

}  // namespace
}  // namespace nqkv::fake_cuda
