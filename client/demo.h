// The demo: one process stores a real model's KV cache, another finds it, fetches it and checks every byte.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/block_check.h"
#include "client/nqkv.h"

namespace nqkv::client {

struct DemoOptions {
  std::string server;
  std::string capture_path;
  CodecPolicy policy;
  uint32_t block_tokens = 64;
  int repeats = 5;  // The speeds are medians of so many.
  ClientOptions client;
};

// What the storing process tells the other one.
struct DemoPut {
  double seconds = 0;  // Median of one Put of all blocks.
};

struct DemoReport {
  std::string cache;
  std::string server_version;
  std::string model;
  std::string text_source;
  CodecPolicy policy;
  uint32_t layers = 0;
  uint32_t heads = 0;
  uint32_t channels = 0;
  uint64_t tokens = 0;  // Of whole blocks.
  uint64_t blocks = 0;
  uint64_t raw_bytes = 0;
  uint64_t matched_tokens = 0;    // Of the same chain.
  uint64_t diverging_tokens = 0;  // Where the other chain parts.
  uint64_t diverging_matched_tokens = 0;
  double put_seconds = 0;
  double get_seconds = 0;
  std::map<PlaneRole, RoleTotals> roles;
};

// Clears the demo's cache and puts the capture's blocks, `repeats` times.
absl::StatusOr<DemoPut> RunDemoWorker(const DemoOptions& options);

// Looks up both chains, gets the blocks and checks them. The blocks must have been put by then.
//
// Errors:
//   DATA_LOSS  the first difference from the reference codec, or from what the lookup should have found.
absl::StatusOr<DemoReport> RunDemoReader(const DemoOptions& options);

}  // namespace nqkv::client
