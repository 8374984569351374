// One Get call: when to decode, write and end. Knows no transport; GetStream knows what the messages hold.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "nqkv/v1/kv_cache.pb.h"
#include "service/call_environment.h"
#include "service/call_message.h"
#include "service/call_timer.h"
#include "service/get_stream.h"
#include "service/request_shape.h"
#include "storage/mutex.h"

namespace nqkv {

// Thread-safe. Decodes one message ahead of the one that is written, where the budget lets it. What one message may
// hold is taken from the budget before the first and kept, so a call that has begun never ends for want of it; what the
// message ahead holds is taken when it is decoded. All is given back when the messages are gone.
class GetCall : public std::enable_shared_from_this<GetCall> {
 public:
  // Called with the call's lock held: none of these may call back into the call before it has returned.
  class Transport {
   public:
    virtual ~Transport() = default;
    virtual void StartWrite(OutgoingMessage message) = 0;  // Ends in OnWriteDone.
    virtual void Finish(const absl::Status& status) = 0;
    virtual void Cancel() = 0;  // Makes a write that hangs end, with false.
  };

  // `environment` and, until Finish, `transport` must outlive the call.
  GetCall(const CallEnvironment* environment, Transport* transport);

  void Start(Caller caller, const v1::GetRequest& request) ABSL_LOCKS_EXCLUDED(mutex_);
  // The same from the message as it came; null when the transport could not read it. `shape` must outlive the call.
  void Start(const Caller& caller, const RequestShape* shape, std::unique_ptr<IncomingMessage> message)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // Ends a call that has not been started.
  void Refuse(const absl::Status& status) ABSL_LOCKS_EXCLUDED(mutex_);
  void OnWriteDone(bool ok) ABSL_LOCKS_EXCLUDED(mutex_);
  // The client has gone, or its deadline has passed.
  void OnCancel() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  absl::Status Admit(const Caller& caller, const IncomingMessage* message) ABSL_LOCKS_EXCLUDED(mutex_);
  void Read(const Caller& caller, const RequestShape& shape, const IncomingMessage& message)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // Unless it has ended already.
  void End(const absl::Status& status) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status Prepare(const v1::GetRequest& request) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // For the next message; null when it must wait for the one that is being written.
  std::shared_ptr<PayloadLease> LeaseForNext() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Work(std::shared_ptr<PayloadLease> lease) ABSL_LOCKS_EXCLUDED(mutex_);
  void OnTooLong() ABSL_LOCKS_EXCLUDED(mutex_);
  // Starts whatever can be started.
  void Advance() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void StartWork() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Finish(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const CallEnvironment* const environment_;
  const absl::Time start_;
  mutable Mutex mutex_;
  Transport* transport_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<GetStream> stream_;  // The worker's while `working_`, else guarded by `mutex_`.
  Caller caller_ ABSL_GUARDED_BY(mutex_);
  std::vector<ByteBudget::Lease> request_leases_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<PayloadLease> first_lease_ ABSL_GUARDED_BY(mutex_);
  std::optional<OutgoingMessage> ready_ ABSL_GUARDED_BY(mutex_);
  std::optional<CallTimer::Ticket> too_long_ ABSL_GUARDED_BY(mutex_);
  absl::Status status_ ABSL_GUARDED_BY(mutex_);  // Not OK: how the call will end.
  bool working_ ABSL_GUARDED_BY(mutex_) = false;
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace nqkv
