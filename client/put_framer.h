// Cuts blocks into the messages of a Put stream.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "client/block_planes.h"
#include "client/borrowed_memory.h"
#include "client/nqkv.h"
#include "grpcpp/support/byte_buffer.h"
#include "nqkv/v1/kv_cache.pb.h"

namespace nqkv::client {

// A block that is about to be sent, with its number on the stream.
struct PutItem {
  uint32_t number = 0;
  const PutBlock* block = nullptr;
  std::vector<PlanePiece> planes;  // Of block->planes; empty for a block in one piece.

  uint64_t bytes() const;
};

// Small blocks share a message, large ones span several. A message is a small header that is copied, and slices of the
// caller's memory; only planes with gaps are copied, one plane at a time. Not thread-safe.
class PutFramer {
 public:
  // `items` and the memory of their blocks must outlive `borrowed`'s loans. `payload_bytes_max` above 0.
  PutFramer(uint64_t cache_id, uint32_t shard_id, std::span<const PutItem> items, uint64_t payload_bytes_max,
            BorrowedMemory* borrowed);

  bool done() const { return item_ == items_.size(); }
  // Whether the next message would begin with a new block.
  bool at_block_start() const { return sent_ == 0; }

  // The next message, in which at most `begin_max` blocks begin. Precondition: !done(), and begin_max > 0 or
  // !at_block_start(). Adds to `begun` how many blocks it begins.
  grpc::ByteBuffer Next(size_t begin_max, size_t* begun);

 private:
  // Appends one chunk of the current block, of at most `room` bytes, and returns its bytes.
  uint64_t AddChunk(uint64_t room, v1::PutRequest* request, std::vector<grpc::Slice>* payload);
  void LoadPiece();

  std::span<const PutItem> items_;
  uint64_t payload_bytes_max_;
  BorrowedMemory* borrowed_;
  uint64_t cache_id_;
  uint32_t shard_id_;
  bool first_ = true;

  size_t item_ = 0;         // The current block,
  uint64_t sent_ = 0;       // its bytes that were framed,
  size_t piece_index_ = 0;  // its next piece,
  grpc::Slice piece_;       // what the current piece is,
  size_t piece_used_ = 0;   // and its bytes that were framed.
  bool begun_ = false;
};

}  // namespace nqkv::client
