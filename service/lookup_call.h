// One Lookup that may wait until what it looks for is present. Knows no transport.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <utility>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "nqkv/v1/kv_cache.pb.h"
#include "service/call_environment.h"
#include "service/call_timer.h"
#include "service/lookup.h"
#include "service/presence_waiters.h"
#include "storage/mutex.h"

namespace nqkv {

// Thread-safe. Waits for one missing block at a time, the first of the first query that still waits, so that it holds
// one waiter and one timer however much it asks for; no thread waits with it.
class LookupCall : public std::enable_shared_from_this<LookupCall> {
 public:
  // OK: `response` is filled. Called once, with no lock held.
  using Done = absl::AnyInvocable<void(const absl::Status& status)>;

  // `environment` and, until `done`, `response` must outlive the call.
  LookupCall(const CallEnvironment* environment, PreparedLookup lookup, v1::LookupResponse* response, Done done);

  // Answers at once where nothing is to be waited for.
  void Start() ABSL_LOCKS_EXCLUDED(mutex_);
  // The client has gone.
  void OnCancel() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  // Looks where it stands, and waits or answers.
  void Advance() ABSL_LOCKS_EXCLUDED(mutex_);
  // True: it waits. False: there is nothing to wait for, or the status says what went wrong.
  absl::StatusOr<bool> WaitForMissing() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void OnWoken() ABSL_LOCKS_EXCLUDED(mutex_);
  void StopWaiting() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const CallEnvironment* const environment_;
  const std::chrono::steady_clock::time_point start_;
  Mutex mutex_;
  PreparedLookup lookup_ ABSL_GUARDED_BY(mutex_);
  v1::LookupResponse* const response_;
  Done done_ ABSL_GUARDED_BY(mutex_);  // Null once the call has ended.
  std::optional<std::pair<BlockKey, PresenceWaiters::Ticket>> waiter_ ABSL_GUARDED_BY(mutex_);
  std::optional<CallTimer::Ticket> timer_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace nqkv
