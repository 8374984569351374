// The library against a server in this process.
#include <numeric>
#include <thread>

#include "absl/strings/str_cat.h"
#include "client/nqkv.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/key_chain.h"
#include "proto/rpc_status.h"
#include "tests/support/fake_kv_cache.h"
#include "tests/support/temp_dir.h"

namespace nqkv::client {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

absl::Status RetrySoon(absl::Status status) { return WithRetry(std::move(status), absl::Milliseconds(1)); }

class ClientTest : public ::testing::Test {
 protected:
  static constexpr uint64_t kBlockBytes = 2 * 2 * 16 * 2 * 64 * 2;  // Layers, roles, tokens, heads, channels, float16.

  ClientTest() : server_(&fake_, dir_.File("fake.sock")) {
    options_.retry.backoff_first = std::chrono::milliseconds(1);
    options_.retry.backoff_max = std::chrono::milliseconds(2);
    auto client = Client::Connect(server_.address(), options_);
    EXPECT_TRUE(client.ok()) << client.status();
    client_ = *std::move(client);
  }

  std::unique_ptr<Cache> Open() {
    auto cache = client_->OpenCache({.name = "test", .spec = UniformSpec("m", 2, 2, 64, Dtype::kFloat16, 16)});
    EXPECT_TRUE(cache.ok()) << cache.status();
    return *std::move(cache);
  }
  // A block of random-looking bytes; its memory lives as long as the test.
  PutBlock MakeBlock(const std::string& key, size_t bytes = kBlockBytes) {
    memory_.push_back(std::make_unique<std::string>(bytes, '\0'));
    uint32_t state = static_cast<uint32_t>(memory_.size()) * 2654435761u;
    for (char& c : *memory_.back()) c = static_cast<char>((state = state * 1664525u + 1013904223u) >> 24);
    PutBlock block;
    block.key = key;
    block.data = memory_.back()->data();
    block.bytes = bytes;
    return block;
  }
  static std::string BytesOf(const PutBlock& block) {
    return std::string(static_cast<const char*>(block.data), block.bytes);
  }
  std::vector<GetResult> GetAll(Cache* cache, const std::vector<std::string>& keys, const GetOptions& get = {}) {
    buffers_.assign(keys.size(), std::string(kBlockBytes, '\0'));
    std::vector<GetTarget> targets;
    for (size_t i = 0; i < keys.size(); ++i) {
      targets.push_back({.key = keys[i], .data = buffers_[i].data(), .bytes = buffers_[i].size()});
    }
    return cache->Get(targets, get);
  }

  testing::TempDir dir_;
  testing::FakeKvCache fake_;
  testing::FakeServer server_;
  ClientOptions options_;
  std::unique_ptr<Client> client_;
  std::vector<std::unique_ptr<std::string>> memory_;
  std::vector<std::string> buffers_;
};

TEST_F(ClientTest, GetsBackWhatItPut) {
  const auto cache = Open();
  std::vector<PutBlock> blocks;
  for (int i = 0; i < 20; ++i) blocks.push_back(MakeBlock(absl::StrCat("key", i)));
  for (const PutResult& result : cache->Put(blocks)) {
    ASSERT_TRUE(result.status.ok()) << result.status;
    EXPECT_EQ(result.outcome, PutOutcome::kStored);
    EXPECT_EQ(result.raw_bytes, kBlockBytes);
  }
  const auto results = GetAll(cache.get(), {"key3", "key19", "key0"}, {.include_planes = true});
  ASSERT_TRUE(results[0].status.ok()) << results[0].status;
  EXPECT_EQ(buffers_[0], BytesOf(blocks[3]));
  EXPECT_EQ(buffers_[1], BytesOf(blocks[19]));
  EXPECT_EQ(buffers_[2], BytesOf(blocks[0]));
  EXPECT_EQ(results[0].planes.size(), 4u);
}

TEST_F(ClientTest, PutsBlocksLargerThanAMessage) {
  testing::FakeKvCache::Behaviour behaviour;
  behaviour.limits.set_message_bytes_best(1000);
  behaviour.limits.set_put_open_blocks_max(64);
  fake_.set_behaviour(behaviour);
  const auto cache = Open();
  std::vector<PutBlock> blocks;
  for (int i = 0; i < 5; ++i) blocks.push_back(MakeBlock(absl::StrCat("key", i), 4321));
  for (const PutResult& result : cache->Put(blocks)) ASSERT_TRUE(result.status.ok()) << result.status;
  EXPECT_EQ(fake_.put_messages().size(), 22u);
  for (const PutBlock& block : blocks) EXPECT_EQ(fake_.block(block.key), BytesOf(block));
}

TEST_F(ClientTest, KeepsWithinTheServersLimitOfOpenBlocks) {
  testing::FakeKvCache::Behaviour behaviour;
  behaviour.limits.set_message_bytes_best(1 << 20);
  behaviour.limits.set_put_open_blocks_max(3);
  fake_.set_behaviour(behaviour);
  const auto cache = Open();
  std::vector<PutBlock> blocks;
  for (int i = 0; i < 50; ++i) blocks.push_back(MakeBlock(absl::StrCat("key", i), 100));
  for (const PutResult& result : cache->Put(blocks)) ASSERT_TRUE(result.status.ok()) << result.status;
  EXPECT_LE(fake_.open_blocks_seen(), 3u);
}

TEST_F(ClientTest, PutsPlanesFromWhereTheyLie) {
  const auto cache = Open();
  const PutBlock whole = MakeBlock("whole");
  PutBlock block;
  block.key = "planes";
  for (size_t i = 0; i < 4; ++i) {
    block.planes.push_back({.data = static_cast<const char*>(whole.data) + i * kBlockBytes / 4});
  }
  ASSERT_TRUE(cache->Put({&block, 1})[0].status.ok());
  EXPECT_EQ(fake_.block("planes"), BytesOf(whole));
}

TEST_F(ClientTest, RefusesABlockThatCannotBeSentAndSendsTheOthers) {
  const auto cache = Open();
  std::vector<PutBlock> blocks = {MakeBlock("good"), {}, {}, {}};
  blocks[1].key = "null";
  blocks[1].bytes = 5;
  blocks[2].key = "planes";
  blocks[2].planes.resize(3);
  blocks[3].key = "group";
  blocks[3].layer_group = 9;
  blocks[3].planes.resize(4);
  const std::vector<PutResult> results = cache->Put(blocks);
  EXPECT_TRUE(results[0].status.ok());
  EXPECT_EQ(results[1].status.message(), "block: data is null");
  EXPECT_EQ(results[2].status.message(), "block: 3 planes given, the range has 4");
  EXPECT_EQ(results[3].status.message(), "layer_group: the spec has no group 9");
  EXPECT_TRUE(fake_.block("good").has_value());
}

TEST_F(ClientTest, GivesEachBlockItsOwnStatus) {
  const auto cache = Open();
  fake_.FailNextPutOf("bad", {absl::InvalidArgumentError("key: not that one")});
  const std::vector<PutBlock> blocks = {MakeBlock("good"), MakeBlock("bad"), MakeBlock("fine")};
  const std::vector<PutResult> results = cache->Put(blocks);
  EXPECT_TRUE(results[0].status.ok());
  EXPECT_EQ(results[1].status, absl::InvalidArgumentError("key: not that one"));
  EXPECT_TRUE(results[2].status.ok());
  EXPECT_EQ(fake_.calls("Put"), 1u);
}

TEST_F(ClientTest, PutsAgainOnlyTheBlocksThatAreWorthIt) {
  const auto cache = Open();
  fake_.FailNextPutOf("full", {RetrySoon(absl::ResourceExhaustedError("store full"))});
  const std::vector<PutBlock> blocks = {MakeBlock("good"), MakeBlock("full")};
  for (const PutResult& result : cache->Put(blocks)) EXPECT_TRUE(result.status.ok()) << result.status;
  EXPECT_EQ(fake_.calls("Put"), 2u);
  EXPECT_EQ(fake_.put_messages().back().first, 1u);
}

TEST_F(ClientTest, GivesUpOnABlockThatStaysRefused) {
  const auto cache = Open();
  fake_.FailNextPutOf("full", std::vector<absl::Status>(20, RetrySoon(absl::ResourceExhaustedError("store full"))));
  const PutBlock block = MakeBlock("full");
  EXPECT_TRUE(absl::IsResourceExhausted(cache->Put({&block, 1})[0].status));
  EXPECT_EQ(fake_.calls("Put"), static_cast<size_t>(options_.retry.attempts_max));
}

TEST_F(ClientTest, PutsTheRestAfterAStreamThatBroke) {
  testing::FakeKvCache::Behaviour behaviour;
  behaviour.limits.set_message_bytes_best(kBlockBytes);
  behaviour.limits.set_put_open_blocks_max(1);
  fake_.set_behaviour(behaviour);
  const auto cache = Open();
  fake_.BreakNextPutAfter(2, absl::UnavailableError("draining"));
  std::vector<PutBlock> blocks;
  for (int i = 0; i < 4; ++i) blocks.push_back(MakeBlock(absl::StrCat("key", i)));
  for (const PutResult& result : cache->Put(blocks)) {
    EXPECT_TRUE(result.status.ok()) << result.status;
    EXPECT_EQ(result.outcome, PutOutcome::kStored);
  }
  EXPECT_EQ(fake_.calls("Put"), 2u);
  EXPECT_EQ(fake_.put_messages().size(), 5u);  // Two blocks, the one that broke, and two again.
}

TEST_F(ClientTest, GivesBlocksWithoutAResultTheCallsStatus) {
  const auto cache = Open();
  fake_.BreakNextPutAfter(0, absl::InvalidArgumentError("chunks: too many open blocks"));
  const PutBlock block = MakeBlock("key");
  EXPECT_EQ(cache->Put({&block, 1})[0].status.message(), "chunks: too many open blocks");
  EXPECT_EQ(fake_.calls("Put"), 1u);
}

TEST_F(ClientTest, RefusesAPutReplyThatMakesNoSense) {
  const auto cache = Open();
  const PutBlock block = MakeBlock("key");
  testing::FakeKvCache::Behaviour behaviour;
  behaviour.put_script = std::make_shared<std::vector<v1::PutResponse>>(1);
  behaviour.put_script->front().add_results()->set_block(3);
  fake_.set_behaviour(behaviour);
  EXPECT_THAT(std::string(cache->Put({&block, 1})[0].status.message()), HasSubstr("block 3, not open"));
  behaviour.put_script = std::make_shared<std::vector<v1::PutResponse>>();
  fake_.set_behaviour(behaviour);
  EXPECT_THAT(std::string(cache->Put({&block, 1})[0].status.message()), HasSubstr("without a result for 1"));
}

TEST_F(ClientTest, GetsInterleavedBlocksInManyMessages) {
  testing::FakeKvCache::Behaviour behaviour;
  behaviour.reply_bytes = 1000;
  behaviour.interleave = true;
  fake_.set_behaviour(behaviour);
  const auto cache = Open();
  const std::vector<PutBlock> blocks = {MakeBlock("a"), MakeBlock("b"), MakeBlock("c")};
  cache->Put(blocks);
  for (const GetResult& result : GetAll(cache.get(), {"a", "b", "c"})) ASSERT_TRUE(result.status.ok());
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(buffers_[i], BytesOf(blocks[i]));
}

TEST_F(ClientTest, TakesAMissAsAResult) {
  const auto cache = Open();
  const PutBlock block = MakeBlock("a");
  cache->Put({&block, 1});
  const auto results = GetAll(cache.get(), {"missing", "a"});
  EXPECT_TRUE(absl::IsNotFound(results[0].status));
  EXPECT_TRUE(results[1].status.ok());
  EXPECT_EQ(fake_.calls("Get"), 1u);
  EXPECT_EQ(fake_.calls("OpenCache"), 1u);
}

TEST_F(ClientTest, SplitsAGetThatIsTooLargeForTheServer) {
  testing::FakeKvCache::Behaviour behaviour;
  behaviour.limits.set_message_bytes_best(1 << 20);
  behaviour.limits.set_put_open_blocks_max(64);
  behaviour.limits.set_get_keys_max(2);
  fake_.set_behaviour(behaviour);
  const auto cache = Open();
  const std::vector<PutBlock> blocks = {MakeBlock("a"), MakeBlock("b"), MakeBlock("c")};
  cache->Put(blocks);
  GetAll(cache.get(), {"a", "b", "c"});
  EXPECT_EQ(fake_.calls("Get"), 2u);
  EXPECT_EQ(buffers_[2], BytesOf(blocks[2]));
}

TEST_F(ClientTest, SaysHowLargeATargetMustBe) {
  const auto cache = Open();
  const PutBlock block = MakeBlock("a");
  cache->Put({&block, 1});
  std::string small(10, '\0');
  const GetTarget target{.key = "a", .data = small.data(), .bytes = small.size()};
  const auto results = cache->Get({&target, 1}, {});
  EXPECT_TRUE(absl::IsOutOfRange(results[0].status));
  EXPECT_EQ(results[0].payload_bytes, kBlockBytes);
  EXPECT_EQ(cache->BlockBytes({}).value(), kBlockBytes);
  EXPECT_EQ(cache->BlockBytes({.layers = Range{0, 1}, .heads = Range{1, 2}, .dtype = Dtype::kFloat32}).value(),
            kBlockBytes / 2);
  EXPECT_EQ(cache->BlockBytes({.heads = Range{1, 3}}).status().message(), "heads: [1, 3) does not lie in the 2 heads");
}

TEST_F(ClientTest, NeverTakesATruncatedGetForABlock) {
  const auto cache = Open();
  testing::FakeKvCache::Behaviour behaviour;
  behaviour.get_script = std::make_shared<std::vector<v1::GetResponse>>(1);
  v1::GetChunk* chunk = behaviour.get_script->front().add_chunks();
  chunk->mutable_result()->set_payload_bytes(kBlockBytes);
  chunk->set_bytes(5);
  behaviour.get_script->front().set_payload("abcde");
  fake_.set_behaviour(behaviour);
  EXPECT_THAT(std::string(GetAll(cache.get(), {"a"})[0].status.message()), HasSubstr("before 1 blocks were whole"));
}

TEST_F(ClientTest, EndsAGetOnTheFirstReplyThatMakesNoSense) {
  const auto cache = Open();
  const std::vector<PutBlock> blocks = {MakeBlock("a"), MakeBlock("b")};
  cache->Put(blocks);
  testing::FakeKvCache::Behaviour behaviour;
  behaviour.on_get = [](v1::GetResponse* response) {
    if (response->chunks(0).index() == 1) response->mutable_chunks(0)->set_bytes(1);
  };
  fake_.set_behaviour(behaviour);
  const auto results = GetAll(cache.get(), {"a", "b"});
  EXPECT_TRUE(results[0].status.ok());
  EXPECT_THAT(std::string(results[1].status.message()), HasSubstr("do not agree"));
}

TEST_F(ClientTest, TriesAgainWhenTheServerIsUnavailable) {
  const auto cache = Open();
  const PutBlock block = MakeBlock("a");
  cache->Put({&block, 1});
  fake_.FailNext("Get", {absl::UnavailableError("draining"), RetrySoon(absl::ResourceExhaustedError("busy"))});
  EXPECT_TRUE(GetAll(cache.get(), {"a"})[0].status.ok());
  EXPECT_EQ(fake_.calls("Get"), 3u);
  fake_.FailNext("Lookup", {absl::UnavailableError("draining")});
  EXPECT_TRUE(cache->Lookup(LookupQuery{.chains = {{.keys = {"a"}}}}).ok());
  fake_.FailNext("OpenCache", {absl::UnavailableError("draining")});
  EXPECT_TRUE(client_->OpenCache({.name = "test", .spec = UniformSpec("m", 1, 1, 64)}).ok());
  EXPECT_EQ(fake_.calls("OpenCache"), 3u);
}

TEST_F(ClientTest, NeverTriesAgainWhatWasWrong) {
  const auto cache = Open();
  fake_.FailNext("Get", {absl::InvalidArgumentError("chain.keys[0]: empty")});
  EXPECT_EQ(GetAll(cache.get(), {""})[0].status.message(), "chain.keys[0]: empty");
  EXPECT_EQ(fake_.calls("Get"), 1u);
  fake_.FailNext("Lookup", {absl::ResourceExhaustedError("too many keys")});
  EXPECT_FALSE(cache->Lookup(LookupQuery{.chains = {{.keys = {"a"}}}}).ok());
  EXPECT_EQ(fake_.calls("Lookup"), 1u);
}

TEST_F(ClientTest, OpensACacheAgainThatTheServerForgot) {
  const auto cache = Open();
  fake_.Restart();
  const PutBlock block = MakeBlock("a");
  EXPECT_TRUE(cache->Put({&block, 1})[0].status.ok());
  EXPECT_EQ(fake_.calls("OpenCache"), 2u);
  fake_.Restart();
  EXPECT_TRUE(cache->Clear().ok());
  fake_.Restart();
  EXPECT_TRUE(absl::IsNotFound(GetAll(cache.get(), {"a"})[0].status));
  fake_.Restart();
  EXPECT_EQ(cache->Lookup(LookupQuery{.chains = {{.keys = {"a"}}}})->matched_tokens, 0u);
  fake_.Restart();
  EXPECT_EQ(cache->Delete(0, std::vector<std::string>{"a"})->blocks, 0u);
  EXPECT_EQ(fake_.calls("OpenCache"), 6u);
}

TEST_F(ClientTest, OpensACacheAgainOnlyOnceACall) {
  const auto cache = Open();
  fake_.FailNext("Lookup", {absl::NotFoundError("unknown cache"), absl::NotFoundError("unknown cache")});
  EXPECT_TRUE(absl::IsNotFound(cache->Lookup(LookupQuery{.chains = {{.keys = {"a"}}}}).status()));
  EXPECT_EQ(fake_.calls("OpenCache"), 2u);
}

TEST_F(ClientTest, LooksUpPrefixesAndSets) {
  const auto cache = Open();
  const std::vector<PutBlock> blocks = {MakeBlock("a"), MakeBlock("b"), MakeBlock("d")};
  cache->Put(blocks);
  const std::vector<LookupQuery> queries = {{.chains = {{.keys = {"a", "b", "c", "d"}}}},
                                            {.chains = {{.keys = {"a", "b", "c", "d"}}}, .mode = LookupMode::kSet}};
  const auto results = cache->Lookup(queries);
  ASSERT_TRUE(results.ok()) << results.status();
  EXPECT_EQ((*results)[0].matched_tokens, 32u);
  EXPECT_EQ((*results)[0].groups[0].matched_blocks, 2u);
  EXPECT_EQ((*results)[1].groups[0].matched_blocks, 3u);
  EXPECT_THAT((*results)[1].groups[0].present, ElementsAre(true, true, false, true));
}

TEST_F(ClientTest, DeletesInBatches) {
  testing::FakeKvCache::Behaviour behaviour;
  behaviour.limits.set_message_bytes_best(1 << 20);
  behaviour.limits.set_put_open_blocks_max(64);
  behaviour.limits.set_delete_keys_max(2);
  fake_.set_behaviour(behaviour);
  const auto cache = Open();
  const std::vector<PutBlock> blocks = {MakeBlock("a"), MakeBlock("b"), MakeBlock("c")};
  cache->Put(blocks);
  const auto removed = cache->Delete(0, std::vector<std::string>{"a", "missing", "c"});
  ASSERT_TRUE(removed.ok());
  EXPECT_EQ(removed->blocks, 2u);
  EXPECT_EQ(removed->bytes, 2 * kBlockBytes);
  EXPECT_EQ(fake_.calls("Delete"), 2u);
}

TEST_F(ClientTest, ServesSeveralThreadsAtOnce) {
  const auto cache = Open();
  std::vector<PutBlock> blocks;
  for (int i = 0; i < 40; ++i) blocks.push_back(MakeBlock(absl::StrCat("key", i)));
  std::vector<std::thread> threads;
  std::atomic<int> failures = 0;
  for (size_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (size_t i = t; i < blocks.size(); i += 4) {
        if (!cache->Put({&blocks[i], 1})[0].status.ok()) ++failures;
        std::string bytes(kBlockBytes, '\0');
        const GetTarget target{.key = blocks[i].key, .data = bytes.data(), .bytes = bytes.size()};
        if (!cache->Get({&target, 1}, {})[0].status.ok() || bytes != BytesOf(blocks[i])) ++failures;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(failures, 0);
}

TEST_F(ClientTest, LetsACacheOutliveItsClient) {
  const auto cache = Open();
  client_.reset();
  EXPECT_TRUE(cache->Clear().ok());
}

TEST_F(ClientTest, DoesNothingForNoBlocks) {
  const auto cache = Open();
  EXPECT_TRUE(cache->Put({}).empty());
  EXPECT_TRUE(cache->Get({}, {}).empty());
  EXPECT_EQ(fake_.calls("Put") + fake_.calls("Get"), 0u);
}

TEST(Connect, RefusesWhatIsNoServer) {
  for (const char* server : {"", "host", "host:", ":1", "host:0", "host:65536", "http://host:1",
                             "unix:", "unix:relative", "unix:/", "a b:1", "::1:5"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(Client::Connect(server).status())) << server;
  }
  for (const char* server : {"host:1", "127.0.0.1:6758", "[::1]:6758", "unix:/run/nqkv/nqkvd.sock"}) {
    EXPECT_TRUE(Client::Connect(server).ok()) << server;
  }
  EXPECT_FALSE(Client::Connect("host:1", {.timeout = std::chrono::milliseconds(0)}).ok());
}

TEST(Connect, EndsByTheTimeoutWhenNobodyAnswers) {
  const testing::TempDir dir;
  ClientOptions options{.timeout = std::chrono::milliseconds(300)};
  options.retry.attempts_max = 1000;
  const auto client = Client::Connect("unix:" + dir.File("none.sock"), options);
  ASSERT_TRUE(client.ok());
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_FALSE((*client)->OpenCache({.name = "test", .spec = UniformSpec("m", 1, 1, 64)}).ok());
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(10));
}

TEST(ChainKeys, AreThoseOfTheKeyScheme) {
  const std::vector<uint32_t> tokens = {1, 2, 3, 4, 5, 6, 7, 8, 9};
  const KeyInputs inputs{
      .adapter_digest = "adapter", .salt = "salt", .items = {{.id = "image", .token_begin = 2, .token_end = 5}}};
  const nqkv::KeyInputs same{
      .adapter_digest = "adapter", .salt = "salt", .items = {{.id = "image", .token_begin = 2, .token_end = 5}}};
  EXPECT_EQ(ChainKeys(tokens, 4, inputs), nqkv::ChainKeys(tokens, 4, same));
  EXPECT_EQ(ChainKeys(tokens, 4, inputs).size(), 2u);
}

}  // namespace
}  // namespace nqkv::client
