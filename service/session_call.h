// One Session stream: opens or takes over a session, and keeps it alive as long as messages come. Knows no transport.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "nqkv/v1/kv_cache.pb.h"
#include "service/call_environment.h"
#include "service/call_timer.h"
#include "service/tenants.h"
#include "storage/lease_table.h"
#include "storage/mutex.h"

namespace nqkv {

// Thread-safe. Answers each message before it reads the next. The session outlives the stream, unless it was closed: it
// is the lease table that ends it when it is not heard of any more.
class SessionCall : public std::enable_shared_from_this<SessionCall> {
 public:
  // Called with the call's lock held: none of these may call back into the call before it has returned.
  class Transport {
   public:
    virtual ~Transport() = default;
    virtual void StartRead() = 0;                                      // Ends in OnMessage or OnReadsDone.
    virtual void StartWrite(const v1::SessionResponse& response) = 0;  // Ends in OnWriteDone.
    virtual void Finish(const absl::Status& status) = 0;               // A read may be under way.
    virtual void Cancel() = 0;                                         // Makes a write that hangs end, with false.
  };

  // `environment` and, until Finish, `transport` must outlive the call.
  SessionCall(const CallEnvironment* environment, Transport* transport, const Tenant& tenant);

  void Start() ABSL_LOCKS_EXCLUDED(mutex_);
  // Ends a call that has not been started.
  void Refuse(const absl::Status& status) ABSL_LOCKS_EXCLUDED(mutex_);
  void OnMessage(const v1::SessionRequest& request) ABSL_LOCKS_EXCLUDED(mutex_);
  // A message that is none.
  void OnBadMessage(const absl::Status& status) ABSL_LOCKS_EXCLUDED(mutex_);
  void OnReadsDone() ABSL_LOCKS_EXCLUDED(mutex_);
  void OnWriteDone(bool ok) ABSL_LOCKS_EXCLUDED(mutex_);
  // The client has gone, or its deadline has passed.
  void OnCancel() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  absl::Status Open(const v1::SessionRequest& request) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Hear(const v1::SessionRequest& request) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void WatchSilence() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void OnSilence(uint64_t messages) ABSL_LOCKS_EXCLUDED(mutex_);
  void Finish(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const CallEnvironment* const environment_;
  const Tenant tenant_;
  const absl::Time start_;
  mutable Mutex mutex_;
  Transport* transport_ ABSL_GUARDED_BY(mutex_);
  std::optional<LeaseTable::Speaker> speaker_ ABSL_GUARDED_BY(mutex_);
  std::optional<CallTimer::Ticket> silence_ ABSL_GUARDED_BY(mutex_);
  uint64_t messages_ ABSL_GUARDED_BY(mutex_) = 0;  // Heard.
  absl::Status end_ ABSL_GUARDED_BY(mutex_);       // How the call ends once the write has.
  bool ending_ ABSL_GUARDED_BY(mutex_) = false;
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace nqkv
