#include "service/put_call.h"

#include <cstring>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/float_format.h"
#include "proto/rpc_status.h"
#include "tests/service/call_fixture.h"
#include "tests/service/model_blocks.h"

namespace nqkv {
namespace {

using ::testing::HasSubstr;

constexpr PlaneCodec kNqkv4 = {.id = CodecId::kNqkv4, .scale_group = 64};

class PutCallTest : public ::testing::Test {
 protected:
  void Open(FixtureOptions options = {}, v1::Codec codec = v1::CODEC_NQKV4) {
    parts_ = std::make_unique<ServiceParts>(options);
    cache_ = parts_->Open("cache", shape_, codec);
  }

  v1::PutRequest MessageOf(int key, uint32_t number = 0) {
    return PutMessageOf(cache_.cache_id(), cache_.shard_id(), {{KeyOf(key), RawBlock(group_, key), number}});
  }

  // What a client that sends exactly this gets.
  absl::Status Send(const std::vector<v1::PutRequest>& messages, std::vector<v1::BlockPutResult>* results = nullptr) {
    FakePut put(parts_.get());
    for (const v1::PutRequest& message : messages) put.Send(message);
    put.HalfClose();
    absl::Status status = put.Wait();
    if (results != nullptr) *results = put.results();
    return status;
  }

  // The same; whatever it is, nothing stays behind.
  absl::Status StatusOf(const std::vector<v1::PutRequest>& messages,
                        std::vector<v1::BlockPutResult>* results = nullptr) {
    absl::Status status = Send(messages, results);
    EXPECT_TRUE(parts_->CheckIdle().ok()) << parts_->CheckIdle();
    return status;
  }

  v1::BlockPutResult ResultOf(const v1::PutRequest& message) {
    std::vector<v1::BlockPutResult> results;
    const absl::Status status = StatusOf({message}, &results);
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_EQ(results.size(), 1u);
    return results.empty() ? v1::BlockPutResult() : results[0];
  }

  // The block's first `bytes` bytes and its begin, which promises the rest.
  v1::PutRequest StartOf(int key, uint32_t number, size_t bytes) {
    v1::PutRequest message = MessageOf(key, number);
    message.mutable_payload()->resize(bytes);
    message.mutable_chunks(0)->set_bytes(bytes);
    return message;
  }

  void ExpectNothingStored() { EXPECT_EQ(parts_->store().Stats().used_bytes, 0u); }

  // The service goes on: a good block is stored and comes back.
  void ExpectStillServing() {
    const int key = 1'000;
    const auto results = PutAll(parts_.get(), cache_, {{KeyOf(key), RawBlock(group_, key)}});
    EXPECT_EQ(results[0].outcome(), v1::PUT_OUTCOME_STORED) << results[0].DebugString();
    const auto blocks = GetAll(parts_.get(), GetRequestOf(cache_, {KeyOf(key)}));
    EXPECT_EQ(blocks[0].payload, RoundTrip(group_, WholeRange(group_), key, kNqkv4));
  }

  ModelShape shape_;
  GroupLayout group_ = ModelLayout(shape_);
  std::unique_ptr<ServiceParts> parts_;
  v1::OpenCacheResponse cache_;
};

TEST_F(PutCallTest, StoresBlocksWhateverPiecesTheirMessagesComeIn) {
  for (const size_t piece_bytes : {0u, 1u, 7u, 4'096u, 100'000u}) {
    Open();
    FakePut put(parts_.get(), piece_bytes);
    for (int key = 0; key < 3; ++key) put.Send(MessageOf(key, static_cast<uint32_t>(key)));
    put.HalfClose();
    ASSERT_TRUE(put.Wait().ok()) << put.Wait();
    ASSERT_EQ(put.results().size(), 3u);
    for (int key = 0; key < 3; ++key) {
      const v1::BlockPutResult result = put.results()[static_cast<size_t>(key)];
      EXPECT_EQ(result.block(), static_cast<uint32_t>(key));
      EXPECT_EQ(result.outcome(), v1::PUT_OUTCOME_STORED);
      EXPECT_EQ(result.raw_bytes(), RawBytes(group_, WholeRange(group_)));
      EXPECT_LT(result.stored_bytes(), result.raw_bytes() / 3);
      const auto blocks = GetAll(parts_.get(), GetRequestOf(cache_, {KeyOf(key)}));
      EXPECT_EQ(blocks[0].payload, RoundTrip(group_, WholeRange(group_), static_cast<uint32_t>(key), kNqkv4));
    }
    EXPECT_TRUE(parts_->CheckIdle().ok());
  }
}

TEST_F(PutCallTest, StoresBlocksWhoseChunksAlternateByteByByte) {
  Open();
  const std::string payloads[] = {RawBlock(group_, 1), RawBlock(group_, 2)};
  FakePut put(parts_.get());
  const size_t step = 10'007;  // Never a plane's border.
  for (size_t begin = 0; begin < payloads[0].size(); begin += step) {
    v1::PutRequest message;
    if (begin == 0) message.set_cache_id(cache_.cache_id());
    for (uint32_t block = 0; block < 2; ++block) {
      v1::PutChunk* chunk = message.add_chunks();
      chunk->set_block(block);
      if (begin == 0) {
        chunk->mutable_begin()->set_key(KeyOf(static_cast<int>(block) + 1));
        chunk->mutable_begin()->set_payload_bytes(payloads[block].size());
      }
      const std::string bytes = payloads[block].substr(begin, step);
      chunk->set_bytes(bytes.size());
      message.mutable_payload()->append(bytes);
    }
    put.Send(message);
  }
  put.HalfClose();
  ASSERT_TRUE(put.Wait().ok()) << put.Wait();
  ASSERT_EQ(put.results().size(), 2u);
  const auto blocks = GetAll(parts_.get(), GetRequestOf(cache_, {KeyOf(1), KeyOf(2)}));
  for (uint32_t i = 0; i < 2; ++i) EXPECT_EQ(blocks[i].payload, RoundTrip(group_, WholeRange(group_), i + 1, kNqkv4));
}

TEST_F(PutCallTest, TellsThatABlockIsPresentAndSkipsItsPayload) {
  Open();
  EXPECT_EQ(ResultOf(MessageOf(1)).outcome(), v1::PUT_OUTCOME_STORED);
  v1::PutRequest twice = MessageOf(1);
  EXPECT_EQ(ResultOf(twice).outcome(), v1::PUT_OUTCOME_ALREADY_PRESENT);
  EXPECT_EQ(parts_->store().Stats().parts, 1u);
}

TEST_F(PutCallTest, StoresOneOfTwoBlocksWithTheSameKeyThatAreOpenAtOnce) {
  Open();
  v1::PutRequest first = MessageOf(1, 0);
  v1::PutRequest second = MessageOf(1, 1);
  v1::PutRequest begin_first = first;
  begin_first.clear_payload();
  begin_first.mutable_chunks(0)->set_bytes(0);
  first.mutable_chunks(0)->clear_begin();
  std::vector<v1::BlockPutResult> results;
  EXPECT_TRUE(StatusOf({begin_first, second, first}, &results).ok());
  ASSERT_EQ(results.size(), 2u);
  EXPECT_EQ(results[0].outcome(), v1::PUT_OUTCOME_STORED);
  EXPECT_EQ(results[1].outcome(), v1::PUT_OUTCOME_ALREADY_PRESENT);
  EXPECT_EQ(parts_->store().Stats().parts, 1u);
}

TEST_F(PutCallTest, StoresAKeyThatComesTwiceInOneStreamOnce) {
  Open();
  std::vector<v1::BlockPutResult> results;
  EXPECT_TRUE(StatusOf({MessageOf(1, 0), MessageOf(1, 1)}, &results).ok());
  ASSERT_EQ(results.size(), 2u);
  EXPECT_EQ(results[0].outcome(), v1::PUT_OUTCOME_STORED);
  EXPECT_EQ(results[1].outcome(), v1::PUT_OUTCOME_ALREADY_PRESENT);
  EXPECT_EQ(results[1].status().code(), 0);
  EXPECT_EQ(parts_->store().Stats().parts, 1u);
}

TEST_F(PutCallTest, BlocksThatAreOnlyPromisedEvictNothing) {
  FixtureOptions options;
  options.host_bytes = uint64_t{1} << 20;
  options.limits.put_open_blocks_max = 4'096;
  Open(options);
  uint64_t blocks = 0;
  while (parts_->store().Stats().evicted_blocks_total == 0) {
    PutAll(parts_.get(), cache_, {{KeyOf(static_cast<int>(blocks++)), RawBlock(group_, 1)}});
  }
  const StoreStats full = parts_->store().Stats();
  std::vector<v1::PutRequest> promises;
  for (uint32_t number = 0; number < 1'000; ++number) {
    promises.push_back(number < 2 ? StartOf(0, 0, 100 * number) : promises[number % 2]);
    promises.back().mutable_chunks(0)->set_block(number);
    promises.back().mutable_chunks(0)->mutable_begin()->set_key(absl::StrCat("promise ", number));
  }
  std::vector<v1::BlockPutResult> results;
  EXPECT_TRUE(StatusOf(promises, &results).ok());
  EXPECT_EQ(results.size(), 1'000u);
  EXPECT_EQ(parts_->store().Stats().evicted_blocks_total, full.evicted_blocks_total);
  EXPECT_EQ(parts_->store().Stats().blocks, full.blocks);
}

TEST_F(PutCallTest, ReservesAShareOfTheStoreAtMostAndSaysWhenToTryAgain) {
  FixtureOptions options;
  options.limits.put_open_blocks_max = 100;
  Open(options);
  options.reserved_bytes_max = 10 * cache_.sizes(0).encoded_bytes_typical();
  Open(options);
  const uint64_t block_bytes = RawBytes(group_, WholeRange(group_));
  const uint64_t first_bytes = 20'000;  // A plane and a bit.
  FakePut put(parts_.get());
  for (uint32_t number = 0; number < 20; ++number) put.Send(StartOf(static_cast<int>(number), number, first_bytes));
  // A connection stops at what it leaves to others: 5 of 10.
  const std::vector<v1::BlockPutResult> refused = put.WaitForResults(15);
  ASSERT_EQ(refused.size(), 15u);
  for (const v1::BlockPutResult& result : refused) {
    EXPECT_EQ(result.status().code(), static_cast<int>(absl::StatusCode::kResourceExhausted));
    EXPECT_THAT(result.status().message(), HasSubstr("too many bytes are reserved for blocks that are not whole"));
    EXPECT_THAT(result.status().message(), HasSubstr("--reserved_bytes_max"));
    EXPECT_GT(result.status().retry_seconds(), 0);
  }
  {
    FakePut other(parts_.get(), 0, "other");
    other.Send(MessageOf(100));
    other.HalfClose();
    EXPECT_TRUE(other.Wait().ok()) << other.Wait();
    EXPECT_EQ(other.results()[0].outcome(), v1::PUT_OUTCOME_STORED) << other.results()[0].DebugString();
  }
  for (uint32_t number = 0; number < 5; ++number) {
    v1::PutRequest rest = MessageOf(static_cast<int>(number), number);
    rest.mutable_payload()->erase(0, first_bytes);
    rest.mutable_chunks(0)->set_bytes(block_bytes - first_bytes);
    rest.mutable_chunks(0)->clear_begin();
    put.Send(rest);
  }
  put.HalfClose();
  EXPECT_TRUE(put.Wait().ok()) << put.Wait();
  EXPECT_EQ(parts_->store().Stats().blocks, 6u);
  EXPECT_TRUE(parts_->CheckIdle().ok()) << parts_->CheckIdle();
}

TEST_F(PutCallTest, WritesABlockThatIsLargerThanTheShareWhenNothingElseIsWritten) {
  FixtureOptions options;
  options.reserved_bytes_max = 1'000;
  Open(options);
  ExpectStillServing();
  FakePut put(parts_.get());
  put.Send(StartOf(1, 0, 20'000));
  put.Send(MessageOf(2, 1));
  EXPECT_EQ(put.WaitForResults(1)[0].status().code(), static_cast<int>(absl::StatusCode::kResourceExhausted));
  put.Disconnect();
  put.Wait().IgnoreError();
  EXPECT_EQ(ResultOf(MessageOf(2)).outcome(), v1::PUT_OUTCOME_STORED);
}

TEST_F(PutCallTest, SaysThatABlockIsLargerThanTheStoreAndThatNoWaitingHelps) {
  FixtureOptions options;
  options.host_bytes = uint64_t{1} << 20;
  shape_ = {.layers = 63, .heads = 8, .channels = 8, .block_tokens = 64};  // As many bytes as the store has, raw.
  group_ = ModelLayout(shape_);
  Open(options, v1::CODEC_RAW);
  const uint64_t most = parts_->store().part_bytes_max();
  ASSERT_LT(most, RawBytes(group_, WholeRange(group_)));
  const v1::BlockPutResult result = ResultOf(MessageOf(1));
  EXPECT_EQ(result.status().code(), static_cast<int>(absl::StatusCode::kResourceExhausted));
  EXPECT_THAT(result.status().message(),
              HasSubstr(absl::StrCat("more than the ", most, " that the store can ever hold in one piece")));
  EXPECT_EQ(result.status().retry_seconds(), 0);
  ExpectNothingStored();
}

TEST_F(PutCallTest, SaysThatABlockHasTooManyPartsAndThatNoWaitingHelps) {
  shape_ = {.layers = 33, .heads = 32, .channels = 8, .block_tokens = 1};
  group_ = ModelLayout(shape_);
  Open({}, v1::CODEC_RAW);
  FakePut put(parts_.get());
  constexpr uint32_t kParts = 1'024;
  for (uint32_t number = 0; number <= kParts; ++number) {
    const auto layer = static_cast<uint16_t>(number / shape_.heads);
    const auto head = static_cast<uint16_t>(number % shape_.heads);
    const PartRange range = {.layer_begin = layer,
                             .layer_end = static_cast<uint16_t>(layer + 1),
                             .head_begin = head,
                             .head_end = static_cast<uint16_t>(head + 1)};
    v1::PutRequest message =
        PutMessageOf(cache_.cache_id(), cache_.shard_id(), {{KeyOf(1), RawPart(group_, range, 1), number}});
    v1::PutBegin* begin = message.mutable_chunks(0)->mutable_begin();
    begin->mutable_layers()->set_begin(layer);
    begin->mutable_layers()->set_end(layer + 1u);
    begin->mutable_heads()->set_begin(head);
    begin->mutable_heads()->set_end(head + 1u);
    put.Send(message);
  }
  put.HalfClose();
  EXPECT_TRUE(put.Wait().ok()) << put.Wait();
  const std::vector<v1::BlockPutResult> results = put.results();
  ASSERT_EQ(results.size(), kParts + 1);
  EXPECT_EQ(results[kParts - 1].outcome(), v1::PUT_OUTCOME_STORED) << results[kParts - 1].DebugString();
  EXPECT_EQ(results[kParts].status().code(), static_cast<int>(absl::StatusCode::kResourceExhausted));
  EXPECT_THAT(results[kParts].status().message(), HasSubstr("the block has 1024 parts already"));
  EXPECT_EQ(results[kParts].status().retry_seconds(), 0);
}

TEST_F(PutCallTest, RefusesAnUnknownCacheOrShard) {
  Open();
  v1::PutRequest message = MessageOf(1);
  message.set_cache_id(cache_.cache_id() + 1);
  EXPECT_EQ(StatusOf({message}).code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(StatusOf({message}).message()), HasSubstr("open it again"));
  message = MessageOf(1);
  message.set_shard_id(99);
  EXPECT_EQ(StatusOf({message}).code(), absl::StatusCode::kNotFound);
  ExpectNothingStored();
  ExpectStillServing();
}

TEST_F(PutCallTest, RefusesAnEmptyKeyAndAKeyOver64Bytes) {
  Open();
  v1::PutRequest message = MessageOf(1);
  for (const std::string& key : {std::string(), std::string(65, 'k')}) {
    message.mutable_chunks(0)->mutable_begin()->set_key(key);
    const v1::BlockPutResult result = ResultOf(message);
    EXPECT_EQ(result.status().code(), static_cast<int>(absl::StatusCode::kInvalidArgument));
    EXPECT_THAT(result.status().message(), HasSubstr(absl::StrCat("begin.key: ", key.size(), " bytes")));
  }
  ExpectNothingStored();
  message.mutable_chunks(0)->mutable_begin()->set_key(std::string(64, 'k'));
  EXPECT_EQ(ResultOf(message).outcome(), v1::PUT_OUTCOME_STORED);
}

TEST_F(PutCallTest, RefusesBadFieldsOfABlockNamingThem) {
  Open();
  const auto message_of = [&](const std::function<void(v1::PutBegin*)>& change) {
    v1::PutRequest message = MessageOf(1);
    change(message.mutable_chunks(0)->mutable_begin());
    const v1::BlockPutResult result = ResultOf(message);
    EXPECT_EQ(result.status().code(), static_cast<int>(absl::StatusCode::kInvalidArgument));
    return result.status().message();
  };
  EXPECT_THAT(message_of([](auto* begin) { begin->set_scope(std::string(33, 's')); }),
              HasSubstr("begin.scope: 33 bytes, at most 32"));
  EXPECT_THAT(message_of([](auto* begin) { begin->set_token_start(uint64_t{1} << 48); }),
              HasSubstr("begin.token_start: 281474976710656"));
  EXPECT_THAT(message_of([](auto* begin) { begin->set_layer_group(5); }),
              HasSubstr("begin.layer_group: the cache has no layer group 5"));
  EXPECT_THAT(message_of([](auto* begin) { begin->mutable_layers()->set_end(5); }),
              HasSubstr("begin.layers: [0, 5) is not within [0, 4)"));
  EXPECT_THAT(message_of([](auto* begin) { begin->mutable_heads(); }), HasSubstr("begin.heads: [0, 0) is empty"));
  ExpectNothingStored();
  ExpectStillServing();
}

TEST_F(PutCallTest, RefusesAPayloadThatTheSpecMakesLongerOrShorter) {
  Open();
  const uint64_t right = RawBytes(group_, WholeRange(group_));
  for (const uint64_t bytes : {right - 2, right + 2, uint64_t{0}}) {
    v1::PutRequest message = MessageOf(1);
    message.mutable_chunks(0)->mutable_begin()->set_payload_bytes(bytes);
    message.mutable_chunks(0)->set_bytes(bytes);
    message.mutable_payload()->resize(bytes);
    const v1::BlockPutResult result = ResultOf(message);
    EXPECT_EQ(result.status().code(), static_cast<int>(absl::StatusCode::kInvalidArgument));
    EXPECT_THAT(result.status().message(), HasSubstr(absl::StrCat("the spec makes it ", right)));
  }
  ExpectNothingStored();
  ExpectStillServing();
}

TEST_F(PutCallTest, RefusesMoreBytesThanTheBlockSaidItHas) {
  Open();
  v1::PutRequest message = MessageOf(1);
  message.mutable_chunks(0)->set_bytes(message.payload().size() + 5);
  message.mutable_payload()->append("extra");
  const v1::BlockPutResult result = ResultOf(message);
  EXPECT_EQ(result.status().code(), static_cast<int>(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(result.status().message(), HasSubstr("5 bytes more"));
  ExpectNothingStored();
  ExpectStillServing();
}

TEST_F(PutCallTest, DropsABlockWhoseStreamEndsInItsMiddle) {
  Open();
  v1::PutRequest message = MessageOf(1);
  const size_t half = message.payload().size() / 2 + 3;
  message.mutable_payload()->resize(half);
  message.mutable_chunks(0)->set_bytes(half);
  const v1::BlockPutResult result = ResultOf(message);
  EXPECT_EQ(result.status().code(), static_cast<int>(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(result.status().message(), HasSubstr("the stream ended before"));
  ExpectNothingStored();
  ExpectStillServing();
}

TEST_F(PutCallTest, DropsEverythingOpenWhenTheClientGoes) {
  Open();
  v1::PutRequest message = MessageOf(1);
  message.mutable_payload()->resize(1'000);
  message.mutable_chunks(0)->set_bytes(1'000);
  {
    FakePut put(parts_.get());
    put.Send(MessageOf(7, 1));
    put.Send(message);
    put.WaitForResults(1);
    put.Disconnect();
    put.Wait().IgnoreError();
  }
  EXPECT_TRUE(parts_->CheckIdle().ok()) << parts_->CheckIdle();
  EXPECT_EQ(parts_->store().Stats().blocks, 1u);
}

TEST_F(PutCallTest, RefusesABlockWithNaNOrInfUnlessThePolicyAllowsThem) {
  Open();
  for (const float value : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    v1::PutRequest message = MessageOf(1);
    const uint16_t half = FloatToFloat16(value);
    const size_t offset = RawBytes(group_, WholeRange(group_)) / 2;  // Layer 2's keys.
    message.mutable_payload()->replace(offset, 2, reinterpret_cast<const char*>(&half), 2);
    const v1::BlockPutResult result = ResultOf(message);
    EXPECT_EQ(result.status().code(), static_cast<int>(absl::StatusCode::kInvalidArgument));
    EXPECT_THAT(result.status().message(), HasSubstr("layer 2"));
    EXPECT_THAT(result.status().message(), HasSubstr("holds NaN or Inf, which this cache refuses"));
    EXPECT_EQ(result.status().retry_seconds(), 0);
  }
  ExpectNothingStored();
  ExpectStillServing();
}

TEST_F(PutCallTest, RefusesChunksAndPayloadThatDoNotAgree) {
  Open();
  v1::PutRequest message = MessageOf(1);
  message.mutable_chunks(0)->set_bytes(message.payload().size() - 1);
  EXPECT_EQ(StatusOf({message}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(StatusOf({message}).message()), HasSubstr("bytes of payload"));
  message.mutable_chunks(0)->set_bytes(UINT64_MAX);
  EXPECT_EQ(StatusOf({message}).code(), absl::StatusCode::kInvalidArgument);
  ExpectNothingStored();
  ExpectStillServing();
}

TEST_F(PutCallTest, RefusesAChunkOfABlockThatWasNotBegunAndOneThatIsBegunTwice) {
  Open();
  v1::PutRequest message = MessageOf(1);
  message.mutable_chunks(0)->clear_begin();
  EXPECT_THAT(std::string(StatusOf({message}).message()), HasSubstr("block 0 was not begun"));
  message = MessageOf(1);
  message.clear_payload();
  message.mutable_chunks(0)->set_bytes(0);
  EXPECT_THAT(std::string(StatusOf({message, message}).message()), HasSubstr("block 0 is open already"));
  ExpectNothingStored();
}

TEST_F(PutCallTest, RefusesMoreOpenBlocksThanItsLimit) {
  FixtureOptions options;
  options.limits.put_open_blocks_max = 3;
  Open(options);
  std::vector<v1::PutRequest> messages;
  for (int key = 0; key < 4; ++key) {
    messages.push_back(MessageOf(key, static_cast<uint32_t>(key)));
    messages.back().clear_payload();
    messages.back().mutable_chunks(0)->set_bytes(0);
  }
  EXPECT_THAT(std::string(StatusOf(messages).message()), HasSubstr("more than 3 open blocks"));
  ExpectNothingStored();
}

TEST_F(PutCallTest, RefusesBytesThatAreNoMessage) {
  Open();
  const std::string good = MessageOf(1).SerializeAsString();
  for (const std::string& bytes :
       {std::string("\x22\x05", 2), std::string(11, '\xff'), good.substr(0, good.size() - 1), good + "\x08\x01",
        std::string("\x0b", 1), std::string("\x22\xff\xff\xff\xff\x7f", 6)}) {
    FakePut put(parts_.get(), 3);
    put.SendBytes(bytes);
    put.HalfClose();
    EXPECT_EQ(put.Wait().code(), absl::StatusCode::kInvalidArgument) << put.Wait();
    EXPECT_THAT(std::string(put.Wait().message()), HasSubstr("malformed message"));
  }
  EXPECT_TRUE(parts_->CheckIdle().ok());
  ExpectNothingStored();
  ExpectStillServing();
}

TEST_F(PutCallTest, SaysWhenTheStoreIsFullAndEverythingIsPinnedAndWhenToTryAgain) {
  FixtureOptions options;
  options.host_bytes = uint64_t{1} << 20;
  Open(options);
  // Pin all that is stored, until nothing more fits.
  std::vector<BlockHandle> pins;
  v1::BlockPutResult result;
  for (int key = 0; key < 1'000; ++key) {
    result = PutAll(parts_.get(), cache_, {{KeyOf(key), RawBlock(group_, static_cast<uint32_t>(key))}})[0];
    if (result.status().code() != 0) break;
    const absl::StatusOr<BlockKey> block = BlockKey::Create(0, 1, 0, KeyOf(key));
    pins.push_back(*parts_->store().Get(*block, WholeRange(group_)));
  }
  EXPECT_GT(pins.size(), 3u);
  EXPECT_EQ(result.status().code(), static_cast<int>(absl::StatusCode::kResourceExhausted));
  EXPECT_THAT(result.status().message(), HasSubstr("the store is full"));
  EXPECT_THAT(result.status().message(), HasSubstr("what is not free is being read or written"));
  EXPECT_GT(result.status().retry_seconds(), 0);
  EXPECT_EQ(parts_->store().Stats().reserved_bytes, 0u);
  pins.clear();
  ExpectStillServing();
}

TEST_F(PutCallTest, RefusesACallThatWouldHoldMoreBytesThanTheBudget) {
  FixtureOptions options;
  options.in_flight_bytes = 100'000;
  options.limits.message_bytes_max = 64 << 10;
  Open(options);
  const absl::Status status = StatusOf({MessageOf(1)});  // 128 KiB.
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("too many bytes in flight"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("a caller may hold 50000 (--in_flight_bytes)"));
  EXPECT_EQ(RetryDelay(status), absl::ZeroDuration());  // It will never fit.
  ExpectNothingStored();
}

TEST_F(PutCallTest, RefusesACallWhileOthersHoldTheBytesAndSaysWhenToTryAgain) {
  FixtureOptions options;
  options.in_flight_bytes = 500'000;
  options.limits.message_bytes_max = 200'000;
  Open(options);
  std::optional<ByteBudget::Lease> held = parts_->environment().budget->TryAcquire(400'000);
  ASSERT_TRUE(held.has_value());
  const absl::Status status = Send({MessageOf(1)});
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_GT(RetryDelay(status), absl::ZeroDuration());
  held.reset();
  ExpectStillServing();
}

TEST_F(PutCallTest, KeepsTheResultsOfBlocksThatEndedBeforeTheCallFailed) {
  Open();
  v1::PutRequest broken = MessageOf(2, 1);
  broken.mutable_chunks(0)->clear_begin();
  std::vector<v1::BlockPutResult> results;
  EXPECT_EQ(StatusOf({MessageOf(1), broken}, &results).code(), absl::StatusCode::kInvalidArgument);
  ASSERT_EQ(results.size(), 1u);
  EXPECT_EQ(results[0].outcome(), v1::PUT_OUTCOME_STORED);
  EXPECT_EQ(parts_->store().Stats().blocks, 1u);
}

TEST_F(PutCallTest, EndsAStreamThatSendsNothingWhileABlockIsOpen) {
  FixtureOptions options;
  options.limits.put_idle_seconds_max = 0.05;
  Open(options);
  v1::PutRequest message = MessageOf(1);
  message.clear_payload();
  message.mutable_chunks(0)->set_bytes(0);
  {
    FakePut put(parts_.get());
    put.Send(message);
    EXPECT_EQ(put.Wait().code(), absl::StatusCode::kDeadlineExceeded);
    EXPECT_THAT(std::string(put.Wait().message()), HasSubstr("1 blocks were open"));
  }
  EXPECT_TRUE(parts_->CheckIdle().ok());
  ExpectNothingStored();
}

TEST_F(PutCallTest, EndsAStreamThatSendsMessagesButNoPayloadWhileABlockIsOpen) {
  FixtureOptions options;
  options.limits.put_idle_seconds_max = 0.1;
  Open(options);
  v1::PutRequest nothing;
  nothing.set_cache_id(cache_.cache_id());
  v1::PutRequest trickle = nothing;  // A byte a message: 30 s for each would hold the block for weeks.
  trickle.add_chunks()->set_bytes(1);
  trickle.set_payload("x");
  for (const v1::PutRequest& message : {nothing, trickle}) {
    FakePut put(parts_.get());
    put.Send(StartOf(1, 0, 20'000));
    const absl::Time deadline = absl::Now() + absl::Seconds(20);
    while (!put.finished() && absl::Now() < deadline) {
      put.Send(message);
      put.WaitUntilTaken();
    }
    ASSERT_TRUE(put.finished());
    EXPECT_EQ(put.Wait().code(), absl::StatusCode::kDeadlineExceeded) << put.Wait();
    EXPECT_THAT(std::string(put.Wait().message()), HasSubstr("--max_put_idle_seconds"));
  }
  EXPECT_TRUE(parts_->CheckIdle().ok()) << parts_->CheckIdle();
  ExpectNothingStored();
}

TEST_F(PutCallTest, EndsAStreamThatNeverBeginsABlock) {
  FixtureOptions options;
  options.limits.put_idle_seconds_max = 0.05;
  Open(options);
  FakePut put(parts_.get());
  EXPECT_EQ(put.Wait().code(), absl::StatusCode::kDeadlineExceeded);
}

TEST_F(PutCallTest, EndsAStreamWhoseClientNeverReadsItsResults) {
  FixtureOptions options;
  options.limits.put_idle_seconds_max = 0.05;
  Open(options);
  FakePut put(parts_.get());
  put.HoldWrites();
  put.Send(MessageOf(1));
  put.HalfClose();
  EXPECT_EQ(put.Wait().code(), absl::StatusCode::kDeadlineExceeded) << put.Wait();
  EXPECT_EQ(parts_->store().Stats().blocks, 1u);
}

TEST_F(PutCallTest, StopsReadingAClientThatDoesNotReadItsResults) {
  FixtureOptions options;
  options.host_bytes = uint64_t{4} << 20;
  Open(options);
  v1::PutRequest refused = MessageOf(1);
  refused.clear_payload();
  refused.mutable_chunks(0)->set_bytes(0);
  refused.mutable_chunks(0)->mutable_begin()->set_payload_bytes(1);
  FakePut put(parts_.get());
  put.HoldWrites();
  for (uint32_t block = 0; block < 5'000; ++block) {
    refused.mutable_chunks(0)->set_block(block);
    put.Send(refused);
  }
  put.HalfClose();
  put.ReleaseWrites();
  EXPECT_TRUE(put.Wait().ok());
  EXPECT_EQ(put.results().size(), 5'000u);
}

TEST_F(PutCallTest, StoresPlanesOverTheBoundRawUnderAuto) {
  Open({}, v1::CODEC_AUTO);
  v1::PutRequest message = MessageOf(1);
  // One key channel with a large constant offset, which scales by token cannot hold, and a first token so large that
  // scales by channel cannot either: the damage that mean errors do not see.
  std::string* payload = message.mutable_payload();
  const auto set = [&](size_t token, size_t channel, float value) {
    const uint16_t bits = FloatToFloat16(value);
    const size_t element = token * shape_.heads * shape_.channels + channel;
    payload->replace(2 * element, 2, reinterpret_cast<const char*>(&bits), 2);
  };
  for (size_t token = 1; token < shape_.block_tokens; ++token) set(token, 0, 200.0f);
  for (size_t channel = 0; channel < shape_.channels; ++channel) {
    uint16_t bits;
    std::memcpy(&bits, payload->data() + 2 * channel, sizeof(bits));
    set(0, channel, channel == 0 ? 60000.0f : 100 * Float16ToFloat(bits));
  }
  const v1::BlockPutResult result = ResultOf(message);
  EXPECT_EQ(result.raw_planes(), 1u);
  EXPECT_LE(result.floor_error(), 0.0125f);
  const auto blocks = GetAll(parts_.get(), GetRequestOf(cache_, {KeyOf(1)}));
  const size_t plane_bytes = RawBytes(group_, WholeRange(group_)) / group_.planes.size();
  EXPECT_EQ(blocks[0].payload.substr(0, plane_bytes), payload->substr(0, plane_bytes));
}

TEST_F(PutCallTest, ManyStreamsAtOnceLeaveNothingBehind) {
  FixtureOptions options;
  options.host_bytes = uint64_t{2} << 20;  // So that they evict each other.
  Open(options);
  {
    std::vector<std::unique_ptr<FakePut>> puts;
    for (int stream = 0; stream < 8; ++stream) {
      puts.push_back(std::make_unique<FakePut>(parts_.get(), 10'000));
      for (int i = 0; i < 8; ++i) puts.back()->Send(MessageOf(stream / 2 * 8 + i, static_cast<uint32_t>(i)));
      if (stream % 3 == 0) {
        puts.back()->Disconnect();
      } else {
        puts.back()->HalfClose();
      }
    }
    for (const auto& put : puts) put->Wait().IgnoreError();
  }
  EXPECT_TRUE(parts_->CheckIdle().ok()) << parts_->CheckIdle();
  EXPECT_GT(parts_->store().Stats().blocks, 0u);
}

}  // namespace
}  // namespace nqkv
