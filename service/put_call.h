// One Put call: when to read, work, write and end. Knows no transport; PutStream knows what the messages mean.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "nqkv/v1/kv_cache.pb.h"
#include "service/byte_budget.h"
#include "service/call_environment.h"
#include "service/call_message.h"
#include "service/call_timer.h"
#include "service/put_stream.h"
#include "storage/mutex.h"

namespace nqkv {

// Thread-safe. Reads the next message while one is encoded on a worker; each message's bytes are in the budget until it
// is encoded. A stream that makes no progress for `put_idle_seconds_max` is ended, whatever it waits for: payload is
// progress, and so are blocks and writes that end; messages without payload are not. Lives as long as somebody holds
// it, and touches its transport no more once it has called Finish.
class PutCall : public std::enable_shared_from_this<PutCall> {
 public:
  // Called with the call's lock held: none of these may call back into the call before it has returned.
  class Transport {
   public:
    virtual ~Transport() = default;
    virtual void StartRead() = 0;                                  // Ends in OnMessage or OnReadsDone.
    virtual void StartWrite(const v1::PutResponse& response) = 0;  // Ends in OnWriteDone.
    virtual void Finish(const absl::Status& status) = 0;           // A read may be under way.
    virtual void Cancel() = 0;                                     // Makes a write that hangs end, with false.
  };

  // `environment` and, until Finish, `transport` must outlive the call.
  PutCall(const CallEnvironment* environment, Transport* transport, Caller caller);

  void Start() ABSL_LOCKS_EXCLUDED(mutex_);
  // Ends a call that has not been started.
  void Refuse(const absl::Status& status) ABSL_LOCKS_EXCLUDED(mutex_);
  void OnMessage(std::unique_ptr<IncomingMessage> message) ABSL_LOCKS_EXCLUDED(mutex_);
  void OnReadsDone() ABSL_LOCKS_EXCLUDED(mutex_);
  void OnWriteDone(bool ok) ABSL_LOCKS_EXCLUDED(mutex_);
  // The client has gone, or its deadline has passed.
  void OnCancel() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  void Work(std::unique_ptr<IncomingMessage> message, ByteBudget::Lease lease) ABSL_LOCKS_EXCLUDED(mutex_);
  void OnIdleDue() ABSL_LOCKS_EXCLUDED(mutex_);
  // Starts whatever can be started.
  void Advance() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void StartWork() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void StartWrite() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void NoteProgress() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void WatchIdle(absl::Time due) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void EndIdle() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Finish(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const CallEnvironment* const environment_;
  const absl::Time start_;
  const Caller caller_;
  mutable Mutex mutex_;
  Transport* transport_ ABSL_GUARDED_BY(mutex_);
  std::optional<PutStream> stream_;  // The worker's while `working_`, else guarded by `mutex_`. Gone once finished.
  std::unique_ptr<IncomingMessage> waiting_ ABSL_GUARDED_BY(mutex_);  // For a worker.
  ByteBudget::Lease waiting_lease_ ABSL_GUARDED_BY(mutex_);
  v1::PutResponse results_ ABSL_GUARDED_BY(mutex_);  // To be written.
  absl::Status status_ ABSL_GUARDED_BY(mutex_);      // Not OK: how the call will end.
  std::optional<CallTimer::Ticket> idle_ ABSL_GUARDED_BY(mutex_);
  absl::Time progress_ ABSL_GUARDED_BY(mutex_);           // The last.
  uint64_t progress_bytes_ ABSL_GUARDED_BY(mutex_) = 0;   // Payload that had come by then.
  uint64_t progress_blocks_ ABSL_GUARDED_BY(mutex_) = 0;  // Blocks that had ended by then.
  size_t open_blocks_ ABSL_GUARDED_BY(mutex_) = 0;
  bool reading_ ABSL_GUARDED_BY(mutex_) = false;
  bool working_ ABSL_GUARDED_BY(mutex_) = false;
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool half_closed_ ABSL_GUARDED_BY(mutex_) = false;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace nqkv
