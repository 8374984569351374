#include "service/put_message.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/service/model_blocks.h"

namespace nqkv {
namespace {

using ::testing::HasSubstr;

std::vector<std::span<const std::byte>> Cut(const std::string& bytes, size_t piece_bytes) {
  std::vector<std::span<const std::byte>> pieces;
  const std::span<const std::byte> all = std::as_bytes(std::span(bytes));
  for (size_t begin = 0; begin < all.size(); begin += piece_bytes) {
    pieces.push_back(all.subspan(begin, std::min(piece_bytes, all.size() - begin)));
    pieces.push_back({});  // Empty pieces are legal.
  }
  return pieces;
}

TEST(PutMessageTest, ReadsFieldsAndPayloadAcrossAnyPieces) {
  const v1::PutRequest request = PutMessageOf(77, 3, {{"a", "payload of a", 1}, {"b", "and of b", 2}});
  const std::string bytes = request.SerializeAsString();
  for (size_t piece_bytes = 1; piece_bytes <= bytes.size(); ++piece_bytes) {
    const std::vector<std::span<const std::byte>> pieces = Cut(bytes, piece_bytes);
    const absl::StatusOr<PutMessage> message = ParsePutMessage(pieces);
    ASSERT_TRUE(message.ok()) << message.status();
    EXPECT_EQ(message->fields.cache_id(), 77u);
    EXPECT_EQ(message->fields.chunks_size(), 2);
    std::string payload;
    for (const std::span<const std::byte>& piece : message->payload) {
      EXPECT_FALSE(piece.empty());
      payload.append(reinterpret_cast<const char*>(piece.data()), piece.size());
    }
    EXPECT_EQ(payload, request.payload());
    EXPECT_EQ(message->payload_bytes, payload.size());
  }
}

TEST(PutMessageTest, ReadsAMessageWithoutPayloadAndAnEmptyOne) {
  v1::PutRequest request;
  request.set_cache_id(5);
  const std::string bytes = request.SerializeAsString();
  EXPECT_EQ(ParsePutMessage(Cut(bytes, 100))->fields.cache_id(), 5u);
  EXPECT_TRUE(ParsePutMessage({}).ok());
}

TEST(PutMessageTest, RefusesEveryTruncation) {
  const std::string bytes = PutMessageOf(300, 3, {{"a", "payload", 1}}).SerializeAsString();
  for (size_t size = 1; size < bytes.size(); ++size) {
    const std::string cut = bytes.substr(0, size);
    const bool whole = v1::PutRequest().ParseFromString(cut);
    EXPECT_EQ(ParsePutMessage(Cut(cut, 4)).ok(), whole) << size << " of " << bytes.size();
  }
}

TEST(PutMessageTest, BoundsWhatComesBeforeThePayload) {
  v1::PutRequest request;
  for (int i = 0; i < 400'000; ++i) request.add_chunks()->set_block(1'000'000);
  const std::string bytes = request.SerializeAsString();
  const absl::Status status = ParsePutMessage(Cut(bytes, 1 << 20)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("bytes before the payload"));
}

}  // namespace
}  // namespace nqkv
