// The numbers of nqkv4's kernels. Plain constants.
#pragma once

#include <cstdint>

namespace nqkv {

// A block of threads encodes one head. Eight threads share a row, so that each holds two of its 16 sums; four warps
// take 16 rows a step.
inline constexpr uint32_t kNqkv4EncodeThreads = 128;
inline constexpr uint32_t kNqkv4RowThreads = 8;
inline constexpr uint32_t kNqkv4StepRowsMax = kNqkv4EncodeThreads / kNqkv4RowThreads;
// Without asking for more than every kernel may have. Wide rows take fewer a step, and one row of any width fits what
// the smallest of our GPUs gives on request.
inline constexpr uint32_t kNqkv4SharedBytes = 48u << 10;

// Rows in shared memory are this far apart beyond their size, so that the four rows that a warp reads at a time lie in
// different banks.
inline constexpr uint32_t kNqkv4TilePadding = 32;
inline constexpr uint32_t kNqkv4CodesPadding = 16;

inline constexpr uint32_t kNqkv4DecodeThreads = 256;

// Planes a launch: the grid's y.
inline constexpr uint32_t kDeviceJobsMax = 65535;

}  // namespace nqkv
