#include "service/rpc_heartbeat.h"

#include "absl/time/clock.h"

namespace nqkv {
namespace {

constexpr absl::Duration kPeriod = absl::Seconds(1);

}  // namespace

RpcHeartbeat::RpcHeartbeat() : last_(absl::Now()) {
  MutexLock lock(&mutex_);
  SetAlarm();
}

RpcHeartbeat::~RpcHeartbeat() {
  MutexLock lock(&mutex_);
  stopping_ = true;
  alarm_->Cancel();
  while (waiting_) changed_.wait(mutex_);
}

absl::Duration RpcHeartbeat::Age() const {
  MutexLock lock(&mutex_);
  return absl::Now() - last_;
}

// A new alarm each time: setting one again from its own callback would destroy the callback that runs.
void RpcHeartbeat::SetAlarm() {
  waiting_ = true;
  alarm_ = std::make_unique<grpc::Alarm>();
  alarm_->Set(absl::ToChronoTime(absl::Now() + kPeriod), [this](bool) { OnAlarm(); });
}

// Notified under the lock: the heartbeat may go as soon as it is released.
void RpcHeartbeat::OnAlarm() {
  MutexLock lock(&mutex_);
  last_ = absl::Now();
  waiting_ = false;
  if (!stopping_) SetAlarm();
  changed_.notify_all();
}

}  // namespace nqkv
