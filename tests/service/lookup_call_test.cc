// Lookups that wait until what they look for is there.
#include "service/lookup_call.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <condition_variable>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tests/service/call_fixture.h"
#include "tests/service/model_blocks.h"

namespace nqkv {
namespace {

using ::testing::HasSubstr;

// One lookup and its end.
class Waiting {
 public:
  Waiting(ServiceParts* parts, const v1::LookupRequest& request) {
    auto lookup = PreparedLookup::Prepare(&parts->environment(), parts->tenant(), request);
    if (!lookup.ok()) {
      End(lookup.status());
      return;
    }
    call_ = std::make_shared<LookupCall>(&parts->environment(), *std::move(lookup), &response_,
                                         [this](const absl::Status& status) { End(status); });
    call_->Start();
  }
  ~Waiting() {
    Cancel();
    Wait().IgnoreError();
  }

  void Cancel() {
    if (call_ != nullptr) call_->OnCancel();
  }
  bool ended() {
    MutexLock lock(&mutex_);
    return status_.has_value();
  }
  absl::Status Wait() {
    MutexLock lock(&mutex_);
    while (!status_.has_value()) changed_.wait(mutex_);
    return absl::Status(status_->code(), status_->message());
  }
  uint64_t WaitForTokens(int result = 0) {
    const absl::Status status = Wait();
    EXPECT_TRUE(status.ok()) << status;
    return response_.results_size() > result ? response_.results(result).matched_tokens() : 0;
  }
  const v1::LookupResponse& response() { return response_; }

 private:
  void End(const absl::Status& status) {
    MutexLock lock(&mutex_);
    EXPECT_FALSE(status_.has_value()) << "ended twice";
    status_ = absl::Status(status.code(), std::string(status.message()));
    changed_.notify_all();
  }

  v1::LookupResponse response_;
  Mutex mutex_;
  std::condition_variable_any changed_;
  std::optional<absl::Status> status_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<LookupCall> call_;
};

class LookupCallTest : public ::testing::Test {
 protected:
  void Start(FixtureOptions options = {}) {
    parts_ = std::make_unique<ServiceParts>(options);
    cache_ = parts_->Open("cache");
  }
  void Put(int key) { PutAll(parts_.get(), cache_, {{KeyOf(key), RawBlock(ModelLayout(), 1), 0}}); }
  void AddQuery(v1::LookupRequest* request, int first, int last, double seconds) {
    request->set_cache_id(cache_.cache_id());
    v1::LookupQuery* query = request->add_queries();
    v1::KeyChain* chain = query->add_chains();
    for (int key = first; key < last; ++key) chain->add_keys(KeyOf(key));
    query->mutable_wait_until_present()->set_seconds_max(seconds);
  }
  v1::LookupRequest RequestOf(int first, int last, double seconds = 60) {
    v1::LookupRequest request;
    AddQuery(&request, first, last, seconds);
    return request;
  }
  void ExpectNobodyWaits() {
    EXPECT_EQ(parts_->waiters().count(), 0u);
    EXPECT_TRUE(parts_->CheckIdle().ok());
  }

  std::unique_ptr<ServiceParts> parts_;
  v1::OpenCacheResponse cache_;
};

TEST_F(LookupCallTest, WhatIsThereIsAnsweredAtOnce) {
  Start();
  Put(0);
  Waiting present(parts_.get(), RequestOf(0, 1));
  EXPECT_TRUE(present.ended());
  EXPECT_EQ(present.WaitForTokens(), 16u);
  Waiting patient(parts_.get(), RequestOf(0, 2, 0));
  EXPECT_TRUE(patient.ended());
  EXPECT_EQ(patient.WaitForTokens(), 16u);
}

TEST_F(LookupCallTest, ALookupWaitsForTheLastOfItsBlocks) {
  Start();
  Waiting lookup(parts_.get(), RequestOf(0, 4));
  for (const int key : {2, 0, 3}) {
    Put(key);
    EXPECT_FALSE(lookup.ended());
    EXPECT_LE(parts_->waiters().count(), 1u);
  }
  Put(1);
  EXPECT_EQ(lookup.WaitForTokens(), 4 * 16u);
  ExpectNobodyWaits();
}

TEST_F(LookupCallTest, ALookupIsAnsweredWithWhatIsThereWhenItsTimeIsUp) {
  Start();
  Put(0);
  Waiting lookup(parts_.get(), RequestOf(0, 2, 0.05));
  EXPECT_EQ(lookup.WaitForTokens(), 16u);
  ExpectNobodyWaits();
}

TEST_F(LookupCallTest, ASetWaitsForEachOfItsKeys) {
  Start();
  v1::LookupRequest request = RequestOf(0, 3);
  request.mutable_queries(0)->set_mode(v1::LOOKUP_MODE_SET);
  Put(1);
  Waiting lookup(parts_.get(), request);
  Put(0);
  EXPECT_FALSE(lookup.ended());
  Put(2);
  ASSERT_TRUE(lookup.Wait().ok());
  EXPECT_EQ(lookup.response().results(0).groups(0).matched_blocks(), 3u);
}

TEST_F(LookupCallTest, EachQueryWaitsForItsOwnTime) {
  Start();
  v1::LookupRequest request = RequestOf(0, 1, 0);
  AddQuery(&request, 1, 2, 0.05);
  AddQuery(&request, 2, 3, 60);
  Waiting lookup(parts_.get(), request);
  Put(2);
  ASSERT_TRUE(lookup.Wait().ok());
  EXPECT_EQ(lookup.WaitForTokens(0), 0u);
  EXPECT_EQ(lookup.WaitForTokens(1), 0u);
  EXPECT_EQ(lookup.WaitForTokens(2), 16u);
}

// A shard's block is there only with all its parts.
TEST_F(LookupCallTest, ALookupWaitsForAllPartsOfABlock) {
  Start();
  Waiting lookup(parts_.get(), RequestOf(0, 1));
  const GroupLayout layout = ModelLayout();
  for (uint32_t rank = 0; rank < 2; ++rank) {
    EXPECT_FALSE(lookup.ended());
    v1::ShardSpec shard;
    shard.set_tensor_rank(rank);
    shard.set_tensor_size(2);
    PartRange part = WholeRange(layout);
    part.head_begin = static_cast<uint16_t>(rank * 4);
    part.head_end = static_cast<uint16_t>(rank * 4 + 4);
    PutAll(parts_.get(), parts_->Open("cache", {}, v1::CODEC_NQKV4, shard), {{KeyOf(0), RawPart(layout, part, 1), 0}});
  }
  EXPECT_EQ(lookup.WaitForTokens(), 16u);
}

TEST_F(LookupCallTest, WhatWasWaitedForIsLeased) {
  Start();
  v1::LookupRequest request = RequestOf(0, 2);
  request.mutable_queries(0)->mutable_lease();
  Waiting lookup(parts_.get(), request);
  EXPECT_EQ(parts_->leases().Stats().leases, 0u);
  Put(0);
  Put(1);
  EXPECT_EQ(lookup.WaitForTokens(), 2 * 16u);
  EXPECT_EQ(parts_->store().Stats().pinned_parts, 2u);
  EXPECT_TRUE(parts_->leases().Release(0, lookup.response().results(0).lease_token()));
}

TEST_F(LookupCallTest, ACancelledLookupWaitsNoLonger) {
  Start();
  Waiting lookup(parts_.get(), RequestOf(0, 1));
  EXPECT_EQ(parts_->waiters().count(), 1u);
  lookup.Cancel();
  EXPECT_EQ(lookup.Wait().code(), absl::StatusCode::kCancelled);
  Put(0);
  ExpectNobodyWaits();
}

TEST_F(LookupCallTest, ADrainEndsWaitsWithWhatIsThere) {
  Start();
  Put(0);
  Waiting before(parts_.get(), RequestOf(0, 2));
  parts_->waiters().Close();
  EXPECT_EQ(before.WaitForTokens(), 16u);
  Waiting after(parts_.get(), RequestOf(0, 2));
  EXPECT_EQ(after.WaitForTokens(), 16u);
  ExpectNobodyWaits();
}

TEST_F(LookupCallTest, MoreWaitersThanTheLimitAreRefusedAndCounted) {
  Start({.limits = {.lookup_waiters_max = 1}});
  Waiting first(parts_.get(), RequestOf(0, 1));
  Waiting second(parts_.get(), RequestOf(1, 2));
  EXPECT_EQ(second.Wait().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(parts_->metrics().Sum().rejections, 1u);
  first.Cancel();
  Waiting third(parts_.get(), RequestOf(0, 1));
  EXPECT_FALSE(third.ended());
}

TEST_F(LookupCallTest, BadWaitsAreRefusedByTheirField) {
  Start();
  for (const double bad : {-1.0, 60.5, std::numeric_limits<double>::quiet_NaN()}) {
    Waiting lookup(parts_.get(), RequestOf(0, 1, bad));
    EXPECT_EQ(lookup.Wait().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(lookup.Wait().message()), HasSubstr("queries[0].wait_until_present.seconds_max: "));
  }
}

TEST_F(LookupCallTest, ManyLookupsWaitAndNoneIsForgotten) {
  Start();
  std::vector<std::unique_ptr<Waiting>> lookups;
  for (int i = 0; i < 200; ++i) lookups.push_back(std::make_unique<Waiting>(parts_.get(), RequestOf(i % 20, 24)));
  std::vector<std::thread> writers;
  for (int writer = 0; writer < 4; ++writer) {
    writers.emplace_back([this, writer] {
      for (int key = writer; key < 24; key += 4) Put(key);
    });
  }
  for (std::thread& writer : writers) writer.join();
  for (int i = 0; i < 200; ++i) {
    EXPECT_EQ(lookups[static_cast<size_t>(i)]->WaitForTokens(), (24u - static_cast<uint64_t>(i) % 20) * 16);
  }
  ExpectNobodyWaits();
}

}  // namespace
}  // namespace nqkv
