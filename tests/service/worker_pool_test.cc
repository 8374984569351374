#include "service/worker_pool.h"

#include <atomic>
#include <future>

#include "gtest/gtest.h"

namespace nqkv {
namespace {

TEST(WorkerPoolTest, RunsAllThatItTookBeforeItEnds) {
  std::atomic<int> done = 0;
  {
    WorkerPool pool(3, 1'000);
    for (int i = 0; i < 1'000; ++i) {
      while (!pool.TryPost([&done] { ++done; })) {
      }
    }
  }
  EXPECT_EQ(done, 1'000);
}

TEST(WorkerPoolTest, RefusesWhatDoesNotFitIntoItsQueue) {
  std::promise<void> started;
  std::promise<void> release;
  WorkerPool pool(1, 2);
  ASSERT_TRUE(pool.TryPost([&] {
    started.set_value();
    release.get_future().wait();
  }));
  started.get_future().wait();
  EXPECT_TRUE(pool.TryPost([] {}));
  EXPECT_TRUE(pool.TryPost([] {}));
  EXPECT_FALSE(pool.TryPost([] {}));
  EXPECT_EQ(pool.queue_depth(), 2u);
  EXPECT_GT(pool.LongestRun(), absl::ZeroDuration());
  release.set_value();
}

TEST(WorkerPoolTest, RestsWhenThereIsNothingToDo) {
  std::promise<void> done;
  WorkerPool pool(1, 2);
  ASSERT_TRUE(pool.TryPost([&] { done.set_value(); }));
  done.get_future().wait();
  while (pool.LongestRun() > absl::ZeroDuration()) {
  }
  EXPECT_EQ(pool.queue_depth(), 0u);
}

}  // namespace
}  // namespace nqkv
