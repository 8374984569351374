#include "service/cache_calls.h"

#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/rpc_status.h"
#include "tests/service/call_fixture.h"
#include "tests/service/model_blocks.h"

namespace nqkv {
namespace {

using ::testing::AllOf;
using ::testing::Gt;
using ::testing::HasSubstr;
using ::testing::Lt;

class CacheCallsTest : public ::testing::Test {
 protected:
  explicit CacheCallsTest(FixtureOptions options = {}) : parts_(options) {}

  static v1::OpenCacheRequest OpenRequest(const std::string& name = "cache") {
    v1::OpenCacheRequest request;
    request.set_name(name);
    *request.mutable_spec() = ModelSpec();
    return request;
  }
  absl::Status Open(const v1::OpenCacheRequest& request, v1::OpenCacheResponse* response = nullptr) {
    v1::OpenCacheResponse ignored;
    return parts_.calls().OpenCache(parts_.tenant(), request, response == nullptr ? &ignored : response);
  }
  void Put(const v1::OpenCacheResponse& cache, const std::vector<int>& keys) {
    for (const int key : keys) {
      PutAll(&parts_, cache, {{KeyOf(key), RawBlock(ModelLayout(), static_cast<uint32_t>(key)), 0}});
    }
  }
  static v1::LookupRequest LookupOf(const v1::OpenCacheResponse& cache, const std::vector<int>& keys,
                                    v1::LookupMode mode = v1::LOOKUP_MODE_PREFIX) {
    v1::LookupRequest request;
    request.set_cache_id(cache.cache_id());
    request.set_shard_id(cache.shard_id());
    v1::LookupQuery* query = request.add_queries();
    query->set_mode(mode);
    query->set_include_blocks(true);
    v1::KeyChain* chain = query->add_chains();
    for (const int key : keys) chain->add_keys(KeyOf(key));
    return request;
  }
  absl::StatusOr<v1::LookupResponse> Lookup(const v1::LookupRequest& request) {
    v1::LookupResponse response;
    const absl::Status status = parts_.calls().Lookup(parts_.tenant(), request, &response);
    if (!status.ok()) return status;
    return response;
  }

  ServiceParts parts_;
};

TEST_F(CacheCallsTest, OpenTellsWhatAWorkerNeedsToKnow) {
  v1::OpenCacheResponse response;
  ASSERT_TRUE(Open(OpenRequest(), &response).ok());
  EXPECT_TRUE(response.created());
  EXPECT_NE(response.cache_id(), 0u);
  EXPECT_EQ(response.shard_id(), 1u);
  EXPECT_EQ(response.spec_fingerprint().size(), 16u);
  EXPECT_EQ(response.policy().codec(), v1::CODEC_AUTO);
  EXPECT_EQ(response.policy().scale_group(), 64u);
  ASSERT_EQ(response.sizes_size(), 1);
  EXPECT_EQ(response.sizes(0).raw_bytes(), 131'072u);
  EXPECT_LT(response.sizes(0).encoded_bytes_min(), 131'072u / 3);
  EXPECT_LE(response.sizes(0).encoded_bytes_min(), response.sizes(0).encoded_bytes_typical());
  EXPECT_GT(response.sizes(0).encoded_bytes_max(), 131'072u);
  EXPECT_EQ(response.limits().lookup_keys_max(), 65'536u);
  EXPECT_EQ(response.limits().key_bytes_max(), 64u);
  EXPECT_EQ(response.transports(0), "grpc");
  EXPECT_EQ(response.placement_run(), 16u);
}

TEST_F(CacheCallsTest, JoiningTheSameSpecGivesTheSameCacheAndShard) {
  v1::OpenCacheResponse first;
  v1::OpenCacheResponse second;
  ASSERT_TRUE(Open(OpenRequest(), &first).ok());
  ASSERT_TRUE(Open(OpenRequest(), &second).ok());
  EXPECT_FALSE(second.created());
  EXPECT_EQ(second.cache_id(), first.cache_id());
  EXPECT_EQ(second.shard_id(), first.shard_id());
  v1::OpenCacheRequest rank = OpenRequest();
  rank.mutable_shard()->set_tensor_size(2);
  ASSERT_TRUE(Open(rank, &second).ok());
  EXPECT_EQ(second.cache_id(), first.cache_id());
  EXPECT_EQ(second.shard_id(), 2u);
}

TEST_F(CacheCallsTest, ANameTakenByAnotherSpecOrPolicyIsRefusedNamingEachDifferingField) {
  ASSERT_TRUE(Open(OpenRequest()).ok());
  v1::OpenCacheRequest other = OpenRequest();
  other.mutable_spec()->set_revision("v2");
  other.mutable_spec()->mutable_layer_groups(0)->mutable_planes(3)->set_dtype(v1::DTYPE_BFLOAT16);
  other.mutable_policy()->set_codec(v1::CODEC_NQKV4);
  other.mutable_policy()->set_scale_group(128);
  const absl::Status status = Open(other);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("spec.revision ('', asked for 'v2')"),
                    HasSubstr("spec.layer_groups[0].planes[3].dtype (DTYPE_FLOAT16, asked for DTYPE_BFLOAT16)"),
                    HasSubstr("policy.codec (CODEC_AUTO, asked for CODEC_NQKV4)"),
                    HasSubstr("policy.scale_group (64, asked for 128)")));
  EXPECT_TRUE(Open(OpenRequest()).ok());
}

TEST_F(CacheCallsTest, ASpecThatIsNotValidIsRefusedBeforeItIsComparedWithAnother) {
  ASSERT_TRUE(Open(OpenRequest()).ok());
  v1::OpenCacheRequest other = OpenRequest();
  other.mutable_spec()->mutable_layer_groups(0)->mutable_planes(3)->set_heads(5'000);
  const absl::Status status = Open(other);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("spec.layer_groups[0].planes[3].heads"));
}

TEST_F(CacheCallsTest, NamesTheFirstOfManyDifferingFields) {
  ASSERT_TRUE(Open(OpenRequest()).ok());
  v1::OpenCacheRequest other = OpenRequest();
  auto* planes = other.mutable_spec()->mutable_layer_groups(0)->mutable_planes();
  for (int i = 0; i < planes->size(); ++i) planes->Mutable(i)->set_layer(static_cast<uint32_t>(i / 2 + 7));
  other.mutable_spec()->set_model("other");
  other.mutable_spec()->set_revision("other");
  other.mutable_spec()->set_rope_digest("other");
  other.mutable_spec()->set_adapter_digest("other");
  other.mutable_spec()->set_key_scheme("other");
  other.mutable_spec()->mutable_layer_groups(0)->set_id(9);
  other.mutable_policy()->set_codec(v1::CODEC_NQKV4);
  other.mutable_policy()->set_scale_group(128);
  const absl::Status status = Open(other);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("spec.model ("), testing::EndsWith(" more")));
}

TEST_F(CacheCallsTest, RefusesBadNamesPlacementsAndEngines) {
  EXPECT_THAT(std::string(Open(OpenRequest("")).message()), HasSubstr("name: required"));
  v1::OpenCacheRequest request = OpenRequest();
  request.set_placement_run(8);
  EXPECT_THAT(std::string(Open(request).message()), HasSubstr("placement_run: 8"));
  request = OpenRequest();
  request.set_engine(std::string(300, 'e'));
  EXPECT_THAT(std::string(Open(request).message()), HasSubstr("engine: 300 bytes"));
  request = OpenRequest();
  request.set_sentinel_hash("h");
  EXPECT_EQ(Open(request).code(), absl::StatusCode::kUnimplemented);
}

class FewCachesTest : public CacheCallsTest {
 protected:
  FewCachesTest() : CacheCallsTest({.limits = {.caches_max = 2, .shards_max = 2}}) {}
};

TEST_F(FewCachesTest, RefusesMoreCachesAndShardsThanItsLimits) {
  for (const char* name : {"a", "b"}) Put(parts_.Open(name), {0});
  const absl::Status status = Open(OpenRequest("c"));
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("2 caches are open and none is empty and unused"));
  EXPECT_EQ(RetryDelay(status), absl::ZeroDuration());
  v1::OpenCacheRequest rank = OpenRequest("a");
  rank.mutable_shard()->set_tensor_size(4);
  ASSERT_TRUE(Open(rank).ok());
  rank.mutable_shard()->set_tensor_rank(1);
  EXPECT_EQ(Open(rank).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(Open(OpenRequest("a")).ok());
}

TEST_F(FewCachesTest, ForgetsTheEmptyCacheThatWasUnusedTheLongestToOpenAnother) {
  const v1::OpenCacheResponse a = parts_.Open("a");
  const v1::OpenCacheResponse b = parts_.Open("b");
  ASSERT_TRUE(Lookup(LookupOf(a, {1})).ok());
  const v1::OpenCacheResponse c = parts_.Open("c");
  EXPECT_TRUE(c.created());
  EXPECT_EQ(Lookup(LookupOf(b, {1})).status().code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(Lookup(LookupOf(a, {1})).ok());
  // Opened again it is another cache, so that no id of old ever finds it.
  Put(a, {0});
  const v1::OpenCacheResponse again = parts_.Open("b");
  EXPECT_TRUE(again.created());
  EXPECT_NE(again.cache_id(), b.cache_id());
  EXPECT_TRUE(Lookup(LookupOf(a, {0})).ok());
  EXPECT_EQ(parts_.environment().caches->usage().reclaimed_caches_total, 2u);
}

TEST_F(FewCachesTest, KeepsAnEmptyCacheThatACallUsesAndSaysWhenToComeBack) {
  const v1::OpenCacheResponse a = parts_.Open("a");
  Put(parts_.Open("b"), {0});
  {
    FakePut put(&parts_);
    v1::PutRequest first = PutMessageOf(a.cache_id(), a.shard_id(), {{KeyOf(0), RawBlock(ModelLayout(), 0), 0}});
    first.mutable_chunks(0)->set_bytes(0);
    first.clear_payload();
    v1::PutRequest bad;  // A whole block has a result, which shows that the stream has its cache.
    *bad.add_chunks() = first.chunks(0);
    bad.mutable_chunks(0)->set_block(7);
    bad.mutable_chunks(0)->mutable_begin()->clear_key();
    put.Send(first);
    put.Send(bad);
    put.WaitForResults(1);
    const absl::Status status = Open(OpenRequest("c"));
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_GT(RetryDelay(status), absl::ZeroDuration());
    EXPECT_TRUE(Lookup(LookupOf(a, {1})).ok());
  }
}

TEST_F(FewCachesTest, OpensAndForgetsFromManyThreadsAndLosesNoBlock) {
  const v1::OpenCacheResponse kept = parts_.Open("kept");
  Put(kept, {0});
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([this, t] {
      for (int i = 0; i < 50; ++i) {
        const absl::Status status = Open(OpenRequest(absl::StrCat("cache", (t + i) % 5)));
        EXPECT_TRUE(status.ok() || RetryDelay(status) > absl::ZeroDuration()) << status;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(parts_.environment().caches->usage().caches, 2u);
  const absl::StatusOr<v1::LookupResponse> found = Lookup(LookupOf(kept, {0}));
  ASSERT_TRUE(found.ok());
  EXPECT_EQ(found->results(0).matched_tokens(), 16u);
}

// A spec as large as one can be.
v1::CacheSpec LargestSpec(v1::Dtype dtype = v1::DTYPE_FLOAT16) {
  return ModelSpec({.layers = 2'048, .heads = 1, .channels = 8, .block_tokens = 1, .dtype = dtype});
}

class LittleMemoryForCachesTest : public CacheCallsTest {
 protected:
  LittleMemoryForCachesTest() : CacheCallsTest({.limits = {.caches_bytes_max = uint64_t{4} << 20}}) {}
};

TEST_F(LittleMemoryForCachesTest, ForgetsEmptyCachesWhenSpecsTakeMoreThanTheirMemory) {
  for (int i = 0; i < 100; ++i) {
    v1::OpenCacheRequest request = OpenRequest(absl::StrCat("cache", i));
    *request.mutable_spec() = LargestSpec();
    ASSERT_TRUE(Open(request).ok());
    ASSERT_LE(parts_.environment().caches->usage().bytes, uint64_t{4} << 20);
  }
  EXPECT_LT(parts_.environment().caches->usage().caches, 20u);
  EXPECT_EQ(parts_.environment().caches->List().size(), parts_.environment().caches->usage().caches);
}

TEST_F(LittleMemoryForCachesTest, RefusesACacheForWhichTheRestWouldHaveToBeForgotten) {
  absl::Status status;
  int opened = 0;
  for (; status.ok() && opened < 100; ++opened) {
    v1::OpenCacheRequest request = OpenRequest(absl::StrCat("cache", opened));
    *request.mutable_spec() = LargestSpec();
    v1::OpenCacheResponse cache;
    status = Open(request, &cache);
    if (!status.ok()) break;
    const ModelShape shape = {.layers = 2'048, .heads = 1, .channels = 8, .block_tokens = 1};
    ASSERT_EQ(PutAll(&parts_, cache, {{KeyOf(0), RawBlock(ModelLayout(shape), 0), 0}})[0].status().code(), 0);
  }
  EXPECT_THAT(opened, AllOf(Gt(3), Lt(20)));
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("the open caches take"), HasSubstr("--caches_bytes_max")));
}

// Each shard is two words; with thousands of them it is they that fill the memory.
TEST_F(LittleMemoryForCachesTest, CountsShards) {
  v1::OpenCacheRequest request = OpenRequest();
  *request.mutable_spec() = LargestSpec();
  ASSERT_TRUE(Open(request).ok());
  const uint64_t before = parts_.environment().caches->usage().bytes;
  v1::ShardPart* part = request.mutable_shard()->add_parts();
  for (uint32_t layer = 0; layer < 100; ++layer) {
    part->mutable_layers()->set_begin(layer);
    part->mutable_layers()->set_end(layer + 1);
    ASSERT_TRUE(Open(request).ok());
    ASSERT_TRUE(Open(request).ok());  // Again it is the same shard.
  }
  EXPECT_EQ(parts_.environment().caches->usage().bytes, before + 100 * Cache::ShardBytes(1));
}

TEST_F(CacheCallsTest, ChecksARequestBeforeItComparesItWithTheCache) {
  ASSERT_TRUE(Open(OpenRequest()).ok());
  v1::OpenCacheRequest other = OpenRequest();
  v1::LayerGroup* group = other.mutable_spec()->mutable_layer_groups(0);
  while (group->planes_size() <= 4'096) *group->add_planes() = group->planes(0);
  EXPECT_EQ(Open(other).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(Open(other).message()), HasSubstr("spec.layer_groups: 4097 planes in all, at most 4096"));
}

TEST_F(CacheCallsTest, NamesTheFieldOfALargestSpecInFewWords) {
  v1::OpenCacheRequest request = OpenRequest();
  *request.mutable_spec() = LargestSpec();
  ASSERT_TRUE(Open(request).ok());
  *request.mutable_spec() = LargestSpec(v1::DTYPE_BFLOAT16);
  const absl::Status status = Open(request);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(std::string(status.message()),
            "cache 'cache' is open with other fields: spec.layer_groups[0].planes[0-4095].dtype (DTYPE_FLOAT16, asked "
            "for DTYPE_BFLOAT16)");
}

TEST_F(CacheCallsTest, FindsTheLongestPrefix) {
  const v1::OpenCacheResponse cache = parts_.Open("cache");
  Put(cache, {0, 1, 3});
  const auto response = Lookup(LookupOf(cache, {0, 1, 2, 3}));
  ASSERT_TRUE(response.ok()) << response.status();
  const v1::LookupResult& result = response->results(0);
  EXPECT_EQ(result.matched_tokens(), 32u);
  EXPECT_EQ(result.groups(0).matched_blocks(), 2u);
  EXPECT_EQ(result.groups(0).raw_bytes(), 2 * 131'072u);
  EXPECT_EQ(result.groups(0).blocks_size(), 2);
  EXPECT_TRUE(result.groups(0).blocks(0).present());
  EXPECT_GT(result.groups(0).blocks(0).floor_error(), 0);
  EXPECT_EQ(result.groups(0).blocks(0).stored_bytes() * 2, result.groups(0).stored_bytes());
}

TEST_F(CacheCallsTest, FindsTheSetThatIsPresent) {
  const v1::OpenCacheResponse cache = parts_.Open("cache");
  Put(cache, {0, 1, 9});
  const auto response = Lookup(LookupOf(cache, {5, 0, 1, 2, 3, 4, 6, 7, 8, 9}, v1::LOOKUP_MODE_SET));
  ASSERT_TRUE(response.ok()) << response.status();
  const v1::GroupMatch& match = response->results(0).groups(0);
  EXPECT_EQ(match.matched_blocks(), 3u);
  EXPECT_EQ(match.present(), std::string("\x06\x02"));
  EXPECT_EQ(match.blocks_size(), 10);
  EXPECT_FALSE(match.blocks(0).present());
}

TEST_F(CacheCallsTest, AnswersManyQueriesInOrder) {
  const v1::OpenCacheResponse cache = parts_.Open("cache");
  Put(cache, {0});
  v1::LookupRequest request = LookupOf(cache, {1});
  *request.add_queries() = LookupOf(cache, {0}).queries(0);
  request.add_queries();
  const auto response = Lookup(request);
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_EQ(response->results(0).matched_tokens(), 0u);
  EXPECT_EQ(response->results(1).matched_tokens(), 16u);
  EXPECT_EQ(response->results(2).matched_tokens(), 0u);
}

// Two groups with blocks of 16 and 24 tokens: a prefix is whole in both.
TEST_F(CacheCallsTest, MatchesPrefixesOverAllLayerGroups) {
  v1::OpenCacheRequest request = OpenRequest("two");
  v1::LayerGroup* second = request.mutable_spec()->add_layer_groups();
  *second = ModelSpec({.layers = 2, .heads = 2, .block_tokens = 24}).layer_groups(0);
  second->set_id(7);
  for (v1::PlaneSpec& plane : *second->mutable_planes()) plane.set_layer(plane.layer() + 4);
  v1::OpenCacheResponse cache;
  ASSERT_TRUE(Open(request, &cache).ok());
  Put(cache, {0, 1, 2, 3, 4, 5});
  GroupLayout layout = ModelLayout({.layers = 2, .heads = 2, .block_tokens = 24});
  FakePut put(&parts_);
  for (int key = 0; key < 3; ++key) {
    v1::PutRequest message =
        PutMessageOf(cache.cache_id(), 1, {{KeyOf(key), RawBlock(layout, 1), static_cast<uint32_t>(key)}});
    message.mutable_chunks(0)->mutable_begin()->set_layer_group(7);
    put.Send(message);
  }
  put.HalfClose();
  ASSERT_TRUE(put.Wait().ok());
  v1::LookupRequest lookup = LookupOf(cache, {0, 1, 2, 3, 4, 5, 6});
  v1::KeyChain* chain = lookup.mutable_queries(0)->add_chains();
  chain->set_layer_group(7);
  for (int key = 0; key < 4; ++key) chain->add_keys(KeyOf(key));
  const auto response = Lookup(lookup);
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_EQ(response->results(0).matched_tokens(), 48u);  // Of 96 and 72.
  EXPECT_EQ(response->results(0).groups(0).matched_blocks(), 3u);
  EXPECT_EQ(response->results(0).groups(1).matched_blocks(), 2u);

  chain->set_first_block_index(1);
  EXPECT_THAT(std::string(Lookup(lookup).status().message()),
              HasSubstr("queries[0].chains[1].first_block_index: the chain starts at token 24"));
  chain->set_layer_group(0);
  EXPECT_THAT(std::string(Lookup(lookup).status().message()),
              HasSubstr("queries[0].chains[1].layer_group: 0 is that of chains[0] too"));
}

TEST_F(CacheCallsTest, RefusesBadLookupsNamingTheField) {
  const v1::OpenCacheResponse cache = parts_.Open("cache");
  const auto expect = [&](const v1::LookupRequest& request, absl::StatusCode code, const std::string& message) {
    const absl::Status status = Lookup(request).status();
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
  };
  v1::LookupRequest request = LookupOf(cache, {1});
  request.set_cache_id(1);
  expect(request, absl::StatusCode::kNotFound, "unknown cache 1: open it again");
  request = LookupOf(cache, {1, 2, 1});
  expect(request, absl::StatusCode::kInvalidArgument,
         "queries[0].chains[0].keys[2]: the same key as queries[0].chains[0].keys[0]");
  request = LookupOf(cache, {1});
  request.mutable_queries(0)->mutable_chains(0)->add_keys("");
  expect(request, absl::StatusCode::kInvalidArgument, "queries[0].chains[0].keys[1]: 0 bytes");
  request.mutable_queries(0)->mutable_chains(0)->set_keys(1, std::string(65, 'k'));
  expect(request, absl::StatusCode::kInvalidArgument, "queries[0].chains[0].keys[1]: 65 bytes");
  request = LookupOf(cache, {1});
  request.mutable_queries(0)->mutable_chains(0)->set_layer_group(4);
  expect(request, absl::StatusCode::kInvalidArgument,
         "queries[0].chains[0].layer_group: the cache has no layer group 4");
  request = LookupOf(cache, {});
  for (int key = 0; key < 65'537; ++key) request.mutable_queries(0)->mutable_chains(0)->add_keys(KeyOf(key));
  expect(request, absl::StatusCode::kInvalidArgument, "queries: 65537 keys, at most 65536");
  request.mutable_queries(0)->mutable_chains(0)->mutable_keys()->RemoveLast();
  EXPECT_TRUE(Lookup(request).ok());
}

TEST_F(CacheCallsTest, DeletesAndClearsAndTellsWhatWasThere) {
  const v1::OpenCacheResponse cache = parts_.Open("cache");
  const v1::OpenCacheResponse other = parts_.Open("other");
  Put(cache, {0, 1, 2});
  Put(other, {0});
  v1::DeleteRequest request;
  request.set_cache_id(cache.cache_id());
  request.add_keys(KeyOf(1));
  request.add_keys(KeyOf(7));
  v1::DeleteResponse deleted;
  ASSERT_TRUE(parts_.calls().Delete(parts_.tenant(), request, &deleted).ok());
  EXPECT_EQ(deleted.deleted_blocks(), 1u);
  EXPECT_GT(deleted.freed_bytes(), 0u);
  v1::DeleteRequest twice = request;
  twice.add_keys(KeyOf(1));
  const absl::Status refused = parts_.calls().Delete(parts_.tenant(), twice, &deleted);
  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("keys[2]: the same key as keys[0]"));
  request.add_keys("");
  EXPECT_THAT(std::string(parts_.calls().Delete(parts_.tenant(), request, &deleted).message()),
              HasSubstr("keys[2]: 0 bytes"));
  request.set_cache_id(3);
  EXPECT_EQ(parts_.calls().Delete(parts_.tenant(), request, &deleted).code(), absl::StatusCode::kNotFound);

  v1::ClearRequest clear;
  clear.set_cache_id(cache.cache_id());
  v1::ClearResponse cleared;
  ASSERT_TRUE(parts_.calls().Clear(parts_.tenant(), clear, &cleared).ok());
  EXPECT_EQ(cleared.deleted_blocks(), 2u);
  EXPECT_EQ(parts_.store().Stats().blocks, 1u);  // The other cache's.
  EXPECT_EQ(Lookup(LookupOf(other, {0}))->results(0).matched_tokens(), 16u);
}

TEST(LookupReplyTest, IsRefusedWhenItMightNotFitIntoAMessage) {
  FixtureOptions options;
  options.limits.message_bytes_max = 100'000;
  ServiceParts parts(options);
  const v1::OpenCacheResponse cache = parts.Open("cache");
  v1::LookupRequest request;
  request.set_cache_id(cache.cache_id());
  v1::LookupQuery* query = request.add_queries();
  query->set_mode(v1::LOOKUP_MODE_SET);
  v1::KeyChain* chain = query->add_chains();
  for (int key = 0; key < 4'000; ++key) chain->add_keys(KeyOf(key));
  const auto lookup = [&] {
    v1::LookupResponse response;
    return parts.calls().Lookup(parts.tenant(), request, &response);
  };
  EXPECT_TRUE(lookup().ok());
  query->set_include_blocks(true);
  EXPECT_EQ(lookup().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(lookup().message()), ::testing::HasSubstr("the reply may take 128572 bytes, at most 100000"));
  chain->mutable_keys()->DeleteSubrange(3'000, 1'000);
  EXPECT_TRUE(lookup().ok());
}

}  // namespace
}  // namespace nqkv
