// What a Put stream's messages mean: chunks in, blocks out.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "nqkv/v1/kv_cache.pb.h"
#include "service/block_writer.h"
#include "service/cache_registry.h"
#include "service/call_environment.h"
#include "service/call_message.h"
#include "service/callers.h"
#include "service/put_message.h"

namespace nqkv {

// Not thread-safe: one message at a time. Dropping it drops the blocks that are not whole.
class PutStream {
 public:
  // `environment` must outlive the stream.
  PutStream(const CallEnvironment* environment, Caller caller);

  // Takes in one message and adds the results of the blocks that ended to `response`. The message's bytes are not used
  // afterwards. An error is the call's; results that were added stand.
  absl::Status Take(const IncomingMessage& message, v1::PutResponse* response);

  // The client has sent all: blocks that are not whole end with INVALID_ARGUMENT.
  void End(v1::PutResponse* response);

  // Payload that came and blocks that ended, so far.
  uint64_t payload_bytes() const { return payload_bytes_; }
  uint64_t ended_blocks() const { return ended_blocks_; }
  // Blocks that wait for bytes.
  size_t open_blocks() const { return writers_.size(); }

 private:
  absl::Status Open(const v1::PutRequest& fields);
  absl::Status BeginBlock(const v1::PutChunk& chunk, v1::PutResponse* response);
  absl::Status WriteChunk(uint32_t block, std::span<const std::span<const std::byte>> bytes, v1::PutResponse* response);
  void SkipChunk(uint32_t block, uint64_t bytes);
  void EndBlock(uint32_t block, const absl::Status& status, v1::BlockPutResult* result);
  void SettleStored();

  const CallEnvironment* environment_;
  const Caller caller_;
  std::shared_ptr<Cache> cache_;
  uint64_t cache_id_ = 0;
  uint32_t shard_id_ = 0;
  const Shard* shard_ = nullptr;
  uint64_t payload_bytes_ = 0;
  uint64_t ended_blocks_ = 0;
  absl::flat_hash_map<uint32_t, BlockWriter> writers_;
  std::vector<BlockKey> stored_;                      // And not settled yet.
  absl::flat_hash_map<uint32_t, uint64_t> skipping_;  // Blocks that have a result: bytes that are still to come.
};

}  // namespace nqkv
