#include "service/call_timer.h"

#include <future>
#include <vector>

#include "absl/time/clock.h"
#include "gtest/gtest.h"

namespace nqkv {
namespace {

TEST(CallTimerTest, RunsActionsInTheOrderOfTheirTimes) {
  std::vector<int> order;
  std::promise<void> done;
  CallTimer timer;
  const absl::Time now = absl::Now();
  timer.Schedule(now + absl::Milliseconds(40), [&] { done.set_value(); });
  timer.Schedule(now + absl::Milliseconds(30), [&] { order.push_back(3); });
  timer.Schedule(now + absl::Milliseconds(10), [&] { order.push_back(1); });
  timer.Schedule(now + absl::Milliseconds(20), [&] { order.push_back(2); });
  done.get_future().wait();
  EXPECT_GE(absl::Now(), now + absl::Milliseconds(40));
  EXPECT_EQ(order, (std::vector<int>{1, 2, 3}));
}

TEST(CallTimerTest, DoesNotRunWhatWasCancelled) {
  bool ran = false;
  std::promise<void> done;
  CallTimer timer;
  const absl::Time now = absl::Now();
  const CallTimer::Ticket ticket = timer.Schedule(now + absl::Milliseconds(5), [&] { ran = true; });
  timer.Cancel(ticket);
  timer.Cancel(ticket);
  timer.Schedule(now + absl::Milliseconds(10), [&] { done.set_value(); });
  done.get_future().wait();
  EXPECT_FALSE(ran);
}

TEST(CallTimerTest, DropsWhatIsLeftAtItsEnd) {
  bool ran = false;
  {
    CallTimer().Schedule(absl::Now() + absl::Hours(1), [&] { ran = true; });
  }
  EXPECT_FALSE(ran);
}

}  // namespace
}  // namespace nqkv
