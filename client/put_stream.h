// One Put call: sends blocks and gathers their results.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "client/channel.h"
#include "client/connection.h"
#include "client/put_framer.h"

namespace nqkv::client {

struct PutStreamOptions {
  uint64_t cache_id = 0;
  uint32_t shard_id = 0;
  uint64_t payload_bytes = 1 << 20;  // Of one message.
  size_t open_blocks_max = 1;        // Blocks begun and without a result.
  TimePoint deadline;
};

// Sends `items` over one stream; results[item.number] is set for each that the server answered. Returns how the call
// ended, when the transport has let go of the blocks' memory; to that end it breaks a connection that does not take the
// bytes. Blocks the caller.
//
// Errors:
//   INTERNAL  the server's reply makes no sense (a result for a block that is not open, or none for one at the end).
//   and every status that the server ends the call with.
absl::Status RunPutStream(Connection* connection, const Clock& clock, const PutStreamOptions& options,
                          std::span<const PutItem> items, std::span<std::optional<PutResult>> results);

}  // namespace nqkv::client
