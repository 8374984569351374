#include "service/call_timer.h"

#include <algorithm>
#include <chrono>

#include "absl/time/clock.h"

namespace nqkv {
namespace {

// The system's clock may be set meanwhile: what is due is measured by one that is not.
absl::Time SteadyNow() {
  return absl::UnixEpoch() + absl::FromChrono(std::chrono::steady_clock::now().time_since_epoch());
}

}  // namespace

CallTimer::CallTimer() : thread_([this] { Run(); }) {}

CallTimer::~CallTimer() {
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

CallTimer::Ticket CallTimer::Schedule(absl::Time when, Action action) {
  const absl::Time due = SteadyNow() + (when - absl::Now());
  Ticket ticket;
  bool first = false;
  {
    MutexLock lock(&mutex_);
    ticket = {due, next_++};
    const auto place = actions_.emplace(ticket, std::move(action)).first;
    first = place == actions_.begin();
  }
  if (first) changed_.notify_all();
  return ticket;
}

void CallTimer::Cancel(const Ticket& ticket) {
  Action dropped;  // Goes after the lock: what it holds may be large.
  MutexLock lock(&mutex_);
  const auto it = actions_.find(ticket);
  if (it == actions_.end()) return;
  dropped = std::move(it->second);
  actions_.erase(it);
}

void CallTimer::Run() {
  Action action;
  while (TakeDue(&action)) {
    action();
    action = nullptr;
  }
}

bool CallTimer::TakeDue(Action* action) {
  MutexLock lock(&mutex_);
  while (!stopping_) {
    if (actions_.empty()) {
      changed_.wait(mutex_);
      continue;
    }
    const absl::Time due = actions_.begin()->first.first;
    const absl::Duration left = due - SteadyNow();
    if (left <= absl::ZeroDuration()) {
      *action = std::move(actions_.begin()->second);
      actions_.erase(actions_.begin());
      return true;
    }
    changed_.wait_for(mutex_, absl::ToChronoNanoseconds(std::min(left, absl::Hours(1))));
  }
  return false;
}

}  // namespace nqkv
