// One block on its way in: from its first byte to its commit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/block_encoder.h"
#include "nqkv/v1/kv_cache.pb.h"
#include "service/byte_budget.h"
#include "service/cache_registry.h"
#include "service/call_environment.h"
#include "service/callers.h"
#include "storage/block_handle.h"

namespace nqkv {

// Encodes planes into a reservation as their bytes come: straight from the message when a plane lies whole in one
// piece, else by way of a buffer of one plane. Memory of the store is reserved when the first plane is there: before
// that a block is a promise, and promises evict nothing. Not thread-safe. Dropping it before Commit leaves nothing
// behind.
class BlockWriter {
 public:
  // Checks `begin`. The caller's budgets pay for the buffer and for what is reserved. All arguments must outlive the
  // writer.
  //
  // Errors:
  //   INVALID_ARGUMENT    bad key, group, range, scope, position or size; the field is named.
  //   ALREADY_EXISTS      the whole range is stored.
  //   RESOURCE_EXHAUSTED  the block is larger than what the store can hold in one piece, or has too many parts.
  static absl::StatusOr<BlockWriter> Begin(const CallEnvironment& environment, const Caller& caller, const Cache& cache,
                                           const Shard& shard, const v1::PutBegin& begin);

  BlockWriter(BlockWriter&&) = default;
  BlockWriter& operator=(BlockWriter&&) = default;

  const BlockKey& key() const { return key_; }
  uint64_t bytes_missing() const { return bytes_missing_; }

  // The next bytes of the block, at most bytes_missing().
  //
  // Errors (the block is lost):
  //   INVALID_ARGUMENT    a value that is not finite; layer and role are named.
  //   ALREADY_EXISTS      somebody else stored the range meanwhile.
  //   RESOURCE_EXHAUSTED  as Begin; or, with RetryInfo, the store is full and everything in it is being read or
  //   written,
  //                       or the caller has too much reserved; or too many bytes in flight, then scratch_refused().
  absl::Status Write(std::span<const std::byte> bytes);
  bool scratch_refused() const { return scratch_refused_; }

  // Makes the block visible and fills the numbers of `result`. Precondition: bytes_missing() is 0.
  //
  // Errors:
  //   ALREADY_EXISTS      as above.
  absl::Status Commit(v1::BlockPutResult* result);

 private:
  BlockWriter(const CallEnvironment& environment, const Caller& caller, const Cache& cache, const CacheGroup& group,
              const BlockKey& key, const BlockHeader& header, PartInfo info);

  absl::Status FillScratch(std::span<const std::byte>* bytes, size_t plane_bytes);
  absl::Status EncodePlane(const std::byte* source);
  absl::StatusOr<Reservation> Reserve(uint64_t bytes);
  absl::Status Grow();

  const CallEnvironment* environment_;
  const Caller* caller_;
  const Cache* cache_;
  const CacheGroup* group_;
  BlockKey key_;
  PartRange range_;
  PartInfo info_;
  ByteBudget::Lease reserved_lease_;
  Reservation reservation_;  // None before the first plane.
  std::unique_ptr<BlockEncoder> encoder_;
  uint64_t bytes_missing_;
  std::unique_ptr<std::byte[]> scratch_;
  size_t scratch_bytes_ = 0;  // Filled.
  ByteBudget::Lease scratch_lease_;
  bool scratch_refused_ = false;
};

}  // namespace nqkv
