#include "client/retry.h"

#include <vector>

#include "gtest/gtest.h"
#include "proto/rpc_status.h"

namespace nqkv::client {
namespace {

using std::chrono::milliseconds;

class FakeClock : public Clock {
 public:
  TimePoint Now() const override { return now_; }
  void SleepFor(std::chrono::nanoseconds duration) override {
    sleeps_ms.push_back(std::chrono::duration<double, std::milli>(duration).count());
    now_ += duration;
  }
  std::vector<double> sleeps_ms;

 private:
  TimePoint now_{std::chrono::hours(1)};
};

class RetryTest : public ::testing::Test {
 protected:
  Retry Make(milliseconds timeout = milliseconds(60'000)) {
    return Retry(policy_, clock_.Now() + timeout, &clock_, [this] { return uniform_; });
  }
  // Attempts until one is not repeated.
  int Attempts(Retry* retry, const absl::Status& status) {
    int attempts = 1;
    while (retry->Again(status)) ++attempts;
    return attempts;
  }

  FakeClock clock_;
  RetryPolicy policy_{.attempts_max = 5, .backoff_first = milliseconds(100), .backoff_max = milliseconds(400)};
  double uniform_ = 0;  // No jitter.
};

const absl::Status kUnavailable = absl::UnavailableError("gone");

TEST_F(RetryTest, WaitsTwiceAsLongEachTimeUpToTheLimit) {
  Retry retry = Make();
  EXPECT_EQ(Attempts(&retry, kUnavailable), 5);
  EXPECT_EQ(clock_.sleeps_ms, (std::vector<double>{100, 200, 400, 400}));
}

TEST_F(RetryTest, TakesEachWaitFromTheJittersRange) {
  uniform_ = 0.5;
  Retry retry = Make();
  Attempts(&retry, kUnavailable);
  EXPECT_EQ(clock_.sleeps_ms, (std::vector<double>{75, 150, 300, 300}));
}

TEST_F(RetryTest, WaitsAtLeastAsLongAsTheServerAsks) {
  Retry retry = Make();
  EXPECT_TRUE(retry.Again(WithRetry(absl::ResourceExhaustedError("full"), absl::Milliseconds(750))));
  EXPECT_EQ(clock_.sleeps_ms, (std::vector<double>{750}));
}

TEST_F(RetryTest, DoesNotWaitPastTheDeadline) {
  Retry retry = Make(milliseconds(250));
  EXPECT_TRUE(retry.Again(kUnavailable));
  EXPECT_FALSE(retry.Again(kUnavailable));  // 100 + 200 would be too late.
  EXPECT_EQ(clock_.sleeps_ms, (std::vector<double>{100}));
}

TEST_F(RetryTest, GivesUpAtOnceOnAnAbsurdDelay) {
  Retry retry = Make();
  EXPECT_FALSE(retry.Again(WithRetry(kUnavailable, absl::Hours(1'000'000))));
  EXPECT_TRUE(clock_.sleeps_ms.empty());
}

TEST_F(RetryTest, TakesANegativeDelayAsNone) {
  EXPECT_FALSE(IsRetryable(WithRetry(absl::ResourceExhaustedError("full"), -absl::Seconds(1))));
}

TEST_F(RetryTest, RepeatsWhatAStoppingServerCutsOff) {
  Retry retry = Make();
  EXPECT_TRUE(retry.Again(absl::CancelledError("the server stops")));
}

TEST_F(RetryTest, NeverRepeatsWhatWouldFailAgain) {
  for (const absl::Status& status :
       {absl::OkStatus(), absl::InvalidArgumentError("key"), absl::NotFoundError("cache"), absl::InternalError("bug"),
        absl::DeadlineExceededError("late"), absl::UnimplementedError("later"), absl::FailedPreconditionError("spec"),
        absl::ResourceExhaustedError("too many keys")}) {
    Retry retry = Make();
    EXPECT_FALSE(retry.Again(status)) << status;
  }
  EXPECT_TRUE(clock_.sleeps_ms.empty());
}

TEST_F(RetryTest, MakesOneAttemptWhenThePolicySaysOne) {
  policy_.attempts_max = 1;
  Retry retry = Make();
  EXPECT_FALSE(retry.Again(kUnavailable));
}

TEST(ValidateRetryPolicy, NamesTheFieldThatIsOutOfRange) {
  EXPECT_TRUE(ValidateRetryPolicy({}).ok());
  EXPECT_EQ(ValidateRetryPolicy({.attempts_max = 0}).message(), "retry.attempts_max: must be at least 1");
  EXPECT_EQ(ValidateRetryPolicy({.backoff_first = milliseconds(-1)}).message(),
            "retry.backoff_first: must not be negative");
  EXPECT_EQ(ValidateRetryPolicy({.backoff_max = milliseconds(1)}).message(),
            "retry.backoff_max: must not be below backoff_first");
  EXPECT_EQ(ValidateRetryPolicy({.multiplier = 0.5}).message(), "retry.multiplier: must be at least 1");
  EXPECT_EQ(ValidateRetryPolicy({.jitter = 1.5}).message(), "retry.jitter: must be 0 to 1");
}

}  // namespace
}  // namespace nqkv::client
