// Puts the bytes of one block where the caller wants them, as they come.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "client/block_planes.h"
#include "client/nqkv.h"
#include "google/protobuf/io/coded_stream.h"

namespace nqkv::client {

// A place in a target's memory that moves on with each read. Not thread-safe.
class TargetWriter {
 public:
  // `target` and `planes` must outlive it. `planes`: the block's, one for each of target.planes; not used when that is
  // empty.
  TargetWriter(const GetTarget& target, std::span<const PlanePiece> planes);

  // Of the whole target.
  uint64_t bytes() const { return bytes_; }
  // Whether a block of `bytes` bytes may be read into it: planes must be filled, one piece may have room left.
  bool Fits(uint64_t bytes) const { return planes_.empty() ? bytes <= bytes_ : bytes == bytes_; }

  // Reads the next `bytes` from `in`. False when `in` ends before. Precondition: the target has so many left.
  bool Read(google::protobuf::io::CodedInputStream* in, uint64_t bytes);

 private:
  // Memory without gaps from the next byte on.
  std::span<std::byte> NextRun() const;
  void Advance(uint64_t bytes);

  const GetTarget& target_;
  std::span<const PlanePiece> planes_;  // Empty: one piece of memory.
  uint64_t bytes_;
  size_t plane_ = 0;     // The current plane,
  uint64_t offset_ = 0;  // and its bytes (or the one piece's) that were read.
};

}  // namespace nqkv::client
