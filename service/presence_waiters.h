// Lookups that wait for blocks to be stored. No thread waits: what is stored wakes them.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "storage/block_key.h"
#include "storage/mutex.h"

namespace nqkv {

// Thread-safe.
class PresenceWaiters {
 public:
  using Wake = absl::AnyInvocable<void()>;
  using Ticket = uint64_t;

  explicit PresenceWaiters(size_t waiters_max) : waiters_max_(waiters_max) {}

  // Runs `wake` once, on the thread that stores a part of the block next or that calls Close; it must be quick. A block
  // that was stored just before wakes nobody: look again once this has returned.
  //
  // Errors:
  //   RESOURCE_EXHAUSTED  waiters_max wait already.
  //   UNAVAILABLE         closed.
  absl::StatusOr<Ticket> Wait(const BlockKey& key, Wake wake) ABSL_LOCKS_EXCLUDED(mutex_);
  // False: it was woken, or is about to be.
  bool Cancel(const BlockKey& key, Ticket ticket) ABSL_LOCKS_EXCLUDED(mutex_);

  // A part of the block was committed. Costs one load where nobody waits.
  void OnStored(const BlockKey& key) ABSL_LOCKS_EXCLUDED(mutex_);

  // Wakes all, and lets nobody wait any more: the server drains.
  void Close() ABSL_LOCKS_EXCLUDED(mutex_);

  size_t count() const { return count_.load(std::memory_order_relaxed); }

 private:
  using Waiters = absl::flat_hash_map<Ticket, Wake>;

  void Take(Waiters* waiters, Waiters* woken) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const size_t waiters_max_;
  std::atomic<size_t> count_ = 0;
  Mutex mutex_;
  absl::flat_hash_map<BlockKey, Waiters> waiters_ ABSL_GUARDED_BY(mutex_);
  Ticket last_ticket_ ABSL_GUARDED_BY(mutex_) = 0;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace nqkv
