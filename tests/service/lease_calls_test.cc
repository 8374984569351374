// Leases as a client meets them: granted by Lookup, read under by Get, ended by Release.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "service/lookup.h"
#include "tests/service/call_fixture.h"
#include "tests/service/model_blocks.h"

namespace nqkv {
namespace {

using std::chrono::seconds;
using ::testing::HasSubstr;

class LeaseCallsTest : public ::testing::Test {
 protected:
  void Start(FixtureOptions options = {}) {
    parts_ = std::make_unique<ServiceParts>(options);
    cache_ = parts_->Open("cache");
  }
  void Put(int first, int last) {
    std::vector<PutBlock> blocks;
    for (int key = first; key < last; ++key) blocks.push_back({KeyOf(key), RawBlock(ModelLayout(), 1), 0});
    for (const v1::BlockPutResult& result : PutAll(parts_.get(), cache_, blocks)) {
      ASSERT_EQ(result.outcome(), v1::PUT_OUTCOME_STORED) << result.DebugString();
    }
  }
  v1::LookupRequest LookupOf(int first, int last, const std::string& request_id = "", const std::string& session = "") {
    v1::LookupRequest request;
    request.set_cache_id(cache_.cache_id());
    request.set_shard_id(cache_.shard_id());
    v1::LookupQuery* query = request.add_queries();
    query->set_request_id(request_id);
    query->mutable_lease()->set_session_id(session);
    v1::KeyChain* chain = query->add_chains();
    for (int key = first; key < last; ++key) chain->add_keys(KeyOf(key));
    return request;
  }
  absl::Status Lookup(const v1::LookupRequest& request, v1::LookupResponse* response) {
    return parts_->calls().Lookup(parts_->tenant(), request, response);
  }
  v1::LookupResult LookupOne(const v1::LookupRequest& request) {
    v1::LookupResponse response;
    const absl::Status status = Lookup(request, &response);
    EXPECT_TRUE(status.ok()) << status;
    return response.results_size() == 1 ? response.results(0) : v1::LookupResult();
  }
  uint32_t Release(const std::vector<std::string>& tokens) {
    v1::ReleaseRequest request;
    for (const std::string& token : tokens) request.add_lease_tokens(token);
    v1::ReleaseResponse response;
    EXPECT_TRUE(parts_->calls().Release(parts_->tenant(), request, &response).ok());
    return response.released();
  }
  v1::GetRequest GetOf(int first, int last, const std::string& token) {
    std::vector<std::string> keys;
    for (int key = first; key < last; ++key) keys.push_back(KeyOf(key));
    v1::GetRequest request = GetRequestOf(cache_, keys);
    request.set_lease_token(token);
    return request;
  }
  std::string Session() { return parts_->leases().OpenSession(0, "worker")->session_id; }
  void Turn(std::chrono::nanoseconds by) {
    parts_->clock().Turn(by);
    while (parts_->leases().Sweep()) {
    }
  }
  uint64_t Pinned() { return parts_->store().Stats().pinned_parts; }

  std::unique_ptr<ServiceParts> parts_;
  v1::OpenCacheResponse cache_;
};

TEST_F(LeaseCallsTest, OpenCacheTellsWhatLeasesAndSessionsKeepTo) {
  Start();
  EXPECT_EQ(cache_.limits().heartbeat_seconds(), 5);
  EXPECT_EQ(cache_.limits().session_grace_seconds(), 15);
  EXPECT_EQ(cache_.limits().lease_seconds_default(), 30);
  EXPECT_EQ(cache_.limits().lease_seconds_max(), 300);
  EXPECT_EQ(cache_.limits().max_read_seconds(), 30);
  EXPECT_EQ(cache_.limits().request_id_bytes_max(), 128u);
  EXPECT_EQ(cache_.limits().release_tokens_max(), 65'536u);
}

TEST_F(LeaseCallsTest, ALookupWithoutALeasePinsNothing) {
  Start();
  Put(0, 3);
  v1::LookupRequest request = LookupOf(0, 3);
  request.mutable_queries(0)->clear_lease();
  EXPECT_EQ(LookupOne(request).lease_token(), "");
  EXPECT_EQ(Pinned(), 0u);
}

TEST_F(LeaseCallsTest, WhatALookupLeasedIsThereAfterTheStoreWasFilledAnew) {
  Start({.host_bytes = uint64_t{4} << 20});
  Put(0, 4);
  const v1::LookupResult result = LookupOne(LookupOf(0, 6));
  EXPECT_EQ(result.matched_tokens(), 4 * 16u);
  EXPECT_FALSE(result.lease_token().empty());
  EXPECT_EQ(Pinned(), 4u);
  Put(100, 400);
  for (const GotBlock& block : GetAll(parts_.get(), GetOf(0, 4, result.lease_token()))) {
    EXPECT_EQ(block.result.status().code(), 0);
  }
  EXPECT_EQ(Release({result.lease_token()}), 1u);
  EXPECT_EQ(Release({result.lease_token(), "no token"}), 0u);
  EXPECT_TRUE(parts_->CheckIdle().ok());
}

TEST_F(LeaseCallsTest, ASetLeasesWhatIsPresentOfIt) {
  Start();
  Put(0, 2);
  Put(4, 5);
  v1::LookupRequest request = LookupOf(0, 6);
  request.mutable_queries(0)->set_mode(v1::LOOKUP_MODE_SET);
  const v1::LookupResult result = LookupOne(request);
  EXPECT_EQ(result.groups(0).matched_blocks(), 3u);
  EXPECT_EQ(Pinned(), 3u);
  EXPECT_EQ(Release({result.lease_token()}), 1u);
}

TEST_F(LeaseCallsTest, NothingFoundMakesNoLeaseAndNoError) {
  Start();
  const v1::LookupResult result = LookupOne(LookupOf(0, 3));
  EXPECT_EQ(result.lease_token(), "");
  EXPECT_FALSE(result.has_lease_status());
  EXPECT_EQ(parts_->leases().Stats().leases, 0u);
}

TEST_F(LeaseCallsTest, EachQueryHasALeaseOfItsOwn) {
  Start();
  Put(0, 4);
  v1::LookupRequest request = LookupOf(0, 2, "a");
  *request.add_queries() = LookupOf(2, 4, "b").queries(0);
  v1::LookupResponse response;
  ASSERT_TRUE(Lookup(request, &response).ok());
  EXPECT_EQ(Pinned(), 4u);
  EXPECT_EQ(Release({response.results(0).lease_token()}), 1u);
  EXPECT_EQ(Pinned(), 2u);
  EXPECT_EQ(Release({response.results(1).lease_token()}), 1u);
}

TEST_F(LeaseCallsTest, ASchedulerThatLooksUpTheSameRequestAHundredTimesHoldsOneLease) {
  Start();
  const std::string session = Session();
  std::vector<std::string> tokens;
  for (int i = 0; i < 100; ++i) {
    Put(i % 8, i < 8 ? i + 1 : i % 8);  // More of the request appears while it waits.
    tokens.push_back(LookupOne(LookupOf(0, 8, "request", session)).lease_token());
    ASSERT_EQ(parts_->leases().Stats().leases, 1u);
    ASSERT_EQ(Pinned(), static_cast<uint64_t>(std::min(i + 1, 8)));
  }
  // A worker that was told an early token reads under what the last lookup found.
  for (const GotBlock& block : GetAll(parts_.get(), GetOf(0, 8, tokens[3]))) {
    EXPECT_EQ(block.result.status().code(), 0);
  }
  EXPECT_EQ(Release({tokens.begin(), tokens.end() - 1}), 0u);
  EXPECT_EQ(Release({tokens.back()}), 1u);
  EXPECT_TRUE(parts_->CheckIdle().ok());
}

TEST_F(LeaseCallsTest, ALeaseThatHasEndedIsRefusedBeforeAnythingIsSent) {
  Start();
  Put(0, 1);
  const std::string token = LookupOne(LookupOf(0, 1)).lease_token();
  Turn(seconds(30));
  for (const std::string& ended : {token, std::string("nobody's")}) {
    FakeGet get(parts_.get());
    get.Start(GetOf(0, 1, ended));
    EXPECT_EQ(get.Wait().code(), absl::StatusCode::kAborted);
    EXPECT_THAT(std::string(get.Wait().message()), HasSubstr("look up again"));
    EXPECT_EQ(get.message_count(), 0u);
  }
}

TEST_F(LeaseCallsTest, LeasesLastAsLongAsTheyAskFor) {
  Start();
  Put(0, 2);
  v1::LookupRequest request = LookupOf(0, 1);
  request.mutable_queries(0)->mutable_lease()->set_seconds(300);
  ASSERT_FALSE(LookupOne(request).lease_token().empty());
  request = LookupOf(1, 2);
  request.mutable_queries(0)->mutable_lease()->set_seconds(0.5);
  ASSERT_FALSE(LookupOne(request).lease_token().empty());
  EXPECT_EQ(Pinned(), 2u);
  Turn(std::chrono::milliseconds(500));
  EXPECT_EQ(Pinned(), 1u);
  Turn(seconds(299));
  EXPECT_EQ(Pinned(), 1u);
  Turn(std::chrono::milliseconds(500));
  EXPECT_EQ(Pinned(), 0u);
}

TEST_F(LeaseCallsTest, BadLeasesAreRefusedByTheirFieldAndNoneOfTheCallIsGranted) {
  Start();
  Put(0, 1);
  const auto expect = [&](const v1::LookupQuery& query, const std::string& message) {
    v1::LookupRequest request = LookupOf(0, 1, "good");
    *request.add_queries() = query;
    v1::LookupResponse response;
    const absl::Status status = Lookup(request, &response);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
    EXPECT_EQ(parts_->leases().Stats().granted_total, 0u);
  };
  v1::LookupQuery query = LookupOf(0, 1).queries(0);
  for (const double bad :
       {-1.0, 300.1, std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()}) {
    query.mutable_lease()->set_seconds(bad);
    expect(query, "queries[1].lease.seconds: ");
  }
  query.mutable_lease()->set_seconds(1);
  query.set_request_id(std::string(129, 'r'));
  expect(query, "queries[1].request_id: 129 bytes, at most 128");
  query.clear_lease();
  query.set_request_id("r");
  expect(query, "queries[1].request_id: names a lease");
}

TEST_F(LeaseCallsTest, TheLookupHoldsWhenItsLeaseIsRefused) {
  Start({.limits = {.leases_max = 1}});
  Put(0, 2);
  ASSERT_FALSE(LookupOne(LookupOf(0, 1)).lease_token().empty());
  const v1::LookupResult full = LookupOne(LookupOf(0, 2));
  EXPECT_EQ(full.matched_tokens(), 32u);
  EXPECT_EQ(full.lease_token(), "");
  EXPECT_EQ(full.lease_status().code(), static_cast<int>(absl::StatusCode::kResourceExhausted));
  EXPECT_GT(full.lease_status().retry_seconds(), 0);
  EXPECT_EQ(parts_->metrics().Sum().rejections, 1u);
  const v1::LookupResult ended = LookupOne(LookupOf(0, 2, "request", "no session"));
  EXPECT_EQ(ended.matched_tokens(), 32u);
  EXPECT_EQ(ended.lease_status().code(), static_cast<int>(absl::StatusCode::kAborted));
  EXPECT_EQ(Pinned(), 1u);
}

TEST_F(LeaseCallsTest, BytesThatATenantMayLeaseAreBounded) {
  Start({.limits = {.leased_bytes_max = 100'000}});  // Two blocks of 37 KiB.
  Put(0, 3);
  EXPECT_FALSE(LookupOne(LookupOf(0, 2)).lease_token().empty());
  EXPECT_FALSE(LookupOne(LookupOf(0, 2)).lease_token().empty());  // The same blocks again cost nothing.
  EXPECT_EQ(LookupOne(LookupOf(0, 3)).lease_status().code(), static_cast<int>(absl::StatusCode::kResourceExhausted));
}

// A reader that takes no message for longer than --max_read_seconds: the lease stays until it is cut off, and its time
// starts anew then.
TEST_F(LeaseCallsTest, ASlowReaderKeepsItsLeaseUntilItIsCutOff) {
  FixtureOptions options;
  options.limits.message_bytes_best = 16 << 10;
  options.limits.read_seconds_max = 0.2;
  Start(options);
  Put(0, 4);
  const std::string token = LookupOne(LookupOf(0, 4)).lease_token();
  FakeGet get(parts_.get());
  get.HoldWrites();
  get.Start(GetOf(0, 4, token));
  get.WaitForHeldWrite();
  Turn(seconds(1'000));  // The lease's own deadline, many times over.
  EXPECT_EQ(parts_->leases().Stats().leases, 1u);
  EXPECT_EQ(parts_->leases().Stats().reads, 1u);
  EXPECT_EQ(get.Wait().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(parts_->leases().Stats().reads, 0u);
  EXPECT_EQ(Pinned(), 4u);
  Turn(seconds(30));
  EXPECT_EQ(parts_->leases().Stats().leases, 0u);
  EXPECT_TRUE(parts_->CheckIdle().ok());
}

TEST_F(LeaseCallsTest, AReadGoesOnWhenItsSessionEnds) {
  FixtureOptions options;
  options.limits.message_bytes_best = 16 << 10;
  Start(options);
  Put(0, 4);
  const std::string session = Session();
  const std::string token = LookupOne(LookupOf(0, 4, "request", session)).lease_token();
  FakeGet get(parts_.get());
  get.HoldWrites();
  get.Start(GetOf(0, 4, token));
  get.WaitForHeldWrite();
  Turn(seconds(15));
  EXPECT_EQ(parts_->leases().Stats().sessions, 0u);
  EXPECT_EQ(parts_->leases().Stats().leases, 0u);
  get.ReleaseWrites();
  ASSERT_TRUE(get.Wait().ok()) << get.Wait();
  for (const GotBlock& block : get.blocks()) EXPECT_EQ(block.result.status().code(), 0);
  EXPECT_TRUE(parts_->CheckIdle().ok());
}

TEST_F(LeaseCallsTest, TouchedBlocksOutliveOlderOnes) {
  Start({.host_bytes = uint64_t{4} << 20});
  Put(0, 40);
  v1::TouchRequest request;
  request.set_cache_id(cache_.cache_id());
  for (int key = 0; key < 4; ++key) request.add_keys(KeyOf(key));
  request.add_keys("not there");
  v1::TouchResponse response;
  ASSERT_TRUE(parts_->calls().Touch(parts_->tenant(), request, &response).ok());
  Put(100, 400);
  EXPECT_EQ(LookupOne(LookupOf(0, 4)).matched_tokens(), 4 * 16u);
  EXPECT_EQ(LookupOne(LookupOf(10, 11)).matched_tokens(), 0u);
  request.add_keys("");
  EXPECT_THAT(std::string(parts_->calls().Touch(parts_->tenant(), request, &response).message()),
              HasSubstr("keys[5]: 0 bytes"));
  request.set_cache_id(1);
  EXPECT_EQ(parts_->calls().Touch(parts_->tenant(), request, &response).code(), absl::StatusCode::kNotFound);
}

TEST_F(LeaseCallsTest, ManyLookupsAndGetsUnderEvictionLeaveNothingPinned) {
  Start({.host_bytes = uint64_t{4} << 20});
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 3; ++thread) {
    threads.emplace_back([this, thread] {
      for (int step = 0; step < 40; ++step) {
        std::vector<PutBlock> blocks;
        for (int key = 0; key < 4; ++key) {
          blocks.push_back({KeyOf(100 * thread + step + key), RawBlock(ModelLayout(), 1), 0});
        }
        PutAll(parts_.get(), cache_, blocks);
        const int first = 100 * thread + step;
        const v1::LookupResult result = LookupOne(LookupOf(first, first + 4, absl::StrCat(step % 5)));
        if (result.lease_token().empty()) continue;
        FakeGet get(parts_.get());
        get.Start(GetOf(first, first + static_cast<int>(result.matched_tokens() / 16), result.lease_token()));
        if (!get.Wait().ok()) continue;  // Another thread's request of this name took its place and was released.
        if (step % 3 == 0) Release({result.lease_token()});
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(parts_->leases().CheckConsistency().ok()) << parts_->leases().CheckConsistency();
  EXPECT_GT(parts_->leases().Stats().granted_total, 0u);
  Turn(std::chrono::hours(1));
  EXPECT_TRUE(parts_->CheckIdle().ok()) << parts_->CheckIdle();
  EXPECT_EQ(parts_->leases().Stats().parts, 0u);
}

}  // namespace
}  // namespace nqkv
