// Request traces with the ids of KV blocks: what workers asked for, and when.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace nqkv {

struct TraceRequest {
  uint64_t input_tokens = 0;
  std::vector<uint32_t> blocks;  // Of the prompt, head first. Equal ids share their content and all that comes before.
};

struct Trace {
  std::string name;             // Of the file, without folder and endings.
  uint32_t block_tokens = 512;  // The last block of a prompt may have fewer.
  uint64_t unique_blocks = 0;   // Ids are below it.
  uint64_t accesses = 0;        // Blocks of all requests.
  std::vector<TraceRequest> requests;
};

// Reads JSON lines, compressed with zstd where the name ends so. Errors: NOT_FOUND; INVALID_ARGUMENT naming the line.
absl::StatusOr<Trace> ReadTrace(const std::string& path);

// The same requests in blocks of an `parts`-th of the tokens.
Trace Recut(const Trace& trace, uint32_t parts);

}  // namespace nqkv
