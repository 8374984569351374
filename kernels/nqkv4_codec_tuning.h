// The numbers of nqkv4's kernels. Plain constants.
#pragma once

#include <cstdint>

namespace nqkv {

// A block of threads encodes one head. Eight threads share a row, so that each holds two of its 16 sums; four warps
// take 16 rows a step. Wide rows take fewer, so that a step fits the shared memory that every kernel may have; one row
// of any width fits what the smallest of our GPUs gives on request.
inline constexpr uint32_t kNqkv4EncodeThreads = 128;
inline constexpr uint32_t kNqkv4RowThreads = 8;
inline constexpr uint32_t kNqkv4StepRowsMax = kNqkv4EncodeThreads / kNqkv4RowThreads;

// Rows in shared memory are this far apart beyond their size, so that the four rows that a warp reads at a time lie in
// different banks.
inline constexpr uint32_t kNqkv4TilePadding = 32;
inline constexpr uint32_t kNqkv4CodesPadding = 16;

inline constexpr uint32_t kNqkv4DecodeThreads = 256;

}  // namespace nqkv
