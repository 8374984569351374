// Ends calls that take too long: one thread, any number of deadlines.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <map>
#include <thread>
#include <utility>

#include "absl/functional/any_invocable.h"
#include "absl/time/time.h"
#include "storage/mutex.h"

namespace nqkv {

// Thread-safe.
class CallTimer {
 public:
  using Action = absl::AnyInvocable<void()>;
  using Ticket = std::pair<absl::Time, uint64_t>;

  CallTimer();
  // Drops what was scheduled.
  ~CallTimer();

  // Runs `action` on the timer's thread at `when`, unless it is cancelled before. It must be quick. How long that is
  // from now is settled here: setting the system's clock later changes nothing.
  Ticket Schedule(absl::Time when, Action action) ABSL_LOCKS_EXCLUDED(mutex_);
  // The action may be running, or have run, all the same: it must hold what it uses.
  void Cancel(const Ticket& ticket) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  void Run() ABSL_LOCKS_EXCLUDED(mutex_);
  // Waits until the first action is due. False: the timer is stopping.
  bool TakeDue(Action* action) ABSL_LOCKS_EXCLUDED(mutex_);

  Mutex mutex_;
  std::condition_variable_any changed_;
  std::map<Ticket, Action> actions_ ABSL_GUARDED_BY(mutex_);
  uint64_t next_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace nqkv
