// One Get call: receives blocks straight into the caller's memory.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "client/channel.h"
#include "client/connection.h"
#include "client/nqkv.h"
#include "client/target_writer.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/io/zero_copy_stream.h"
#include "nqkv/v1/kv_cache.pb.h"

namespace nqkv::client {

// Takes the messages of one Get apart and writes each block's bytes to its target. Nothing that a message says is
// trusted: it writes inside the targets only, and fails on the first thing that contradicts itself. Not thread-safe.
class GetAssembler {
 public:
  // One result a target, in order; `planes` of a block, for the targets that have planes. All must outlive it.
  GetAssembler(std::span<const GetTarget* const> targets, std::span<const PlanePiece> planes,
               std::span<GetResult* const> results);

  // INTERNAL when the message is malformed or contradicts what came before.
  absl::Status Add(google::protobuf::io::ZeroCopyInputStream* message);

  // Whether the block's result came, and all its bytes if it has any.
  bool complete(size_t index) const {
    return blocks_[index].begun && blocks_[index].received == blocks_[index].expected;
  }

 private:
  struct Block {
    TargetWriter writer;
    bool begun = false;
    bool fits = false;      // Else its bytes are skipped.
    uint64_t expected = 0;  // Bytes of payload.
    uint64_t received = 0;
  };
  // The bytes of a message's payload that belong to one block.
  struct Span {
    uint32_t index = 0;
    uint64_t bytes = 0;
  };

  absl::Status Begin(const v1::GetChunk& chunk);
  absl::Status AddChunk(google::protobuf::io::CodedInputStream* in, std::vector<Span>* spans);
  absl::Status AddPayload(google::protobuf::io::CodedInputStream* in, const std::vector<Span>& spans);

  std::span<GetResult* const> results_;
  std::vector<Block> blocks_;
};

struct GetStreamOptions {
  v1::GetRequest request;              // With the targets' keys, in order.
  std::span<const PlanePiece> planes;  // Of a block that is asked for; for targets that have planes.
  TimePoint deadline;
};

// Runs one Get. done[i] is set for every block that ended, well or not; its result then holds. Returns how the call
// ended. Blocks the caller.
absl::Status RunGetStream(Connection* connection, const Clock& clock, const GetStreamOptions& options,
                          std::span<const GetTarget* const> targets, std::span<GetResult* const> results,
                          std::vector<bool>* done);

}  // namespace nqkv::client
