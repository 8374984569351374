// One unary call: taken in, answered here or on a worker, and over when its reply has gone. Knows no transport.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "service/byte_budget.h"
#include "service/call_environment.h"
#include "service/call_message.h"
#include "service/call_timer.h"
#include "service/tenants.h"
#include "service/unary_method.h"
#include "storage/mutex.h"

namespace nqkv {

// Thread-safe. The request, what is made of it and the reply are in the budget until OnDone; a client that does not
// take its reply is cut off after --max_read_seconds.
class UnaryCall : public std::enable_shared_from_this<UnaryCall> {
 public:
  class Transport {
   public:
    virtual ~Transport() = default;
    // Called once. `reply` is empty unless the status is OK. Ends in OnDone.
    virtual void Finish(const absl::Status& status, std::string reply) = 0;
    virtual void Cancel() = 0;  // Makes a reply that hangs end. Called with the call's lock held.
  };

  // `environment` and `method` must outlive the call, and `transport` must until OnDone.
  UnaryCall(const CallEnvironment* environment, Transport* transport, Caller caller, const UnaryMethod* method);

  // `message` is null when the transport could not read it.
  void Start(std::unique_ptr<IncomingMessage> message) ABSL_LOCKS_EXCLUDED(mutex_);
  // The client has gone: what waits does so no longer.
  void OnCancel() ABSL_LOCKS_EXCLUDED(mutex_);
  void OnDone() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  absl::Status Enter(const IncomingMessage* message) ABSL_LOCKS_EXCLUDED(mutex_);
  void Run(std::unique_ptr<IncomingMessage> message) ABSL_LOCKS_EXCLUDED(mutex_);
  void RunWaiting(std::unique_ptr<IncomingMessage> message) ABSL_LOCKS_EXCLUDED(mutex_);
  void Finish(const absl::Status& status, std::string reply) ABSL_LOCKS_EXCLUDED(mutex_);
  void OnTooLong() ABSL_LOCKS_EXCLUDED(mutex_);

  const CallEnvironment* const environment_;
  const Caller caller_;
  const UnaryMethod* const method_;
  const absl::Time start_;
  Mutex mutex_;
  Transport* transport_ ABSL_GUARDED_BY(mutex_);
  std::optional<CallGate::Pass> pass_ ABSL_GUARDED_BY(mutex_);
  std::vector<ByteBudget::Lease> leases_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<LookupCall> waiting_ ABSL_GUARDED_BY(mutex_);
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<CallTimer::Ticket> too_long_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace nqkv
