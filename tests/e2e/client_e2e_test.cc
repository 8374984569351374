// The C++ library against a real nqkvd.
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <thread>

#include "absl/strings/str_cat.h"
#include "client/nqkv.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/nqkvd_process.h"

namespace nqkv::client {
namespace {

using ::testing::HasSubstr;

constexpr uint32_t kLayers = 4, kHeads = 4, kChannels = 64, kTokens = 16;

// Float16 bits around 1, different for each seed.
std::vector<uint16_t> Noise(size_t elements, uint32_t seed) {
  std::vector<uint16_t> values(elements);
  uint32_t state = seed * 2654435761u + 1;
  for (uint16_t& value : values) {
    state = state * 1664525u + 1013904223u;
    value = static_cast<uint16_t>((state >> 16 & 0x83ff) | (13 + (state >> 11 & 3)) << 10);
  }
  return values;
}

class ClientE2eTest : public ::testing::Test {
 protected:
  static constexpr size_t kElements = size_t{2} * kLayers * kHeads * kChannels * kTokens;

  explicit ClientE2eTest(std::vector<std::string> flags = {"--host_bytes=64MiB"}) : server_(NQKVD, std::move(flags)) {
    options_.retry.attempts_max = 20;
    options_.retry.backoff_first = std::chrono::milliseconds(20);
    options_.retry.backoff_max = std::chrono::milliseconds(200);
    client_ = *Client::Connect(server_.address(), options_);
  }

  std::unique_ptr<Cache> Open(Codec codec, const ShardSpec& shard = {}) {
    CodecPolicy policy;
    policy.codec = codec;
    auto cache = client_->OpenCache({.name = "test",
                                     .spec = UniformSpec("model", kLayers, kHeads, kChannels, Dtype::kFloat16, kTokens),
                                     .policy = policy,
                                     .shard = shard,
                                     .engine = "test"});
    EXPECT_TRUE(cache.ok()) << cache.status();
    return *std::move(cache);
  }
  PutBlock MakeBlock(uint32_t seed) {
    memory_.push_back(std::make_unique<std::vector<uint16_t>>(Noise(kElements, seed)));
    PutBlock block;
    block.key = absl::StrCat("key", seed);
    block.data = memory_.back()->data();
    block.bytes = kElements * sizeof(uint16_t);
    block.token_start = uint64_t{seed} * kTokens;
    block.first_in_sequence = seed == 0;
    return block;
  }
  // The element at this place of a block's memory.
  static size_t Index(uint32_t layer, uint32_t role, uint32_t token, uint32_t head, uint32_t channel) {
    return (((size_t{layer} * 2 + role) * kTokens + token) * kHeads + head) * kChannels + channel;
  }
  GetResult Get(Cache* cache, const std::string& key, std::vector<uint16_t>* target, const GetOptions& get = {}) {
    target->assign(cache->BlockBytes(get).value() / sizeof(uint16_t), 0);
    const GetTarget where{.key = key, .data = target->data(), .bytes = target->size() * sizeof(uint16_t)};
    return cache->Get({&where, 1}, get)[0];
  }

  testing::NqkvdProcess server_;
  ClientOptions options_;
  std::unique_ptr<Client> client_;
  std::vector<std::unique_ptr<std::vector<uint16_t>>> memory_;
};

TEST_F(ClientE2eTest, GetsRawBlocksBackBitForBit) {
  const auto cache = Open(Codec::kRaw);
  std::vector<PutBlock> blocks;
  for (uint32_t i = 0; i < 100; ++i) blocks.push_back(MakeBlock(i));
  for (const PutResult& result : cache->Put(blocks)) {
    ASSERT_TRUE(result.status.ok()) << result.status;
    EXPECT_EQ(result.outcome, PutOutcome::kStored);
  }
  for (const PutResult& result : cache->Put(blocks)) EXPECT_EQ(result.outcome, PutOutcome::kAlreadyPresent);
  std::vector<std::vector<uint16_t>> buffers(100, std::vector<uint16_t>(kElements));
  std::vector<GetTarget> targets;
  for (size_t i = 0; i < 100; ++i) {
    targets.push_back({.key = blocks[i].key, .data = buffers[i].data(), .bytes = kElements * sizeof(uint16_t)});
  }
  const auto results = cache->Get(targets, {});
  for (size_t i = 0; i < 100; ++i) {
    ASSERT_TRUE(results[i].status.ok()) << results[i].status;
    EXPECT_EQ(buffers[i], *memory_[i]);
  }
}

TEST_F(ClientE2eTest, QuantizesAndReportsWhatItDid) {
  const auto cache = Open(Codec::kNqkv4);
  const PutBlock block = MakeBlock(1);
  const PutResult put = cache->Put({&block, 1})[0];
  ASSERT_TRUE(put.status.ok()) << put.status;
  EXPECT_LT(put.stored_bytes, put.raw_bytes / 3);
  EXPECT_GT(put.floor_error, 0);
  std::vector<uint16_t> target;
  const GetResult get = Get(cache.get(), block.key, &target, {.include_planes = true});
  ASSERT_TRUE(get.status.ok()) << get.status;
  EXPECT_EQ(get.stored_bytes, put.stored_bytes);
  EXPECT_EQ(get.floor_error, put.floor_error);
  ASSERT_EQ(get.planes.size(), 2u * kLayers);
  EXPECT_EQ(get.planes[0].codec, Codec::kNqkv4);
  EXPECT_NE(target, *memory_[0]);
}

TEST_F(ClientE2eTest, ServesAnotherShardingThanItStored) {
  // Two ranks put their halves of the heads; one that holds all, and one of four, read.
  const PutBlock whole = MakeBlock(1);
  for (uint32_t rank = 0; rank < 2; ++rank) {
    const auto half = Open(Codec::kRaw, {.tensor_rank = rank, .tensor_size = 2});
    PutBlock block;
    block.key = whole.key;
    for (uint32_t plane = 0; plane < 2 * kLayers; ++plane) {
      block.planes.push_back({.data = memory_[0]->data() + Index(plane / 2, plane % 2, 0, rank * kHeads / 2, 0),
                              .token_stride = kHeads * kChannels * sizeof(uint16_t)});
    }
    const PutResult result = half->Put({&block, 1})[0];
    ASSERT_TRUE(result.status.ok()) << result.status;
  }
  std::vector<uint16_t> target;
  ASSERT_TRUE(Get(Open(Codec::kRaw).get(), whole.key, &target).status.ok());
  EXPECT_EQ(target, *memory_[0]);
  const auto quarter = Open(Codec::kRaw, {.tensor_rank = 3, .tensor_size = 4});
  ASSERT_TRUE(Get(quarter.get(), whole.key, &target).status.ok());
  EXPECT_EQ(target.size(), kElements / 4);
  EXPECT_EQ(target[0], (*memory_[0])[Index(0, 0, 0, 3, 0)]);
  EXPECT_EQ(target[target.size() - 1], memory_[0]->back());
}

TEST_F(ClientE2eTest, GetsARangeOfLayersAndHeads) {
  const auto cache = Open(Codec::kRaw);
  const PutBlock block = MakeBlock(1);
  ASSERT_TRUE(cache->Put({&block, 1})[0].status.ok());
  std::vector<uint16_t> target;
  const GetResult result = Get(cache.get(), block.key, &target, {.layers = Range{1, 2}, .heads = Range{2, 3}});
  ASSERT_TRUE(result.status.ok()) << result.status;
  size_t i = 0;
  for (uint32_t role = 0; role < 2; ++role) {
    for (uint32_t token = 0; token < kTokens; ++token) {
      for (uint32_t channel = 0; channel < kChannels; ++channel) {
        ASSERT_EQ(target[i++], (*memory_[0])[Index(1, role, token, 2, channel)]);
      }
    }
  }
  EXPECT_EQ(i, target.size());
}

TEST_F(ClientE2eTest, KeepsGoodBlocksOfABatchWithBadOnes) {
  const auto cache = Open(Codec::kNqkv4);
  std::vector<PutBlock> blocks = {MakeBlock(0), MakeBlock(1), MakeBlock(2), MakeBlock(3), MakeBlock(4)};
  blocks[1].bytes -= 2;
  blocks[2].key = "";
  (*memory_[3])[77] = 0x7e00;  // NaN.
  const auto results = cache->Put(blocks);
  EXPECT_TRUE(results[0].status.ok()) << results[0].status;
  for (size_t i = 1; i < 4; ++i) EXPECT_TRUE(absl::IsInvalidArgument(results[i].status)) << i << results[i].status;
  EXPECT_TRUE(results[4].status.ok()) << results[4].status;
  const auto present = cache->Lookup(LookupQuery{
      .chains = {{.keys = {blocks[0].key, blocks[1].key, blocks[3].key, blocks[4].key}}}, .mode = LookupMode::kSet});
  ASSERT_TRUE(present.ok()) << present.status();
  EXPECT_EQ(present->groups[0].present, (std::vector<bool>{true, false, false, true}));
}

TEST_F(ClientE2eTest, DeletesAndClears) {
  const auto cache = Open(Codec::kRaw);
  std::vector<PutBlock> blocks;
  for (uint32_t i = 0; i < 10; ++i) blocks.push_back(MakeBlock(i));
  cache->Put(blocks);
  EXPECT_EQ(cache->Delete(0, std::vector<std::string>{"key0", "none", "key9"})->blocks, 2u);
  EXPECT_EQ(cache->Clear()->blocks, 8u);
  std::vector<uint16_t> target;
  EXPECT_TRUE(absl::IsNotFound(Get(cache.get(), "key5", &target).status));
}

TEST_F(ClientE2eTest, GoesOnAfterTheServerWasKilledAndRestarted) {
  const auto cache = Open(Codec::kRaw);
  const PutBlock block = MakeBlock(1);
  ASSERT_TRUE(cache->Put({&block, 1})[0].status.ok());
  server_.Kill();
  server_.Start();
  std::vector<uint16_t> target;
  EXPECT_TRUE(absl::IsNotFound(Get(cache.get(), block.key, &target).status));  // A miss, not an error of the call.
  const PutResult again = cache->Put({&block, 1})[0];
  EXPECT_TRUE(again.status.ok()) << again.status;
  EXPECT_EQ(again.outcome, PutOutcome::kStored);
  EXPECT_TRUE(Get(cache.get(), block.key, &target).status.ok());
}

TEST_F(ClientE2eTest, WaitsForAServerThatComesBack) {
  const auto cache = Open(Codec::kRaw);
  const PutBlock block = MakeBlock(1);
  server_.Kill();
  absl::Status status;
  std::thread put([&] { status = cache->Put({&block, 1})[0].status; });
  server_.Start();
  put.join();
  EXPECT_TRUE(status.ok()) << status << server_.log();
}

TEST_F(ClientE2eTest, EndsByItsTimeoutWhenTheServerHangs) {
  const auto cache = Open(Codec::kRaw);
  server_.Freeze();
  const auto begin = std::chrono::steady_clock::now();
  const CallOptions soon{.timeout = std::chrono::milliseconds(200)};
  std::vector<uint16_t> buffer(kElements);
  const GetTarget target{.key = "key", .data = buffer.data(), .bytes = kElements * sizeof(uint16_t)};
  EXPECT_TRUE(absl::IsDeadlineExceeded(cache->Get({&target, 1}, {}, soon)[0].status));
  EXPECT_TRUE(absl::IsDeadlineExceeded(cache->Clear(soon).status()));
  EXPECT_TRUE(absl::IsDeadlineExceeded(cache->Lookup(LookupQuery{.chains = {{.keys = {"a"}}}}, soon).status()));
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(30));
  server_.Thaw();
  EXPECT_TRUE(cache->Clear().ok());
}

TEST_F(ClientE2eTest, EndsAPutByItsTimeoutWhenTheServerHangs) {
  const auto cache = Open(Codec::kRaw);
  std::vector<PutBlock> blocks;
  for (uint32_t i = 0; i < 256; ++i) blocks.push_back(MakeBlock(i));
  for (int i = 0; i < 5; ++i) {  // Lets the connection's window grow beyond what the socket holds.
    cache->Put(blocks);
    ASSERT_TRUE(cache->Clear().ok());
  }
  server_.Freeze();
  const auto begin = std::chrono::steady_clock::now();
  const auto results = cache->Put(blocks, {.timeout = std::chrono::milliseconds(200)});
  EXPECT_TRUE(absl::IsDeadlineExceeded(results.back().status)) << results.back().status;
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(30));
  server_.Thaw();
  for (const PutResult& result : cache->Put(blocks)) ASSERT_TRUE(result.status.ok()) << result.status;
}

TEST_F(ClientE2eTest, SharesOneConnectionAmongThreads) {
  const auto cache = Open(Codec::kNqkv4);
  std::vector<PutBlock> blocks;
  for (uint32_t i = 0; i < 64; ++i) blocks.push_back(MakeBlock(i));
  std::atomic<int> failures = 0;
  std::vector<std::thread> threads;
  for (size_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      const std::span<const PutBlock> mine = std::span(blocks).subspan(t * 16, 16);
      for (const PutResult& result : cache->Put(mine)) failures += result.status.ok() ? 0 : 1;
      std::vector<uint16_t> target;
      for (const PutBlock& block : mine) failures += Get(cache.get(), block.key, &target).status.ok() ? 0 : 1;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(failures, 0);
}

TEST_F(ClientE2eTest, NamesEveryFieldThatDiffersFromTheOpenCache) {
  Open(Codec::kRaw);
  CacheSpec other = UniformSpec("another", kLayers, kHeads, kChannels, Dtype::kFloat16, 2 * kTokens);
  const auto cache = client_->OpenCache({.name = "test", .spec = other});
  EXPECT_TRUE(absl::IsFailedPrecondition(cache.status()));
  EXPECT_THAT(std::string(cache.status().message()), HasSubstr("model"));
  EXPECT_THAT(std::string(cache.status().message()), HasSubstr("block_tokens"));
}

TEST_F(ClientE2eTest, NamesWhatDiffersInTheSpecOfAModelOfManyLayers) {
  const CacheOptions present = {.name = "large", .spec = UniformSpec("model", 80, 8, 128, Dtype::kFloat16)};
  ASSERT_TRUE(client_->OpenCache(present).ok());
  CacheOptions asked = {.name = "large", .spec = UniformSpec("model", 80, 8, 128, Dtype::kBfloat16)};
  for (PlaneSpec& plane : asked.spec.layer_groups[0].planes) {
    if (plane.role == PlaneRole::kKey) plane.channels = 64;
  }
  const auto cache = client_->OpenCache(asked);
  EXPECT_EQ(cache.status().code(), absl::StatusCode::kFailedPrecondition) << cache.status();
  EXPECT_THAT(std::string(cache.status().message()),
              AllOf(HasSubstr("spec.layer_groups[0].planes[0-159].dtype (DTYPE_FLOAT16, asked for DTYPE_BFLOAT16)"),
                    HasSubstr("spec.layer_groups[0].planes[0, 2, 4 and 77 more].channels (128, asked for 64)")));
}

// Small messages and few open blocks, so that every block takes several messages and waits for others.
class LeaseE2eTest : public ClientE2eTest {
 protected:
  LeaseE2eTest()
      : ClientE2eTest(
            {"--host_bytes=16MiB", "--heartbeat_seconds=0.1", "--session_grace_seconds=1", "--lease_seconds=60"}) {}

  void PutOne(Cache* cache, uint32_t seed) {
    const PutBlock block = MakeBlock(seed);
    const std::vector<PutResult> results = cache->Put({&block, 1});
    ASSERT_TRUE(results[0].status.ok()) << results[0].status;
    memory_.clear();
  }
  static LookupQuery QueryOf(uint32_t count, const LeaseOptions& lease) {
    KeyChain chain;
    for (uint32_t seed = 0; seed < count; ++seed) chain.keys.push_back(absl::StrCat("key", seed));
    LookupQuery query;
    query.chains.push_back(std::move(chain));
    query.lease = lease;
    return query;
  }
};

TEST_F(LeaseE2eTest, KeepsWhatWasLookedUpUntilItIsReleased) {
  const auto cache = Open(Codec::kRaw);
  EXPECT_EQ(cache->info().lease_duration_default, std::chrono::seconds(60));
  EXPECT_EQ(cache->info().lease_duration_max, std::chrono::seconds(300));
  for (uint32_t seed = 0; seed < 3; ++seed) PutOne(cache.get(), seed);
  auto session = client_->OpenSession({.owner = "test"});
  ASSERT_TRUE(session.ok()) << session.status();
  const auto first = cache->Lookup(QueryOf(3, {.session_id = (*session)->id(), .request_id = "request"}));
  ASSERT_TRUE(first.ok()) << first.status();
  const auto second = cache->Lookup(QueryOf(5, {.session_id = (*session)->id(), .request_id = "request"}));
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_EQ(second->matched_tokens, 3 * kTokens);
  EXPECT_TRUE(second->lease_status.ok());
  for (uint32_t seed = 100; seed < 700; ++seed) PutOne(cache.get(), seed);  // More than the store holds.
  std::vector<uint16_t> target;
  GetOptions leased;
  leased.lease_token = first->lease_token;
  for (const char* key : {"key0", "key1", "key2"}) {
    const GetResult result = Get(cache.get(), key, &target, leased);
    EXPECT_TRUE(result.status.ok()) << result.status;
  }
  EXPECT_EQ(target, Noise(kElements, 2));
  EXPECT_EQ(cache->Release(std::vector{first->lease_token, std::string("none")}).value(), 0u);
  EXPECT_EQ(cache->Release(std::vector{second->lease_token}).value(), 1u);
  EXPECT_EQ(Get(cache.get(), "key0", &target, leased).status.code(), absl::StatusCode::kAborted);
  EXPECT_TRUE(cache->Touch(0, std::vector<std::string>{"key699", "key5000"}).ok());
}

TEST_F(LeaseE2eTest, ASessionLivesLongerThanItsGraceAndItsLeasesEndWithIt) {
  const auto cache = Open(Codec::kRaw);
  PutOne(cache.get(), 0);
  auto session = client_->OpenSession();
  ASSERT_TRUE(session.ok()) << session.status();
  const LookupQuery query = QueryOf(1, {.session_id = (*session)->id()});
  GetOptions leased;
  leased.lease_token = cache->Lookup(query).value().lease_token;
  std::vector<uint16_t> target;
  const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(2'500);
  while (std::chrono::steady_clock::now() < until) {
    ASSERT_TRUE(Get(cache.get(), "key0", &target, leased).status.ok());
  }
  EXPECT_TRUE((*session)->status().ok()) << (*session)->status();
  session->reset();
  EXPECT_EQ(Get(cache.get(), "key0", &target, leased).status.code(), absl::StatusCode::kAborted);
  const auto after = cache->Lookup(query);
  ASSERT_TRUE(after.ok());
  EXPECT_EQ(after->matched_tokens, kTokens);
  EXPECT_EQ(after->lease_status.code(), absl::StatusCode::kAborted);
}

TEST_F(LeaseE2eTest, SaysWhenTheServerThatKnewTheSessionIsGone) {
  auto session = client_->OpenSession();
  ASSERT_TRUE(session.ok()) << session.status();
  server_.Kill();
  server_.Start();
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while ((*session)->status().ok() && std::chrono::steady_clock::now() < until) std::this_thread::yield();
  EXPECT_FALSE((*session)->status().ok());
  const auto next = client_->OpenSession();
  EXPECT_TRUE(next.ok()) << next.status();
}

TEST_F(LeaseE2eTest, GivesUpOnASessionByItsTimeoutWhenNoServerIsThere) {
  server_.Kill();
  const auto session = client_->OpenSession({}, {.timeout = std::chrono::milliseconds(300)});
  EXPECT_FALSE(session.ok());
}

class SmallMessageE2eTest : public ClientE2eTest {
 protected:
  SmallMessageE2eTest()
      : ClientE2eTest({"--host_bytes=64MiB", "--put_open_blocks_max=2", "--get_keys_max=3", "--delete_keys_max=3"}) {}
};

TEST_F(SmallMessageE2eTest, KeepsWithinTheServersLimits) {
  const auto cache = Open(Codec::kRaw);
  std::vector<PutBlock> blocks;
  for (uint32_t i = 0; i < 20; ++i) blocks.push_back(MakeBlock(i));
  for (const PutResult& result : cache->Put(blocks)) ASSERT_TRUE(result.status.ok()) << result.status;
  std::vector<std::vector<uint16_t>> buffers(20, std::vector<uint16_t>(kElements));
  std::vector<GetTarget> targets;
  std::vector<std::string> keys;
  for (size_t i = 0; i < 20; ++i) {
    keys.push_back(blocks[i].key);
    targets.push_back({.key = keys[i], .data = buffers[i].data(), .bytes = kElements * sizeof(uint16_t)});
  }
  for (const GetResult& result : cache->Get(targets, {})) ASSERT_TRUE(result.status.ok()) << result.status;
  for (size_t i = 0; i < 20; ++i) EXPECT_EQ(buffers[i], *memory_[i]);
  EXPECT_EQ(cache->Delete(0, keys)->blocks, 20u);
}

}  // namespace
}  // namespace nqkv::client
