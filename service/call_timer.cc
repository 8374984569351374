#include "service/call_timer.h"

#include "absl/time/clock.h"

namespace nqkv {

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
  Ticket ticket;
  bool first = false;
  {
    MutexLock lock(&mutex_);
    ticket = {when, next_++};
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
    if (absl::Now() >= due) {
      *action = std::move(actions_.begin()->second);
      actions_.erase(actions_.begin());
      return true;
    }
    changed_.wait_until(mutex_, absl::ToChronoTime(due));
  }
  return false;
}

}  // namespace nqkv
