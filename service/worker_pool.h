// Threads for codec work, so that no rpc handler encodes, decodes or walks a store itself.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <thread>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/time/time.h"
#include "storage/mutex.h"

namespace nqkv {

// Thread-safe. Tasks start in the order in which they were posted; each should take milliseconds, since a long one
// holds a thread.
class WorkerPool {
 public:
  using Task = absl::AnyInvocable<void()>;

  WorkerPool(uint32_t threads, size_t queue_max);
  // Runs what was posted, then ends the threads.
  ~WorkerPool();

  // False when `queue_max` tasks wait already; the task was not taken.
  [[nodiscard]] bool TryPost(Task task) ABSL_LOCKS_EXCLUDED(mutex_);

  size_t queue_depth() const ABSL_LOCKS_EXCLUDED(mutex_);
  size_t queue_max() const { return queue_max_; }
  size_t thread_count() const { return threads_.size(); }
  // How long the oldest running task has been running; zero when all threads rest.
  absl::Duration LongestRun() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  void Run(size_t thread);
  bool TakeTask(size_t thread, Task* task) ABSL_LOCKS_EXCLUDED(mutex_);

  const size_t queue_max_;
  mutable Mutex mutex_;
  std::condition_variable_any changed_;
  std::deque<Task> queue_ ABSL_GUARDED_BY(mutex_);
  std::vector<absl::Time> running_since_ ABSL_GUARDED_BY(mutex_);  // A thread; InfiniteFuture when it rests.
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace nqkv
