#include "service/unary_call.h"

#include <condition_variable>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "storage/mutex.h"
#include "tests/service/call_fixture.h"

namespace nqkv {
namespace {

using ::testing::HasSubstr;

class StringMessage final : public IncomingMessage {
 public:
  explicit StringMessage(std::string bytes)
      : bytes_(std::move(bytes)), piece_(std::as_bytes(std::span(bytes_.data(), bytes_.size()))) {}
  std::span<const std::span<const std::byte>> pieces() const override { return {&piece_, 1}; }

 private:
  const std::string bytes_;
  const std::span<const std::byte> piece_;
};

// A transport whose reply is taken when the test says so.
class FakeUnary final : public UnaryCall::Transport {
 public:
  FakeUnary(ServiceParts* parts, const UnaryMethod* method, const std::string& request)
      : call_(std::make_shared<UnaryCall>(&parts->environment(), this, parts->CallerOf("client"), method)) {
    call_->Start(std::make_unique<StringMessage>(request));
  }
  ~FakeUnary() override {
    Wait().IgnoreError();
    TakeReply();
  }

  absl::Status Wait() {
    MutexLock lock(&mutex_);
    while (!status_.has_value()) changed_.wait(mutex_);
    return *status_;
  }
  void WaitUntilCancelled() {
    MutexLock lock(&mutex_);
    while (!cancelled_) changed_.wait(mutex_);
  }
  void TakeReply() {
    if (call_ != nullptr) call_->OnDone();
    call_.reset();
  }
  std::string reply() {
    MutexLock lock(&mutex_);
    return reply_;
  }

 private:
  void Finish(const absl::Status& status, std::string reply) override {
    MutexLock lock(&mutex_);
    EXPECT_FALSE(status_.has_value()) << "finished twice";
    status_ = absl::Status(status.code(), status.message());
    reply_ = std::move(reply);
    changed_.notify_all();
  }
  void Cancel() override {
    MutexLock lock(&mutex_);
    cancelled_ = true;
    changed_.notify_all();
  }

  Mutex mutex_;
  std::condition_variable_any changed_;
  std::optional<absl::Status> status_ ABSL_GUARDED_BY(mutex_);
  std::string reply_ ABSL_GUARDED_BY(mutex_);
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  std::shared_ptr<UnaryCall> call_;
};

v1::LookupRequest LookupOf(const v1::OpenCacheResponse& cache, int keys) {
  v1::LookupRequest request;
  request.set_cache_id(cache.cache_id());
  v1::KeyChain* chain = request.add_queries()->add_chains();
  for (int key = 0; key < keys; ++key) chain->add_keys(KeyOf(key));
  return request;
}

TEST(UnaryCallTest, AnswersSmallAndLargeRequestsAlike) {
  ServiceParts parts;
  const UnaryMethods methods(&parts.environment());
  const v1::OpenCacheResponse cache = parts.Open("cache");
  PutAll(&parts, cache, {{KeyOf(0), RawBlock(ModelLayout(ModelShape{}), 1)}});
  for (const int keys : {1, 50'000}) {
    FakeUnary call(&parts, &methods.lookup, LookupOf(cache, keys).SerializeAsString());
    ASSERT_TRUE(call.Wait().ok()) << call.Wait();
    v1::LookupResponse response;
    ASSERT_TRUE(response.ParseFromString(call.reply()));
    EXPECT_EQ(response.results(0).groups(0).matched_blocks(), 1u);
  }
  EXPECT_TRUE(parts.CheckIdle().ok()) << parts.CheckIdle();
}

TEST(UnaryCallTest, TheRequestIsInTheBudgetUntilTheReplyIsTaken) {
  ServiceParts parts;
  const UnaryMethods methods(&parts.environment());
  const std::string request = LookupOf(parts.Open("cache"), 1'000).SerializeAsString();
  FakeUnary call(&parts, &methods.lookup, request);
  ASSERT_TRUE(call.Wait().ok());
  EXPECT_GT(parts.environment().budget->used_bytes(), request.size() + 1'000 * sizeof(std::string));
  call.TakeReply();
  EXPECT_EQ(parts.environment().budget->used_bytes(), 0u);
}

TEST(UnaryCallTest, RefusesWhatIsTooLargeOrDoesNotFitIntoTheBudget) {
  FixtureOptions options;
  options.limits.request_bytes_max = 100'000;
  options.in_flight_bytes = 50'000;
  ServiceParts parts(options);
  const UnaryMethods methods(&parts.environment());
  const auto expect = [&](const std::string& request, absl::string_view words) {
    FakeUnary call(&parts, &methods.delete_blocks, request);
    EXPECT_EQ(call.Wait().code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(std::string(call.Wait().message()), HasSubstr(std::string(words)));
  };
  expect(std::string(100'001, 'x'), "the request has 100001 bytes, at most 100000 (--max_request_bytes)");
  expect(std::string(50'001, 'x'), "too many bytes in flight");
  v1::DeleteRequest request;
  for (int key = 0; key < 5'000; ++key) request.add_keys(KeyOf(0));  // Far more parsed than on the wire.
  expect(request.SerializeAsString(), "too many bytes in flight");
  EXPECT_TRUE(parts.CheckIdle().ok());
}

TEST(UnaryCallTest, RefusesWhatIsNoSuchMessage) {
  ServiceParts parts;
  const UnaryMethods methods(&parts.environment());
  FakeUnary call(&parts, &methods.open_cache, "\x0a\x05name");
  EXPECT_EQ(std::string(call.Wait().ToString()),
            "INVALID_ARGUMENT: malformed message: not an OpenCacheRequest: it ends inside name");
  FakeUnary unreadable(&parts, &methods.lookup, std::string(3, '\x18'));
  EXPECT_EQ(unreadable.Wait().code(), absl::StatusCode::kInvalidArgument);
}

TEST(UnaryCallTest, AReplyThatIsNotTakenIsCutOff) {
  FixtureOptions options;
  options.limits.read_seconds_max = 0.01;
  ServiceParts parts(options);
  const UnaryMethods methods(&parts.environment());
  FakeUnary call(&parts, &methods.lookup, LookupOf(parts.Open("cache"), 1).SerializeAsString());
  call.WaitUntilCancelled();
  EXPECT_GT(parts.environment().budget->used_bytes(), 0u);
  call.TakeReply();
  EXPECT_EQ(parts.environment().budget->used_bytes(), 0u);
}

TEST(UnaryCallTest, ACallAfterTheGateIsClosedIsUnavailable) {
  ServiceParts parts;
  const UnaryMethods methods(&parts.environment());
  parts.environment().gate->Close();
  FakeUnary call(&parts, &methods.clear, "");
  EXPECT_EQ(call.Wait().code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace nqkv
