#include "service/presence_waiters.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace nqkv {

absl::StatusOr<PresenceWaiters::Ticket> PresenceWaiters::Wait(const BlockKey& key, Wake wake) {
  MutexLock lock(&mutex_);
  if (closed_) return absl::UnavailableError("the server is draining");
  if (count() >= waiters_max_) {
    return absl::ResourceExhaustedError(absl::StrCat(waiters_max_, " lookups wait for blocks already"));
  }
  const Ticket ticket = ++last_ticket_;
  waiters_[key].emplace(ticket, std::move(wake));
  // Seen by whoever commits the block after we have looked for it: both hold the lock of the block's stripe in between.
  count_.fetch_add(1, std::memory_order_relaxed);
  return ticket;
}

bool PresenceWaiters::Cancel(const BlockKey& key, Ticket ticket) {
  Wake dropped;  // After the lock.
  MutexLock lock(&mutex_);
  const auto waiters = waiters_.find(key);
  if (waiters == waiters_.end()) return false;
  const auto waiter = waiters->second.find(ticket);
  if (waiter == waiters->second.end()) return false;
  dropped = std::move(waiter->second);
  waiters->second.erase(waiter);
  if (waiters->second.empty()) waiters_.erase(waiters);
  count_.fetch_sub(1, std::memory_order_relaxed);
  return true;
}

void PresenceWaiters::OnStored(const BlockKey& key) {
  if (count() == 0) return;
  Waiters woken;
  {
    MutexLock lock(&mutex_);
    const auto waiters = waiters_.find(key);
    if (waiters == waiters_.end()) return;
    Take(&waiters->second, &woken);
    waiters_.erase(waiters);
  }
  for (auto& [ticket, wake] : woken) wake();
}

void PresenceWaiters::Close() {
  Waiters woken;
  {
    MutexLock lock(&mutex_);
    closed_ = true;
    for (auto& [key, waiters] : waiters_) Take(&waiters, &woken);
    waiters_.clear();
  }
  for (auto& [ticket, wake] : woken) wake();
}

void PresenceWaiters::Take(Waiters* waiters, Waiters* woken) {
  count_.fetch_sub(waiters->size(), std::memory_order_relaxed);
  for (auto& [ticket, wake] : *waiters) woken->emplace(ticket, std::move(wake));
}

}  // namespace nqkv
