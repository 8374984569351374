// Replays a trace through a BlockStore, call by call as the service does: look up, reserve, commit, settle.
//
// Blocks have the shape of a small model (two planes of one head), so that a trace of long prompts fits the memory of
// any machine. Their sizes are true: what the codec plan says of an encoded block, header and table included, in a slot
// of its size class. Payload is not written.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "tests/support/trace_file.h"

namespace nqkv {

// Bytes of a stored block of `tokens` tokens: 16 KiB of raw planes for 32 tokens.
uint64_t RawBlockBytes(uint32_t tokens);
uint64_t Nqkv4BlockBytes(uint32_t tokens);

struct ReplayOptions {
  uint64_t host_bytes = 0;
  uint64_t block_bytes = 0;  // Of each stored block.
  std::string eviction_policy = "slru";
};

struct ReplayResult {
  double block_hits = 0;     // Share of the accesses: leading blocks of a request that were there.
  double token_hits = 0;     // Share of the prompt tokens that need no prefill.
  uint64_t blocks_held = 0;  // At the end.
};

// Errors: those of BlockStore; INTERNAL when the store contradicts itself at the end.
absl::StatusOr<ReplayResult> ReplayThroughStore(const Trace& trace, const ReplayOptions& options);

// The same figures of the plain policy (PolicyModel) with room for so many blocks.
ReplayResult ReplayThroughModel(const Trace& trace, uint64_t capacity_blocks, double protected_share);

// The memory in which just so many blocks of a size fit, slot table included.
absl::StatusOr<uint64_t> HostBytesFor(uint64_t blocks, uint64_t block_bytes);

}  // namespace nqkv
