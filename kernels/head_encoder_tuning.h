// The numbers of the kernels that encode head by head. Plain constants.
#pragma once

#include <cstdint>

namespace nqkv {

// A block of threads encodes one head. Eight threads share a row, so that each holds two of its 16 sums; four warps
// take 16 rows a step. Wide rows take fewer, so that a step fits the shared memory that every kernel may have; one row
// of any width fits what the smallest of our GPUs gives on request.
inline constexpr uint32_t kEncodeThreads = 128;
inline constexpr uint32_t kRowThreads = 8;
inline constexpr uint32_t kStepRowsMax = kEncodeThreads / kRowThreads;

// Rows in shared memory are this far apart beyond their size, so that the four rows that a warp reads at a time lie in
// different banks.
inline constexpr uint32_t kTilePadding = 32;
inline constexpr uint32_t kCodesPadding = 16;

inline constexpr uint32_t kDecodeThreads = 256;

}  // namespace nqkv
