#include "service/session_call.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tests/service/call_fixture.h"

namespace nqkv {
namespace {

using std::chrono::seconds;
using ::testing::HasSubstr;

// A Session stream, driven by the test's own thread; only silence comes from the timer's.
class FakeSession final : public SessionCall::Transport {
 public:
  explicit FakeSession(ServiceParts* parts)
      : call_(std::make_shared<SessionCall>(&parts->environment(), this, parts->tenant())) {
    call_->Start();
  }
  ~FakeSession() override {
    call_->OnCancel();
    if (writing()) call_->OnWriteDone(false);
    Wait().IgnoreError();
  }

  void Send(const v1::SessionRequest& request) { call_->OnMessage(request); }
  // The answer, or nothing when the call has ended.
  std::optional<v1::SessionResponse> Ask(const v1::SessionRequest& request) {
    Send(request);
    if (!writing()) return std::nullopt;
    call_->OnWriteDone(true);
    MutexLock lock(&mutex_);
    return response_;
  }
  v1::SessionResponse Open(const std::string& session_id = "") {
    v1::SessionRequest request;
    request.set_session_id(session_id);
    if (session_id.empty()) request.set_owner("worker 3");
    const auto response = Ask(request);
    EXPECT_TRUE(response.has_value()) << Wait();
    return response.value_or(v1::SessionResponse());
  }
  void HalfClose() { call_->OnReadsDone(); }
  void Break() { call_->OnCancel(); }
  void EndWrite(bool ok) { call_->OnWriteDone(ok); }

  absl::Status Wait() {
    MutexLock lock(&mutex_);
    while (!status_.has_value()) changed_.wait(mutex_);
    return absl::Status(status_->code(), status_->message());
  }
  void WaitForCancel() {
    MutexLock lock(&mutex_);
    while (!cancelled_) changed_.wait(mutex_);
  }
  bool finished() {
    MutexLock lock(&mutex_);
    return status_.has_value();
  }
  int reads() {
    MutexLock lock(&mutex_);
    return reads_;
  }

 private:
  bool writing() {
    MutexLock lock(&mutex_);
    return std::exchange(writing_, false);
  }
  void StartRead() override {
    MutexLock lock(&mutex_);
    ++reads_;
  }
  void StartWrite(const v1::SessionResponse& response) override {
    MutexLock lock(&mutex_);
    response_ = response;
    writing_ = true;
  }
  void Finish(const absl::Status& status) override {
    MutexLock lock(&mutex_);
    EXPECT_FALSE(status_.has_value()) << "finished twice";
    status_ = absl::Status(status.code(), std::string(status.message()));
    changed_.notify_all();
  }
  void Cancel() override {
    MutexLock lock(&mutex_);
    cancelled_ = true;
    changed_.notify_all();
  }

  Mutex mutex_;
  std::condition_variable_any changed_;
  v1::SessionResponse response_ ABSL_GUARDED_BY(mutex_);
  std::optional<absl::Status> status_ ABSL_GUARDED_BY(mutex_);
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  int reads_ ABSL_GUARDED_BY(mutex_) = 0;
  const std::shared_ptr<SessionCall> call_;
};

class SessionCallTest : public ::testing::Test {
 protected:
  void Turn(std::chrono::nanoseconds by) {
    parts_->clock().Turn(by);
    while (parts_->leases().Sweep()) {
    }
  }
  uint64_t sessions() { return parts_->leases().Stats().sessions; }

  std::unique_ptr<ServiceParts> parts_ = std::make_unique<ServiceParts>();
};

TEST_F(SessionCallTest, TheFirstMessageOpensASessionThatIsTold) {
  FakeSession stream(parts_.get());
  const v1::SessionResponse response = stream.Open();
  EXPECT_FALSE(response.session_id().empty());
  EXPECT_EQ(response.heartbeat_seconds(), 5);
  EXPECT_EQ(response.session_grace_seconds(), 15);
  const std::vector<SessionInfo> list = parts_->leases().ListSessions();
  ASSERT_EQ(list.size(), 1u);
  EXPECT_EQ(list[0].id, response.session_id());
  EXPECT_EQ(list[0].owner, "worker 3");
}

TEST_F(SessionCallTest, HeartbeatsKeepItAlive) {
  FakeSession stream(parts_.get());
  const std::string id = stream.Open().session_id();
  for (int beat = 0; beat < 10; ++beat) {
    Turn(seconds(14));
    ASSERT_TRUE(stream.Ask({}).has_value());
  }
  EXPECT_EQ(sessions(), 1u);
  v1::SessionRequest named;
  named.set_session_id(id);
  EXPECT_TRUE(stream.Ask(named).has_value());
  EXPECT_EQ(stream.reads(), 13);  // One at a time.
}

TEST_F(SessionCallTest, ACloseEndsItAtOnce) {
  FakeSession stream(parts_.get());
  stream.Open();
  v1::SessionRequest close;
  close.set_close(true);
  EXPECT_FALSE(stream.Ask(close).has_value());
  EXPECT_TRUE(stream.Wait().ok()) << stream.Wait();
  EXPECT_EQ(sessions(), 0u);
}

TEST_F(SessionCallTest, ABrokenOrHalfClosedStreamLeavesTheSessionItsGrace) {
  for (const bool broken : {true, false}) {
    std::string id;
    {
      FakeSession stream(parts_.get());
      id = stream.Open().session_id();
      broken ? stream.Break() : stream.HalfClose();
      EXPECT_EQ(stream.Wait().ok(), !broken);
    }
    Turn(seconds(14));
    EXPECT_EQ(sessions(), 1u);
    FakeSession again(parts_.get());
    EXPECT_EQ(again.Open(id).session_id(), id);
    Turn(seconds(15));
    EXPECT_EQ(sessions(), 0u);
    EXPECT_FALSE(again.Ask({}).has_value());
    EXPECT_EQ(again.Wait().code(), absl::StatusCode::kAborted);
  }
}

TEST_F(SessionCallTest, AStreamThatTookTheSessionOverIsItsOnlySpeaker) {
  FakeSession first(parts_.get());
  const std::string id = first.Open().session_id();
  FakeSession second(parts_.get());
  second.Open(id);
  EXPECT_FALSE(first.Ask({}).has_value());
  EXPECT_EQ(first.Wait().code(), absl::StatusCode::kAborted);
  EXPECT_TRUE(second.Ask({}).has_value());
  EXPECT_EQ(sessions(), 1u);
}

TEST_F(SessionCallTest, WhatASessionCannotBeIsRefused) {
  const auto expect = [&](const v1::SessionRequest& first, absl::StatusCode code, const std::string& message) {
    FakeSession stream(parts_.get());
    EXPECT_FALSE(stream.Ask(first).has_value());
    EXPECT_EQ(stream.Wait().code(), code) << stream.Wait();
    EXPECT_THAT(std::string(stream.Wait().message()), HasSubstr(message));
  };
  v1::SessionRequest request;
  request.set_session_id("nobody's");
  expect(request, absl::StatusCode::kAborted, "open a new one");
  request.clear_session_id();
  request.set_owner(std::string(257, 'o'));
  expect(request, absl::StatusCode::kInvalidArgument, "owner: 257 bytes");
  EXPECT_EQ(sessions(), 0u);
  for (const bool owner : {true, false}) {
    FakeSession stream(parts_.get());
    stream.Open();
    v1::SessionRequest later;
    owner ? later.set_owner("again") : later.set_session_id("another");
    EXPECT_FALSE(stream.Ask(later).has_value());
    EXPECT_EQ(stream.Wait().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST_F(SessionCallTest, MoreSessionsThanTheLimitAreRefusedAndCounted) {
  FixtureOptions options;
  options.limits.sessions_max = 1;
  parts_ = std::make_unique<ServiceParts>(options);
  FakeSession first(parts_.get());
  first.Open();
  FakeSession second(parts_.get());
  EXPECT_FALSE(second.Ask({}).has_value());
  EXPECT_EQ(second.Wait().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(parts_->metrics().Sum().rejections, 1u);
}

TEST_F(SessionCallTest, ASilentStreamIsEnded) {
  FixtureOptions options;
  options.limits.session_grace_seconds = 0.05;
  parts_ = std::make_unique<ServiceParts>(options);
  FakeSession unopened(parts_.get());
  FakeSession silent(parts_.get());
  silent.Open();
  for (FakeSession* stream : {&unopened, &silent}) {
    EXPECT_EQ(stream->Wait().code(), absl::StatusCode::kDeadlineExceeded);
    EXPECT_THAT(std::string(stream->Wait().message()), HasSubstr("nothing was heard for 0.05 s"));
  }
}

TEST_F(SessionCallTest, AStreamWhoseAnswersAreNotReadIsEndedToo) {
  FixtureOptions options;
  options.limits.session_grace_seconds = 0.05;
  parts_ = std::make_unique<ServiceParts>(options);
  FakeSession stream(parts_.get());
  stream.Send({});  // Its answer hangs.
  stream.WaitForCancel();
  EXPECT_FALSE(stream.finished());
  stream.EndWrite(false);
  EXPECT_EQ(stream.Wait().code(), absl::StatusCode::kDeadlineExceeded);
}

}  // namespace
}  // namespace nqkv
