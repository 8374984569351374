#include "service/get_call.h"

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/block_format.h"
#include "proto/rpc_status.h"
#include "tests/service/call_fixture.h"
#include "tests/service/model_blocks.h"

namespace nqkv {
namespace {

using ::testing::HasSubstr;

constexpr PlaneCodec kNqkv4 = {.id = CodecId::kNqkv4, .scale_group = 64};
constexpr PlaneCodec kRaw = {.id = CodecId::kRaw};

class GetCallTest : public ::testing::Test {
 protected:
  void Open(FixtureOptions options = {}, ModelShape shape = {}, v1::Codec codec = v1::CODEC_NQKV4) {
    parts_ = std::make_unique<ServiceParts>(options);
    group_ = ModelLayout(shape);
    cache_ = parts_->Open("cache", shape, codec);
  }

  void Put(int count) {
    std::vector<PutBlock> blocks;
    for (int key = 0; key < count; ++key) {
      blocks.push_back({KeyOf(key), RawBlock(group_, static_cast<uint32_t>(key)), 0});
    }
    for (const v1::BlockPutResult& result : PutAll(parts_.get(), cache_, blocks)) {
      ASSERT_EQ(result.outcome(), v1::PUT_OUTCOME_STORED) << result.DebugString();
    }
  }

  // In messages of two planes, for a small budget.
  void PutInPieces(int key) {
    const std::string payload = RawBlock(group_, static_cast<uint32_t>(key));
    constexpr size_t kPieceBytes = 32 << 10;
    FakePut put(parts_.get());
    for (size_t begin = 0; begin < payload.size(); begin += kPieceBytes) {
      v1::PutRequest message = PutMessageOf(cache_.cache_id(), 0, {{KeyOf(key), payload, 0}});
      if (begin > 0) message.mutable_chunks(0)->clear_begin();
      message.set_payload(payload.substr(begin, kPieceBytes));
      message.mutable_chunks(0)->set_bytes(message.payload().size());
      put.Send(message);
    }
    put.HalfClose();
    ASSERT_TRUE(put.Wait().ok()) << put.Wait();
  }

  v1::GetRequest RequestOf(int count) {
    std::vector<std::string> keys;
    for (int key = 0; key < count; ++key) keys.push_back(KeyOf(key));
    return GetRequestOf(cache_, keys);
  }

  absl::Status StatusOf(const v1::GetRequest& request) {
    FakeGet get(parts_.get());
    get.Start(request);
    EXPECT_EQ(get.Wait().ok() || get.message_count() == 0, true);
    return get.Wait();
  }

  std::string Expected(int key, const PartRange& range, Dtype dtype = Dtype::kFloat16) {
    return RoundTrip(group_, range, static_cast<uint32_t>(key), kNqkv4, dtype);
  }

  GroupLayout group_;
  std::unique_ptr<ServiceParts> parts_;
  v1::OpenCacheResponse cache_;
};

TEST_F(GetCallTest, PacksSmallBlocksIntoMessagesOfTheBestSize) {
  FixtureOptions options;
  options.limits.message_bytes_best = 512 << 10;  // Four blocks of 128 KiB.
  Open(options);
  Put(10);
  FakeGet get(parts_.get());
  get.Start(RequestOf(10));
  ASSERT_TRUE(get.Wait().ok()) << get.Wait();
  EXPECT_EQ(get.message_count(), 3u);
  const std::vector<GotBlock> blocks = get.blocks();
  ASSERT_EQ(blocks.size(), 10u);
  for (int key = 0; key < 10; ++key) {
    const GotBlock& block = blocks[static_cast<size_t>(key)];
    EXPECT_EQ(block.result.status().code(), 0);
    EXPECT_EQ(block.result.payload_bytes(), block.payload.size());
    EXPECT_EQ(block.result.tier(), v1::TIER_HOST);
    EXPECT_EQ(block.result.provenance(), v1::PROVENANCE_ORIGINAL);
    EXPECT_GT(block.result.floor_error(), 0);
    EXPECT_TRUE(block.payload == Expected(key, WholeRange(group_))) << key;
  }
}

TEST_F(GetCallTest, SplitsLargeBlocksAtPlanesAndLargePlanesAnywhere) {
  for (const uint64_t message_bytes : {70'000u, 16'384u, 10'000u, 8'191u}) {  // A plane has 16 KiB, a block 128 KiB.
    FixtureOptions options;
    options.limits.message_bytes_best = message_bytes;
    Open(options);
    Put(3);
    FakeGet get(parts_.get());
    get.Start(RequestOf(3));
    ASSERT_TRUE(get.Wait().ok()) << get.Wait();
    EXPECT_LE(get.largest_message_bytes(), message_bytes + 200);
    const std::vector<GotBlock> blocks = get.blocks();
    ASSERT_EQ(blocks.size(), 3u);
    for (int key = 0; key < 3; ++key) {
      EXPECT_TRUE(blocks[static_cast<size_t>(key)].payload == Expected(key, WholeRange(group_)))
          << message_bytes << " " << key;
    }
  }
}

TEST_F(GetCallTest, AnswersMissesBetweenHits) {
  Open();
  Put(2);
  const auto blocks = GetAll(parts_.get(), GetRequestOf(cache_, {"nowhere", KeyOf(1), "nor here", KeyOf(0)}));
  EXPECT_EQ(blocks[0].result.status().code(), static_cast<int>(absl::StatusCode::kNotFound));
  EXPECT_EQ(blocks[2].result.status().code(), static_cast<int>(absl::StatusCode::kNotFound));
  EXPECT_TRUE(blocks[0].payload.empty());
  EXPECT_TRUE(blocks[1].payload == Expected(1, WholeRange(group_)));
  EXPECT_TRUE(blocks[3].payload == Expected(0, WholeRange(group_)));
}

TEST_F(GetCallTest, ServesLayerAndHeadRangesInAnyDtype) {
  Open();
  Put(1);
  const PartRange part = {.layer_begin = 1, .layer_end = 3, .head_begin = 2, .head_end = 7};
  for (const v1::Dtype dtype : {v1::DTYPE_UNSPECIFIED, v1::DTYPE_FLOAT16, v1::DTYPE_BFLOAT16, v1::DTYPE_FLOAT32}) {
    v1::GetRequest request = RequestOf(1);
    request.mutable_layers()->set_begin(1);
    request.mutable_layers()->set_end(3);
    request.mutable_heads()->set_begin(2);
    request.mutable_heads()->set_end(7);
    request.set_dtype(dtype);
    const auto blocks = GetAll(parts_.get(), request);
    const Dtype expected = dtype == v1::DTYPE_UNSPECIFIED ? Dtype::kFloat16 : static_cast<Dtype>(dtype);
    EXPECT_TRUE(blocks[0].payload == Expected(0, part, expected)) << v1::Dtype_Name(dtype);
  }
}

// Blocks saved by four ranks are served to two, to one and to eight.
TEST_F(GetCallTest, ServesWhatFourRanksStoredToAnyNumberOfRanks) {
  for (const v1::Codec codec : {v1::CODEC_NQKV4, v1::CODEC_RAW}) {
    Open({}, {}, codec);
    const PlaneCodec plane_codec = codec == v1::CODEC_RAW ? kRaw : kNqkv4;
    const auto open = [&](uint32_t rank, uint32_t size) {
      v1::ShardSpec shard;
      shard.set_tensor_rank(rank);
      shard.set_tensor_size(size);
      return parts_->Open("cache", {}, codec, shard);
    };
    const auto range = [&](uint32_t rank, uint32_t size) {
      PartRange part = WholeRange(group_);
      part.head_begin = static_cast<uint16_t>(rank * 8 / size);
      part.head_end = static_cast<uint16_t>((rank + 1) * 8 / size);
      return part;
    };
    for (uint32_t rank = 0; rank < 4; ++rank) {
      const v1::OpenCacheResponse shard = open(rank, 4);
      EXPECT_EQ(shard.cache_id(), cache_.cache_id());
      EXPECT_EQ(shard.sizes(0).raw_bytes(), RawBytes(group_, range(rank, 4)));
      const v1::BlockPutResult result =
          PutAll(parts_.get(), shard, {{KeyOf(5), RawPart(group_, range(rank, 4), 5), 0}})[0];
      EXPECT_EQ(result.outcome(), v1::PUT_OUTCOME_STORED) << result.DebugString();
      // Not whole before the last rank.
      const auto whole = GetAll(parts_.get(), GetRequestOf(open(0, 1), {KeyOf(5)}));
      EXPECT_EQ(whole[0].result.status().code(), rank < 3 ? static_cast<int>(absl::StatusCode::kNotFound) : 0);
    }
    for (const uint32_t size : {2u, 1u, 8u}) {
      for (uint32_t rank = 0; rank < size; ++rank) {
        const auto blocks = GetAll(parts_.get(), GetRequestOf(open(rank, size), {KeyOf(5)}));
        EXPECT_TRUE(blocks[0].payload == RoundTrip(group_, range(rank, size), 5, plane_codec)) << rank << "/" << size;
      }
    }
    // What is stored is not stored again, whatever its cut.
    const auto again = PutAll(parts_.get(), open(1, 2), {{KeyOf(5), RawPart(group_, range(1, 2), 5), 0}});
    EXPECT_EQ(again[0].outcome(), v1::PUT_OUTCOME_ALREADY_PRESENT);
  }
}

TEST_F(GetCallTest, NamesThePlanesThatItDecodedFrom) {
  Open();
  Put(1);
  v1::GetRequest request = RequestOf(1);
  request.set_include_planes(true);
  const auto blocks = GetAll(parts_.get(), request);
  ASSERT_EQ(blocks[0].result.planes_size(), 8);
  uint64_t stored_bytes = 0;
  for (const v1::PlaneInfo& plane : blocks[0].result.planes()) {
    EXPECT_EQ(plane.codec(), v1::CODEC_NQKV4);
    EXPECT_EQ(plane.scale_group(), 64u);
    EXPECT_EQ(plane.heads().end(), 8u);
    EXPECT_NE(plane.crc32c(), 0u);
    stored_bytes += plane.stored_bytes();
  }
  EXPECT_LT(stored_bytes, blocks[0].result.stored_bytes());
}

TEST_F(GetCallTest, DropsADamagedBlockAndServesTheOthers) {
  for (const uint64_t message_bytes : {uint64_t{1} << 20, uint64_t{20'000}}) {  // Packed, and split.
    FixtureOptions options;
    options.limits.message_bytes_best = message_bytes;
    Open(options);
    Put(3);
    const absl::StatusOr<BlockKey> key = BlockKey::Create(0, 1, 0, KeyOf(1));
    {
      const absl::StatusOr<BlockHandle> handle = parts_->store().Get(*key, WholeRange(group_));
      ASSERT_TRUE(handle.ok()) << handle.status();
      const std::span<const std::byte> bytes = handle->parts()[0].bytes();
      const_cast<std::byte&>(bytes[bytes.size() / 2]) ^= std::byte{4};
    }
    const auto blocks = GetAll(parts_.get(), RequestOf(3));
    EXPECT_EQ(blocks[1].result.status().code(), static_cast<int>(absl::StatusCode::kDataLoss));
    EXPECT_TRUE(blocks[1].payload.empty());
    EXPECT_TRUE(blocks[0].payload == Expected(0, WholeRange(group_)));
    EXPECT_TRUE(blocks[2].payload == Expected(2, WholeRange(group_)));
    EXPECT_FALSE(parts_->store().Find(*key, WholeRange(group_)).present);
    EXPECT_EQ(parts_->metrics().Sum().checksum_failures, 1u);
    EXPECT_EQ(parts_->store().Stats().damaged_blocks_total, 1u);
  }
}

TEST_F(GetCallTest, RefusesBadRequestsNamingTheField) {
  FixtureOptions options;
  options.limits.get_keys_max = 3;
  Open(options);
  const auto expect = [&](const v1::GetRequest& request, absl::StatusCode code, const std::string& message) {
    const absl::Status status = StatusOf(request);
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
  };
  v1::GetRequest request = RequestOf(1);
  request.set_cache_id(12345);
  expect(request, absl::StatusCode::kNotFound, "unknown cache 12345: open it again");
  request = RequestOf(1);
  request.set_shard_id(7);
  expect(request, absl::StatusCode::kNotFound, "unknown shard 7");
  expect(GetRequestOf(cache_, {}), absl::StatusCode::kInvalidArgument, "chain.keys: required");
  expect(RequestOf(4), absl::StatusCode::kInvalidArgument, "chain.keys: 4 keys, at most 3");
  expect(GetRequestOf(cache_, {"a", ""}), absl::StatusCode::kInvalidArgument, "chain.keys[1]: 0 bytes");
  expect(GetRequestOf(cache_, {std::string(65, 'k')}), absl::StatusCode::kInvalidArgument, "chain.keys[0]: 65 bytes");
  expect(GetRequestOf(cache_, {"a", "b", "a"}), absl::StatusCode::kInvalidArgument,
         "chain.keys[2]: the same key as chain.keys[0]");
  request = RequestOf(1);
  request.mutable_chain()->set_layer_group(3);
  expect(request, absl::StatusCode::kInvalidArgument, "chain.layer_group: the cache has no layer group 3");
  request = RequestOf(1);
  request.mutable_heads()->set_end(9);
  expect(request, absl::StatusCode::kInvalidArgument, "heads: [0, 9) is not within [0, 8)");
  request = RequestOf(1);
  request.mutable_layers()->set_begin(2);
  request.mutable_layers()->set_end(2);
  expect(request, absl::StatusCode::kInvalidArgument, "layers: [2, 2) is empty");
  request = RequestOf(1);
  request.set_dtype(v1::DTYPE_FLOAT8_E4M3);
  expect(request, absl::StatusCode::kUnimplemented, "dtype DTYPE_FLOAT8_E4M3 is not built yet");
}

TEST_F(GetCallTest, GivesEverythingBackWhenTheClientGoesInTheMiddle) {
  FixtureOptions options;
  options.limits.message_bytes_best = 128 << 10;
  Open(options);
  Put(8);
  {
    FakeGet get(parts_.get());
    get.HoldWrites();
    get.Start(RequestOf(8));
    get.WaitForHeldWrite();
    EXPECT_GT(parts_->environment().budget->used_bytes(), 0u);
    get.Disconnect();
    EXPECT_EQ(get.Wait().code(), absl::StatusCode::kCancelled);
    EXPECT_LT(get.message_count(), 3u);
  }
  EXPECT_TRUE(parts_->CheckIdle().ok()) << parts_->CheckIdle();
  EXPECT_EQ(GetAll(parts_.get(), RequestOf(8)).size(), 8u);
}

TEST_F(GetCallTest, CancelsAReaderThatDoesNotReadAndGivesItsBytesBack) {
  FixtureOptions options;
  options.limits.message_bytes_best = 128 << 10;
  options.limits.read_seconds_max = 0.1;
  Open(options);
  Put(8);
  {
    FakeGet get(parts_.get());
    get.HoldWrites();
    get.Start(RequestOf(8));
    EXPECT_EQ(get.Wait().code(), absl::StatusCode::kDeadlineExceeded);
    EXPECT_TRUE(get.was_cancelled());
  }
  EXPECT_TRUE(parts_->CheckIdle().ok()) << parts_->CheckIdle();
  EXPECT_EQ(parts_->metrics().Sum().rejections, 1u);
}

TEST_F(GetCallTest, TakesAMessagesBytesBeforeItBeginsAndRefusesWhenTheyAreNotThere) {
  FixtureOptions options;
  options.in_flight_bytes = 1 << 20;
  Open(options);
  Put(4);
  FakeGet first(parts_.get());
  first.HoldWrites();
  first.Start(RequestOf(4));
  first.WaitForHeldWrite();
  EXPECT_EQ(parts_->environment().budget->used_bytes(), 512u << 10);  // What four blocks take, and no more.
  const absl::Status status = StatusOf(RequestOf(4));
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_GT(RetryDelay(status), absl::ZeroDuration());
  first.ReleaseWrites();
  EXPECT_TRUE(first.Wait().ok());
  EXPECT_TRUE(parts_->CheckIdle().ok()) << parts_->CheckIdle();
  EXPECT_TRUE(StatusOf(RequestOf(4)).ok());
}

TEST_F(GetCallTest, DecodesAheadOnlyWhereTheBudgetHasRoom) {
  for (const bool has_room : {true, false}) {
    FixtureOptions options;
    options.limits.message_bytes_best = 128 << 10;  // A block.
    options.in_flight_bytes = (has_room ? 4u : 2u) * options.limits.message_bytes_best;
    Open(options);
    for (int key = 0; key < 8; ++key) PutInPieces(key);
    FakeGet get(parts_.get());
    get.HoldWrites();
    get.Start(RequestOf(8));
    get.WaitForHeldWrite();
    const uint64_t held_bytes = (has_room ? 2u : 1u) * options.limits.message_bytes_best;
    while (parts_->environment().budget->used_bytes() < held_bytes) std::this_thread::yield();
    EXPECT_EQ(parts_->environment().budget->used_bytes(), held_bytes);
    get.ReleaseWrites();
    ASSERT_TRUE(get.Wait().ok()) << get.Wait();
    const std::vector<GotBlock> blocks = get.blocks();
    ASSERT_EQ(blocks.size(), 8u);
    for (int key = 0; key < 8; ++key) {
      EXPECT_TRUE(blocks[static_cast<size_t>(key)].payload == Expected(key, WholeRange(group_))) << key;
    }
    EXPECT_EQ(parts_->environment().budget->rejected_total(), 0u);
    EXPECT_TRUE(parts_->CheckIdle().ok()) << parts_->CheckIdle();
  }
}

TEST_F(GetCallTest, ReadersThatDoNotReadLeaveOtherConnectionsTheirShare) {
  FixtureOptions options;
  options.in_flight_bytes = 8 << 20;
  Open(options);
  Put(16);  // 2 MiB, two messages.
  std::vector<std::unique_ptr<FakeGet>> stuck;
  for (int i = 0; i < 120; ++i) {
    stuck.push_back(std::make_unique<FakeGet>(parts_.get(), "stuck"));
    stuck.back()->HoldWrites();
    stuck.back()->Start(RequestOf(16));
  }
  int refused = 0;
  for (const auto& get : stuck) {
    get->WaitForHeldWrite();
    if (get->finished()) {
      EXPECT_EQ(get->Wait().code(), absl::StatusCode::kResourceExhausted);
      EXPECT_GT(RetryDelay(get->Wait()), absl::ZeroDuration());
      ++refused;
    }
  }
  EXPECT_GE(refused, 120 - 4);  // A half of the budget, and one or two messages each.
  EXPECT_LE(parts_->environment().budget->used_bytes(), options.in_flight_bytes / 2);
  for (const char* connection : {"a", "b", "c"}) {
    FakeGet get(parts_.get(), connection);
    get.Start(RequestOf(16));
    EXPECT_TRUE(get.Wait().ok()) << get.Wait();
    FakePut put(parts_.get(), 0, connection);
    put.Send(PutMessageOf(cache_.cache_id(), 0, {{connection, RawBlock(group_, 7), 0}}));
    put.HalfClose();
    EXPECT_TRUE(put.Wait().ok()) << put.Wait();
  }
  stuck.clear();
  EXPECT_TRUE(parts_->CheckIdle().ok()) << parts_->CheckIdle();
}

TEST_F(GetCallTest, KeepsABlockThatIsDeletedWhileItIsRead) {
  FixtureOptions options;
  options.limits.message_bytes_best = 20'000;  // So that the block stays pinned over many messages.
  Open(options);
  Put(1);
  FakeGet get(parts_.get());
  get.HoldWrites();
  get.Start(RequestOf(1));
  get.WaitForHeldWrite();
  parts_->store().Delete(*BlockKey::Create(0, 1, 0, KeyOf(0)));
  get.ReleaseWrites();
  ASSERT_TRUE(get.Wait().ok()) << get.Wait();
  EXPECT_TRUE(get.blocks()[0].payload == Expected(0, WholeRange(group_)));
  EXPECT_TRUE(parts_->CheckIdle().ok()) << parts_->CheckIdle();
  EXPECT_EQ(parts_->store().Stats().used_bytes, 0u);
}

TEST_F(GetCallTest, ManyReadersAndWritersAtOnceSeeOnlyWholeBlocks) {
  FixtureOptions options;
  options.host_bytes = uint64_t{1} << 20;  // So that blocks are evicted under the readers.
  options.limits.message_bytes_best = 100'000;
  Open(options);
  Put(8);
  std::vector<std::unique_ptr<FakeGet>> gets;
  std::vector<std::unique_ptr<FakePut>> puts;
  for (int i = 0; i < 6; ++i) {
    gets.push_back(std::make_unique<FakeGet>(parts_.get()));
    gets.back()->Start(RequestOf(32));
    puts.push_back(std::make_unique<FakePut>(parts_.get()));
    for (int key = 0; key < 32; ++key) {
      puts.back()->Send(
          PutMessageOf(cache_.cache_id(), 0, {{KeyOf(key), RawBlock(group_, static_cast<uint32_t>(key)), 0}}));
    }
    puts.back()->HalfClose();
    if (i == 5) gets.back()->Disconnect();
  }
  for (int i = 0; i < 5; ++i) {
    ASSERT_TRUE(gets[static_cast<size_t>(i)]->Wait().ok());
    const std::vector<GotBlock> blocks = gets[static_cast<size_t>(i)]->blocks();
    for (size_t key = 0; key < blocks.size(); ++key) {
      if (blocks[key].result.status().code() != 0) continue;
      EXPECT_TRUE(blocks[key].payload == Expected(static_cast<int>(key), WholeRange(group_)));
    }
  }
  gets.clear();
  puts.clear();
  EXPECT_TRUE(parts_->CheckIdle().ok()) << parts_->CheckIdle();
}

TEST(GetCallReplyTest, DescriptionsOfPlanesFitIntoAMessageOrAreRefused) {
  ServiceParts parts;
  const ModelShape shape = {.layers = 1'024, .heads = 2, .channels = 8, .block_tokens = 1};
  v1::OpenCacheResponse cache;
  for (uint32_t rank = 0; rank < 2; ++rank) {
    v1::ShardSpec shard;
    shard.set_tensor_rank(rank);
    shard.set_tensor_size(2);
    cache = parts.Open("cache", shape, v1::CODEC_RAW, shard);
    PutAll(&parts, cache, {{KeyOf(0), std::string(size_t{2'048} * 8 * 2, 0)}});
  }
  v1::GetRequest request = nqkv::GetRequestOf(cache, {KeyOf(0)});
  request.set_shard_id(0);
  EXPECT_EQ(GetAll(&parts, request)[0].result.status().code(), 0);
  request.set_include_planes(true);
  const v1::BlockGetResult refused = GetAll(&parts, request)[0].result;
  EXPECT_EQ(refused.status().code(), static_cast<int>(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(refused.status().message(), ::testing::HasSubstr("4096 stored planes, at most 3640 are described"));
  request.mutable_layers()->set_end(512);
  EXPECT_EQ(GetAll(&parts, request)[0].result.planes_size(), 2'048);
}

}  // namespace
}  // namespace nqkv
