// Ends leases and sessions when their time comes: a thread that sweeps the table several times a second.
#pragma once

#include <condition_variable>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "storage/lease_table.h"
#include "storage/mutex.h"

namespace nqkv {

// Thread-safe.
class LeaseSweeper {
 public:
  // `leases` must outlive the sweeper.
  explicit LeaseSweeper(LeaseTable* leases);
  ~LeaseSweeper();

 private:
  void Run();
  // False: the sweeper is stopping.
  bool WaitForNext() ABSL_LOCKS_EXCLUDED(mutex_);

  LeaseTable* const leases_;
  Mutex mutex_;
  std::condition_variable_any changed_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace nqkv
