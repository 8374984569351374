#include "client/put_framer.h"

#include <cstring>
#include <map>
#include <numeric>

#include "grpcpp/impl/codegen/proto_utils.h"
#include "gtest/gtest.h"

namespace nqkv::client {
namespace {

// Blocks of the given sizes, each with bytes of its own, framed into messages and put together again.
class PutFramerTest : public ::testing::Test {
 protected:
  void AddBlock(const std::string& key, size_t bytes) {
    memory_.emplace_back(bytes);
    std::iota(memory_.back().begin(), memory_.back().end(), static_cast<uint8_t>(17 * memory_.size()));
    PutBlock block;
    block.key = key;
    block.data = memory_.back().data();
    block.bytes = bytes;
    blocks_.push_back(block);
  }

  std::vector<v1::PutRequest> Frame(uint64_t payload_bytes, size_t begin_max = 100) {
    std::vector<PutItem> items;
    for (size_t i = 0; i < blocks_.size(); ++i) {
      items.push_back({.number = static_cast<uint32_t>(i), .block = &blocks_[i], .planes = planes_});
    }
    std::vector<v1::PutRequest> messages;
    PutFramer framer(5, 6, items, payload_bytes, &borrowed_);
    while (!framer.done()) {
      size_t begun = 0;
      grpc::ByteBuffer buffer = framer.Next(begin_max, &begun);
      v1::PutRequest message;
      EXPECT_TRUE(grpc::SerializationTraits<v1::PutRequest>::Deserialize(&buffer, &message).ok());
      EXPECT_LE(message.payload().size(), payload_bytes);
      EXPECT_LE(begun, begin_max);
      messages.push_back(std::move(message));
    }
    return messages;
  }

  // What a server makes of the messages: bytes by block number.
  std::map<uint32_t, std::string> Assemble(const std::vector<v1::PutRequest>& messages) {
    std::map<uint32_t, std::string> blocks;
    for (const v1::PutRequest& message : messages) {
      size_t offset = 0;
      for (const v1::PutChunk& chunk : message.chunks()) {
        EXPECT_EQ(chunk.has_begin(), !blocks.contains(chunk.block()));
        blocks[chunk.block()].append(message.payload(), offset, chunk.bytes());
        offset += chunk.bytes();
      }
      EXPECT_EQ(offset, message.payload().size());
    }
    return blocks;
  }

  std::string BytesOf(size_t block) const { return std::string(memory_[block].begin(), memory_[block].end()); }

  std::vector<std::vector<uint8_t>> memory_;
  std::vector<PutBlock> blocks_;
  std::vector<PlanePiece> planes_;
  BorrowedMemory borrowed_;
};

TEST_F(PutFramerTest, SplitsABlockThatIsLargerThanAMessage) {
  AddBlock("a", 2500);
  const std::vector<v1::PutRequest> messages = Frame(1000);
  ASSERT_EQ(messages.size(), 3u);
  EXPECT_EQ(messages[2].payload().size(), 500u);
  EXPECT_EQ(Assemble(messages)[0], BytesOf(0));
}

TEST_F(PutFramerTest, PacksSmallBlocksIntoOneMessage) {
  for (int i = 0; i < 10; ++i) AddBlock(std::string(1, static_cast<char>('a' + i)), 90);
  const std::vector<v1::PutRequest> messages = Frame(1000);
  ASSERT_EQ(messages.size(), 1u);
  const auto blocks = Assemble(messages);
  for (size_t i = 0; i < 10; ++i) EXPECT_EQ(blocks.at(static_cast<uint32_t>(i)), BytesOf(i));
}

TEST_F(PutFramerTest, FillsMessagesAcrossBlocks) {
  AddBlock("a", 1500);
  AddBlock("b", 700);
  AddBlock("c", 1);
  const std::vector<v1::PutRequest> messages = Frame(1000);
  ASSERT_EQ(messages.size(), 3u);
  EXPECT_EQ(messages[1].chunks_size(), 2);
  const auto blocks = Assemble(messages);
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(blocks.at(static_cast<uint32_t>(i)), BytesOf(i));
}

TEST_F(PutFramerTest, SaysWhereTheStreamGoesInItsFirstMessageOnly) {
  AddBlock("a", 2000);
  const std::vector<v1::PutRequest> messages = Frame(1000);
  ASSERT_EQ(messages.size(), 2u);
  EXPECT_EQ(messages[0].cache_id(), 5u);
  EXPECT_EQ(messages[0].shard_id(), 6u);
  EXPECT_EQ(messages[1].cache_id(), 0u);
}

TEST_F(PutFramerTest, CarriesAllThatABlockSays) {
  AddBlock("key", 10);
  blocks_[0].layer_group = 3;
  blocks_[0].layers = Range{1, 2};
  blocks_[0].heads = Range{3, 4};
  blocks_[0].scope = "scope";
  blocks_[0].token_start = 640;
  blocks_[0].first_in_sequence = true;
  blocks_[0].provenance = Provenance::kDecoded;
  const v1::PutBegin begin = Frame(1000)[0].chunks(0).begin();
  EXPECT_EQ(begin.key(), "key");
  EXPECT_EQ(begin.layer_group(), 3u);
  EXPECT_EQ(begin.layers().begin(), 1u);
  EXPECT_EQ(begin.layers().end(), 2u);
  EXPECT_EQ(begin.heads().begin(), 3u);
  EXPECT_EQ(begin.heads().end(), 4u);
  EXPECT_EQ(begin.payload_bytes(), 10u);
  EXPECT_EQ(begin.scope(), "scope");
  EXPECT_EQ(begin.token_start(), 640u);
  EXPECT_TRUE(begin.first_in_sequence());
  EXPECT_EQ(begin.provenance(), v1::PROVENANCE_DECODED);
}

TEST_F(PutFramerTest, BeginsNoMoreBlocksThanAllowed) {
  for (int i = 0; i < 5; ++i) AddBlock(std::string(1, static_cast<char>('a' + i)), 10);
  const std::vector<v1::PutRequest> messages = Frame(1000, /*begin_max=*/2);
  ASSERT_EQ(messages.size(), 3u);
  EXPECT_EQ(messages[0].chunks_size(), 2);
}

TEST_F(PutFramerTest, EndsABegunBlockWhenNoneMayBegin) {
  AddBlock("a", 15);
  AddBlock("b", 5);
  std::vector<PutItem> items = {{.number = 0, .block = &blocks_[0], .planes = {}},
                                {.number = 1, .block = &blocks_[1], .planes = {}}};
  PutFramer framer(5, 6, items, 10, &borrowed_);
  size_t begun = 0;
  framer.Next(1, &begun);
  EXPECT_EQ(begun, 1u);
  EXPECT_FALSE(framer.at_block_start());
  framer.Next(0, &begun);
  EXPECT_EQ(begun, 1u);
  EXPECT_TRUE(framer.at_block_start());
  EXPECT_FALSE(framer.done());
}

TEST_F(PutFramerTest, ReturnsBorrowedMemoryWhenMessagesAreGone) {
  AddBlock("a", 5000);
  Frame(1000);
  EXPECT_EQ(borrowed_.lent(), 0u);
}

TEST_F(PutFramerTest, PointsIntoTheCallersMemory) {
  AddBlock("a", 5000);
  std::vector<PutItem> items = {{.number = 0, .block = &blocks_[0], .planes = {}}};
  PutFramer framer(5, 6, items, 5000, &borrowed_);
  size_t begun = 0;
  const grpc::ByteBuffer message = framer.Next(1, &begun);
  std::vector<grpc::Slice> slices;
  ASSERT_TRUE(message.Dump(&slices).ok());
  ASSERT_EQ(slices.size(), 2u);
  EXPECT_EQ(slices[1].begin(), memory_[0].data());
  EXPECT_GT(borrowed_.lent(), 0u);
}

TEST_F(PutFramerTest, GathersAPlaneWithGaps) {
  // Two tokens, two heads of 8 float16; head-major in memory, with a gap after each head.
  planes_ = {{.spec = {.layer = 0, .role = PlaneRole::kKey, .heads = 2, .channels = 8}, .tokens = 2, .heads = 2}};
  AddBlock("a", 200);
  blocks_[0].planes = {{.data = memory_[0].data(), .token_stride = 16, .head_stride = 48}};
  std::string expected;
  for (const size_t offset : {0, 48, 16, 64}) expected += BytesOf(0).substr(offset, 16);
  EXPECT_EQ(Assemble(Frame(10))[0], expected);
}

TEST_F(PutFramerTest, SendsPlanesThatLieApartOneAfterAnother) {
  planes_ = {{.spec = {.layer = 0, .role = PlaneRole::kKey, .heads = 1, .channels = 8}, .tokens = 4, .heads = 1},
             {.spec = {.layer = 0, .role = PlaneRole::kValue, .heads = 1, .channels = 8}, .tokens = 4, .heads = 1}};
  AddBlock("a", 200);
  blocks_[0].planes = {{.data = memory_[0].data() + 100}, {.data = memory_[0].data()}};
  EXPECT_EQ(Assemble(Frame(50))[0], BytesOf(0).substr(100, 64) + BytesOf(0).substr(0, 64));
  EXPECT_EQ(borrowed_.lent(), 0u);
}

}  // namespace
}  // namespace nqkv::client
