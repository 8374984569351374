// A PutRequest read in place: its fields are parsed, its payload stays where it came.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "nqkv/v1/kv_cache.pb.h"

namespace nqkv {

struct PutMessage {
  v1::PutRequest fields;                            // Without the payload.
  std::vector<std::span<const std::byte>> payload;  // Points into the message; no piece is empty.
  uint64_t payload_bytes = 0;
};

// Reads the wire form out of its pieces. The payload must be the last field, as the contract says.
//
// Errors:
//   INVALID_ARGUMENT  not a PutRequest, a field after the payload, or more than 1 MiB before it.
//   UNIMPLEMENTED     a field number that the contract does not have.
absl::StatusOr<PutMessage> ParsePutMessage(std::span<const std::span<const std::byte>> pieces);

}  // namespace nqkv
