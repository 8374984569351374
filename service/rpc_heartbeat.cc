#include "service/rpc_heartbeat.h"

#include <condition_variable>

#include "absl/time/clock.h"
#include "grpcpp/alarm.h"
#include "storage/mutex.h"

namespace nqkv {
namespace {

constexpr absl::Duration kPeriod = absl::Seconds(1);

}  // namespace

class RpcHeartbeat::Beat : public std::enable_shared_from_this<RpcHeartbeat::Beat> {
 public:
  void Start() {
    MutexLock lock(&mutex_);
    SetAlarm();
  }

  void Stop() {
    MutexLock lock(&mutex_);
    stopping_ = true;
    alarm_.Cancel();
    while (waiting_) changed_.wait(mutex_);
  }

  absl::Duration Age() const {
    MutexLock lock(&mutex_);
    return absl::Now() - last_;
  }

 private:
  void SetAlarm() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    waiting_ = true;
    alarm_.Set(absl::ToChronoTime(absl::Now() + kPeriod), [self = shared_from_this()](bool) { self->OnAlarm(); });
  }

  void OnAlarm() {
    {
      MutexLock lock(&mutex_);
      last_ = absl::Now();
      waiting_ = false;
      if (!stopping_) SetAlarm();
    }
    changed_.notify_all();
  }

  mutable Mutex mutex_;
  std::condition_variable_any changed_;
  grpc::Alarm alarm_;
  absl::Time last_ ABSL_GUARDED_BY(mutex_) = absl::Now();
  bool waiting_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
};

RpcHeartbeat::RpcHeartbeat() : beat_(std::make_shared<Beat>()) { beat_->Start(); }

RpcHeartbeat::~RpcHeartbeat() { beat_->Stop(); }

absl::Duration RpcHeartbeat::Age() const { return beat_->Age(); }

}  // namespace nqkv
