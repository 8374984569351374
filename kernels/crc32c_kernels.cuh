// CRC32C on a GPU: many checksums a launch. Device code only; the launcher is in crc32c.cu.
//
// A checksum is the remainder of a polynomial, and remainders add up: each thread takes every 256th word of the bytes
// and the threads' remainders are shifted to their places and added. Words are counted from the end, as if zeros came
// before the bytes, which change nothing; the register's first value is added to the first four bytes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/device_code.cuh"

namespace nqkv::device {

inline constexpr uint32_t kCrcThreads = 256;
inline constexpr uint32_t kCrcStepBytes = 4 * kCrcThreads;

// Polynomials of degree below 32, the lowest power in the highest bit.
constexpr uint32_t CrcProduct(uint32_t a, uint32_t b) {
  uint32_t product = 0;
  for (uint32_t bit = 0x80000000u; bit != 0; bit >>= 1) {
    if ((a & bit) != 0) product ^= b;
    b = (b & 1) != 0 ? (b >> 1) ^ 0x82f63b78u : b >> 1;
  }
  return product;
}

// x to the power of 8 * `bytes`: what a remainder is multiplied by when bytes follow.
constexpr uint32_t CrcShift(uint32_t bytes) {
  uint32_t result = 0x80000000u, square = 0x00800000u;  // 1, x^8.
  for (; bytes != 0; bytes >>= 1) {
    if ((bytes & 1) != 0) result = CrcProduct(result, square);
    square = CrcProduct(square, square);
  }
  return result;
}

struct CrcTables {
  uint32_t step[4][256] = {};         // A byte's share of a remainder after kCrcStepBytes more.
  uint32_t places[kCrcThreads] = {};  // A thread's shift from its last word to the end.

  constexpr CrcTables() {
    const uint32_t shift = CrcShift(kCrcStepBytes);
    for (uint32_t place = 0; place < 4; ++place) {
      // A sum of the bits' shares, so that each entry costs one addition.
      for (uint32_t value = 1; value < 256; ++value) {
        const uint32_t lowest = value & (0u - value);
        const uint32_t rest = value - lowest;
        step[place][value] =
            rest == 0 ? CrcProduct(value << (8 * place), shift) : step[place][rest] ^ step[place][lowest];
      }
    }
    for (uint32_t thread = 0; thread < kCrcThreads; ++thread) places[thread] = CrcShift(4 * (kCrcThreads - thread));
  }
};
__device__ const CrcTables kCrcTables;

struct CrcLaunch {
  const DeviceCrcJob* jobs;
};

// Four bytes from byte `index` on, which may begin before the bytes and is otherwise inside; the first four bytes come
// inverted.
__device__ __forceinline__ uint32_t CrcWord(const std::byte* data, int64_t index) {
  uint32_t word = 0;
  if (index >= 0 && IsAligned(data + index, 4)) {
    word = Load<uint32_t>(data + index);
  } else {
    for (int64_t i = 0; i < 4; ++i) {
      if (index + i >= 0) word |= static_cast<uint32_t>(Load<uint8_t>(data + index + i)) << (8 * i);
    }
  }
  if (index >= 4 || index <= -4) return word;
  return index >= 0 ? word ^ 0xffffffffu >> (8 * index) : word ^ 0xffffffffu << (-8 * index);
}

__device__ __forceinline__ uint32_t CrcProductOnDevice(uint32_t a, uint32_t b) {
  uint32_t product = 0;
  for (uint32_t bit = 0x80000000u; bit != 0; bit >>= 1) {
    product ^= (a & bit) != 0 ? b : 0;
    b = (b & 1) != 0 ? (b >> 1) ^ 0x82f63b78u : b >> 1;
  }
  return product;
}

// Grid: x 1, y jobs.
__global__ void __launch_bounds__(kCrcThreads) Crc32cKernel(const CrcLaunch launch) {
  const SharedArray<uint32_t> step(0, 1024);
  const SharedArray<uint32_t> warps(4096, kCrcThreads / 32);
  const uint32_t thread = threadIdx.x;
  for (uint32_t place = 0; place < 4; ++place) step[256 * place + thread] = kCrcTables.step[place][thread];
  __syncthreads();
  const DeviceCrcJob job = launch.jobs[blockIdx.y];
  const uint32_t steps = (job.bytes + kCrcStepBytes - 1) / kCrcStepBytes;
  const int64_t begin = static_cast<int64_t>(job.bytes) - static_cast<int64_t>(steps) * kCrcStepBytes;
  uint32_t remainder = 0;
  for (uint32_t i = 0; i < steps; ++i) {
    const int64_t index = begin + static_cast<int64_t>(i) * kCrcStepBytes + 4 * thread;
    remainder = step[remainder & 255] ^ step[256 + (remainder >> 8 & 255)] ^ step[512 + (remainder >> 16 & 255)] ^
                step[768 + (remainder >> 24)] ^ CrcWord(job.data, index);
  }
  remainder = CrcProductOnDevice(remainder, kCrcTables.places[thread]);
  for (int lanes = 16; lanes > 0; lanes /= 2) remainder ^= __shfl_xor_sync(kWholeWarp, remainder, lanes);
  if (thread % 32 == 0) warps[thread / 32] = remainder;
  __syncthreads();
  if (thread != 0) return;
  uint32_t crc = 0xffffffffu;
  for (uint32_t warp = 0; warp < kCrcThreads / 32; ++warp) crc ^= warps[warp];
  *job.crc = crc;
}

}  // namespace nqkv::device
