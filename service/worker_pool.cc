#include "service/worker_pool.h"

#include <algorithm>
#include <utility>

#include "absl/time/clock.h"

namespace nqkv {

WorkerPool::WorkerPool(uint32_t threads, size_t queue_max) : queue_max_(queue_max) {
  running_since_.assign(threads, absl::InfiniteFuture());
  threads_.reserve(threads);
  for (uint32_t i = 0; i < threads; ++i) threads_.emplace_back([this, i] { Run(i); });
}

WorkerPool::~WorkerPool() {
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

bool WorkerPool::TryPost(Task task) {
  {
    MutexLock lock(&mutex_);
    if (queue_.size() >= queue_max_) return false;
    queue_.push_back(std::move(task));
  }
  changed_.notify_one();
  return true;
}

size_t WorkerPool::queue_depth() const {
  MutexLock lock(&mutex_);
  return queue_.size();
}

absl::Duration WorkerPool::LongestRun() const {
  MutexLock lock(&mutex_);
  const absl::Time oldest = *std::min_element(running_since_.begin(), running_since_.end());
  return oldest == absl::InfiniteFuture() ? absl::ZeroDuration() : absl::Now() - oldest;
}

void WorkerPool::Run(size_t thread) {
  Task task;
  while (TakeTask(thread, &task)) {
    task();
    task = nullptr;  // What it holds goes before the next wait.
  }
}

bool WorkerPool::TakeTask(size_t thread, Task* task) {
  MutexLock lock(&mutex_);
  running_since_[thread] = absl::InfiniteFuture();
  while (queue_.empty() && !stopping_) changed_.wait(mutex_);
  if (queue_.empty()) return false;
  *task = std::move(queue_.front());
  queue_.pop_front();
  running_since_[thread] = absl::Now();
  return true;
}

}  // namespace nqkv
