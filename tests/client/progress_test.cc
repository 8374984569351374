#include "client/progress.h"

#include <unistd.h>

#include "gtest/gtest.h"

namespace nqkv::client {
namespace {

class FakeClock : public Clock {
 public:
  TimePoint Now() const override { return now; }
  void SleepFor(std::chrono::nanoseconds duration) override { now += duration; }
  TimePoint now{std::chrono::hours(1)};
};

class ProgressTest : public ::testing::Test {
 protected:
  ProgressTest() { EXPECT_EQ(pipe(ends_), 0); }
  ~ProgressTest() override {
    close(ends_[0]);
    if (ends_[1] >= 0) close(ends_[1]);
  }
  std::string Written() {
    close(std::exchange(ends_[1], -1));
    std::string text(1000, '\0');
    const ssize_t count = read(ends_[0], text.data(), text.size());
    text.resize(count > 0 ? static_cast<size_t>(count) : 0);
    return text;
  }

  int ends_[2];
  FakeClock clock_;
};

TEST_F(ProgressTest, StaysQuietInTheFirstSecond) {
  {
    Progress progress("put", 10, &clock_, ends_[1], true);
    clock_.SleepFor(std::chrono::milliseconds(999));
    progress.Update(5);
  }
  EXPECT_EQ(Written(), "");
}

TEST_F(ProgressTest, DrawsABarAndWipesIt) {
  {
    Progress progress("put", 10, &clock_, ends_[1], true);
    clock_.SleepFor(std::chrono::seconds(1));
    progress.Update(5);
    progress.Update(6);  // Too soon to draw again.
  }
  EXPECT_EQ(Written(), "\r\x1b[Kput [###############               ] 50 %\r\x1b[K");
}

TEST_F(ProgressTest, WritesNothingWhereThereIsNoTerminal) {
  {
    Progress progress("put", 10, &clock_, ends_[1], false);
    clock_.SleepFor(std::chrono::seconds(5));
    progress.Update(5);
  }
  EXPECT_EQ(Written(), "");
}

}  // namespace
}  // namespace nqkv::client
