// Keeps encoded blocks: the face of the storage folder.
//
// A block (BlockKey) is stored in parts: rectangles of layers and heads, as shards put them. It is present for a caller
// when its parts cover what the caller needs. A part goes reserved -> committed -> gone; only committed ones are found.
// The parts of a block are touched and evicted together.
//
// Thread-safe. No call does I/O or calls back while it holds a lock. The store must outlive its reservations. Handles
// may outlive it: the arena stays mapped until the last one is dropped.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/block_layout.h"
#include "storage/block_handle.h"
#include "storage/block_key.h"
#include "storage/block_presence.h"
#include "storage/cache_directory.h"
#include "storage/clock.h"
#include "storage/options.h"
#include "storage/stats.h"

namespace nqkv {

// What is kept beside a part's bytes.
struct PartInfo {
  uint64_t raw_bytes = 0;
  std::string scope;       // At most 32 bytes.
  uint8_t provenance = 1;  // As in the block format.
  float floor_error = 0;   // The worst of its planes.
  float token_norm_error = 0;
  // The chance, above 0 to 1, that the block will be wanted again; 0 when nobody knows. A new block whose chance is at
  // most kLowReuse is the first to be evicted.
  static constexpr float kLowReuse = 0.05f;
  float expected_reuse = 0;
};

class BlockStore {
 public:
  // Errors:
  //   INVALID_ARGUMENT    options (see StorageOptions).
  //   RESOURCE_EXHAUSTED  the memory or the file cannot be allocated; says how much was asked for and how much is free.
  //   ALREADY_EXISTS      another process holds the arena's file.
  // `clock` tells the ages of blocks and outlives the store; the machine's own when null.
  static absl::StatusOr<std::unique_ptr<BlockStore>> Create(const StorageOptions& options,
                                                            const Clock* clock = nullptr);
  ~BlockStore();

  // Whether a part of this range may be added to the block, as far as one can know without reserving.
  //
  // Errors:
  //   ALREADY_EXISTS      the committed parts cover the range.
  //   RESOURCE_EXHAUSTED  the block has too many parts: only a delete or an eviction changes that.
  absl::Status CheckRoom(const BlockKey& key, const PartRange& range) const;
  // The largest part that an empty store can hold.
  uint64_t part_bytes_max() const;

  // Memory for a part that is about to be encoded: at least `bytes` bytes, all of the slot; its content is unspecified.
  // Evicts if it must, and nothing when it sees that no room can be made. The range is what will be committed. Neither
  // a second reservation of a range nor a commit of it by somebody else is an error.
  //
  // Errors:
  //   ALREADY_EXISTS      the committed parts cover the range; the block is settled (see Settle).
  //   INVALID_ARGUMENT    empty range, 0 bytes.
  //   RESOURCE_EXHAUSTED  no room: everything else is pinned, reserved, or `bytes` is more than the store can ever hold
  //                       (then the message says so); the block has too many parts.
  absl::StatusOr<Reservation> Reserve(const BlockKey& key, const PartRange& range, uint64_t bytes);

  // Makes the part visible with its first `bytes` bytes. Atomic: found whole or not at all. A part much smaller than
  // its reservation is copied to a smaller slot, where one is free.
  //
  // Errors (the reservation's memory is given back):
  //   ALREADY_EXISTS      the committed parts cover the range by now.
  //   INVALID_ARGUMENT    an empty reservation or another store's, 0 bytes or more than the reservation has, a scope
  //                       over 32 bytes, an expected_reuse that is none.
  //   RESOURCE_EXHAUSTED  the block has too many parts by now.
  absl::Status Commit(Reservation reservation, uint64_t bytes, const PartInfo& info);

  // Whether the block covers `range`. Does not touch.
  BlockPresence Find(const BlockKey& key, const PartRange& range) const;

  // The number of leading keys that cover `range`. Touches them from last to first, so that the head of a chain is the
  // most recent. Fills `blocks`, when given, with one entry a matched key.
  size_t MatchPrefix(std::span<const BlockKey> keys, const PartRange& range, std::vector<BlockPresence>* blocks);

  // Each works from the last key to the first, so that of one request's blocks, given in the order of its tokens, the
  // head is the most recent and the last to be evicted.
  //
  // The blocks were wanted again.
  void Touch(std::span<const BlockKey> keys);
  // The blocks belong to a request that is served now, which says nothing of whether they will be wanted again: for
  // what has just been stored.
  void Settle(std::span<const BlockKey> keys);
  // This was the blocks' last use: they are evicted before all others.
  void Demote(std::span<const BlockKey> keys);

  // Pins the parts that cover `range`. Does not touch: the caller touches the blocks of a request together.
  //
  // Errors:
  //   NOT_FOUND           the range is not covered.
  absl::StatusOr<BlockHandle> Get(const BlockKey& key, const PartRange& range);

  // With warm_restart: a number for the keys of a cache's blocks that the same name and spec keep over restarts, and
  // that is not given to any other. The caller clears what is given up. None without.
  std::optional<CacheDirectory::Named> NameCache(const Digest& name, const Digest& spec);

  using Removed = Forgotten;
  // Forgets every part of the block. Pinned memory is freed when its readers are done.
  Removed Delete(const BlockKey& key);
  // Forgets every block of the cache. Works in bounded steps; blocks put meanwhile may stay.
  Removed Clear(TenantId tenant, CacheId cache);
  // Forgets the block because one of its parts is damaged, and counts it.
  void DropDamaged(const BlockKey& key);

  // What the start found in the arena's file.
  struct RestartReport {
    uint64_t restored_parts = 0;
    std::string discarded;  // Why a file that was there was emptied; empty when it was not.
  };
  const RestartReport& restart_report() const;

  StoreStats Stats() const;
  CacheStats StatsOf(TenantId tenant, CacheId cache) const;

  // Walks everything and compares with the counters; for tests. INTERNAL names what differs.
  absl::Status CheckConsistency() const;

 private:
  friend class Reservation;
  class Impl;
  explicit BlockStore(std::unique_ptr<Impl> impl);
  void Abandon(uint32_t slot);
  std::unique_ptr<Impl> impl_;
};

}  // namespace nqkv
