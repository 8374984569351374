#include "tests/support/fake_cuda/fiber_grid.h"

#include <gtest/gtest.h>

#include <vector>

#include "tests/support/fake_cuda/cuda_runtime.h"

namespace nqkv::fake_cuda {
namespace {

TEST(FiberGridTest, RunsEachThreadOfEachBlockOnce) {
  std::vector<int> runs(3 * 2 * 40);
  RunGrid({.blocks = dim3(3, 2), .threads = dim3(8, 5)}, [&] {
    const unsigned block = blockIdx.y * gridDim.x + blockIdx.x;
    ++runs[block * 40 + threadIdx.y * blockDim.x + threadIdx.x];
  });
  EXPECT_EQ(runs, std::vector<int>(runs.size(), 1));
}

// Each thread reads what another warp wrote before the barrier.
TEST(FiberGridTest, BarriersOrderSharedMemoryForEveryOrder) {
  for (uint32_t seed : {0u, 1u, 2u, 3u}) {
    std::vector<unsigned> got(128);
    RunGrid({.blocks = 1, .threads = 128, .shared_bytes = 512, .order_seed = seed}, [&] {
      auto* shared = reinterpret_cast<unsigned*>(SharedMemory());
      shared[threadIdx.x] = threadIdx.x;
      __syncthreads();
      got[threadIdx.x] = shared[127 - threadIdx.x];
    });
    for (unsigned i = 0; i < 128; ++i) ASSERT_EQ(got[i], 127 - i);
  }
}

TEST(FiberGridTest, AMissingBarrierShowsInSomeOrder) {
  bool all_right = true;
  for (uint32_t seed : {0u, 1u, 2u, 3u}) {
    RunGrid({.blocks = 1, .threads = 128, .shared_bytes = 512, .order_seed = seed}, [&] {
      auto* shared = reinterpret_cast<unsigned*>(SharedMemory());
      shared[threadIdx.x] = threadIdx.x;
      all_right &= shared[127 - threadIdx.x] == 127 - threadIdx.x;
    });
  }
  EXPECT_FALSE(all_right);
}

TEST(FiberGridTest, ShufflesWithinWarps) {
  for (uint32_t seed : {0u, 5u}) {
    std::vector<unsigned> sums(64), firsts(64);
    RunGrid({.blocks = 1, .threads = 64, .order_seed = seed}, [&] {
      const unsigned thread = threadIdx.x;
      unsigned sum = thread;
      for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
      sums[thread] = sum;
      firsts[thread] = __shfl_sync(0xffffffffu, thread, 0, 8);
    });
    for (unsigned i = 0; i < 64; ++i) {
      EXPECT_EQ(sums[i], i < 32 ? 496u : 1520u);
      EXPECT_EQ(firsts[i], i / 8 * 8);
    }
  }
}

TEST(FiberGridTest, BallotsCountTheLanesOfTheMask) {
  std::vector<unsigned> votes(32);
  RunGrid({.blocks = 1, .threads = 32}, [&] {
    if (threadIdx.x < 16) votes[threadIdx.x] = __ballot_sync(0xffffu, threadIdx.x % 3 == 0);
  });
  EXPECT_EQ(votes[5], 0x9249u);
  EXPECT_EQ(votes[20], 0u);
}

TEST(FiberGridTest, SharedMemoryHoldsNothingAtFirst) {
  RunGrid({.blocks = 2, .threads = 1, .shared_bytes = 4}, [&] {
    float value;
    std::memcpy(&value, SharedMemory(), sizeof(value));
    EXPECT_TRUE(std::isnan(value));
    std::memset(SharedMemory(), 0, 4);
  });
}

class FiberGridDeathTest : public testing::Test {
 protected:
  static void Run(const std::function<void()>& body) {
    RunGrid({.blocks = 1, .threads = 64, .shared_bytes = 64}, body);
  }
};

TEST_F(FiberGridDeathTest, EndsWhenSomeThreadsMissABarrier) {
  EXPECT_DEATH(Run([] {
                 if (threadIdx.x != 7) __syncthreads();
               }),
               "diverged: waits at a barrier");
}

void WaitAtTwoBarriers() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

TEST_F(FiberGridDeathTest, EndsWhenThreadsWaitAtTwoBarriers) {
  EXPECT_DEATH(Run(&WaitAtTwoBarriers), "wait at two barriers");
}

TEST_F(FiberGridDeathTest, EndsWhenALaneOfTheMaskStaysAway) {
  EXPECT_DEATH(Run([] {
                 if (threadIdx.x % 2 == 0) __syncwarp();
               }),
               "diverged: other lanes of the mask wait");
  EXPECT_DEATH(Run([] {
                 if (threadIdx.x == 3) {
                   __syncthreads();
                 } else {
                   __shfl_xor_sync(0xffffffffu, 1, 1);
                 }
               }),
               "diverged: other lanes of the mask wait");
}

TEST_F(FiberGridDeathTest, EndsWhenAMaskLeavesOutItsCaller) {
  EXPECT_DEATH(Run([] { __syncwarp(0xfffffffeu); }), "leaves out the thread that calls it");
}

TEST_F(FiberGridDeathTest, EndsWhenAShuffleReadsOutsideTheMask) {
  EXPECT_DEATH(Run([] {
                 if (threadIdx.x < 16) __shfl_sync(0xffffu, 1, 16);
               }),
               "reads from a lane outside");
}

TEST_F(FiberGridDeathTest, EndsWhenSharedMemoryIsLeft) {
  EXPECT_DEATH(Run([] { *static_cast<volatile std::byte*>(SharedMemory() + 64) = std::byte{1}; }), "");
}

TEST_F(FiberGridDeathTest, EndsWhenDeviceCodeRunsOutsideAKernel) { EXPECT_DEATH(__syncthreads(), "outside a kernel"); }

}  // namespace
}  // namespace nqkv::fake_cuda
