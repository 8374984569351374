// Runs CUDA kernels, compiled as C++, on the CPU: a fiber for each thread of a block, one block after the other.
//
// What a GPU leaves undefined ends the process here, with a message that names block and thread: a barrier that some
// threads of the block do not reach, a warp operation that some lanes of its mask do not reach, a shuffle from a lane
// outside the mask, an access beyond shared memory (which lies between two guard pages), a vector access that is not
// aligned. Shared memory is filled with NaN patterns before each block. Lanes and warps run in an order that
// `order_seed` decides, so that a missing barrier shows as a difference between seeds.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x_size = 1, unsigned y_size = 1, unsigned z_size = 1) : x(x_size), y(y_size), z(z_size) {}
};

namespace nqkv::fake_cuda {

inline constexpr unsigned kWarpLanes = 32;

struct Grid {
  dim3 blocks;
  dim3 threads;  // Of a block; 1024 at most.
  size_t shared_bytes = 0;
  uint32_t order_seed = 0;  // 0: ascending.
};

// Runs `body` once for each thread. Grids may run in several threads of the process at a time.
void RunGrid(const Grid& grid, const std::function<void()>& body);

// Of the thread that asks; only inside RunGrid.
dim3 ThreadIndex();
dim3 BlockIndex();
dim3 BlockSize();
dim3 GridSize();
std::byte* SharedMemory();
size_t SharedBytes();

// `line` is the caller's: all threads of the block must meet at the same one.
void SyncBlock(int line);

enum class WarpOperation : uint8_t { kSync, kShuffle, kBallot };

// Hands in `value` and waits for the lanes of `mask`; the values are then given by WarpValue until the lane's next
// operation.
void MeetWarp(WarpOperation operation, uint32_t mask, uint64_t value, int line);
uint64_t WarpValue(unsigned lane);
unsigned Lane();

// Ends the process, naming the running block and thread, when `holds` is false.
void Check(bool holds, const char* what);

}  // namespace nqkv::fake_cuda
