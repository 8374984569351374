#include "client/get_stream.h"

#include <cstring>

#include "gmock/gmock.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"
#include "gtest/gtest.h"

namespace nqkv::client {
namespace {

using ::testing::HasSubstr;

// Two targets with guard bytes around each.
class GetAssemblerTest : public ::testing::Test {
 protected:
  static constexpr size_t kBytes = 16;
  static constexpr size_t kGuard = 8;

  GetAssemblerTest() : memory_(2 * (kBytes + kGuard) + kGuard, 0x55) {
    for (size_t i = 0; i < 2; ++i) {
      targets_[i] = {.key = "k", .data = memory_.data() + kGuard + i * (kBytes + kGuard), .bytes = kBytes};
      target_pointers_.push_back(&targets_[i]);
      result_pointers_.push_back(&results_[i]);
    }
    assembler_.emplace(target_pointers_, planes_, result_pointers_);
  }
  ~GetAssemblerTest() override {
    for (size_t i = 0; i < memory_.size(); i += kBytes + kGuard) {
      for (size_t j = i; j < i + kGuard; ++j) EXPECT_EQ(memory_[j], 0x55) << "a guard byte was written";
    }
  }

  static v1::GetResponse Chunk(uint32_t index, const std::string& bytes, std::optional<uint64_t> begin_bytes) {
    v1::GetResponse response;
    v1::GetChunk* chunk = response.add_chunks();
    chunk->set_index(index);
    chunk->set_bytes(bytes.size());
    if (begin_bytes) chunk->mutable_result()->set_payload_bytes(*begin_bytes);
    response.set_payload(bytes);
    return response;
  }
  // In pieces of `piece` bytes, as slices cut messages anywhere.
  absl::Status Add(const std::string& message, int piece = -1) {
    google::protobuf::io::ArrayInputStream stream(message.data(), static_cast<int>(message.size()), piece);
    return assembler_->Add(&stream);
  }
  absl::Status Add(const v1::GetResponse& response, int piece = -1) { return Add(response.SerializeAsString(), piece); }
  std::string Target(size_t i) const { return std::string(static_cast<const char*>(targets_[i].data), kBytes); }

  std::vector<uint8_t> memory_;
  GetTarget targets_[2];
  GetResult results_[2];
  std::vector<PlanePiece> planes_;
  std::vector<const GetTarget*> target_pointers_;
  std::vector<GetResult*> result_pointers_;
  std::optional<GetAssembler> assembler_;
};

TEST_F(GetAssemblerTest, WritesInterleavedChunksToTheirTargets) {
  ASSERT_TRUE(Add(Chunk(1, "abcdefgh", 16)).ok());
  ASSERT_TRUE(Add(Chunk(0, "0123", 16)).ok());
  ASSERT_TRUE(Add(Chunk(1, "ijklmnop", std::nullopt)).ok());
  EXPECT_TRUE(assembler_->complete(1));
  EXPECT_FALSE(assembler_->complete(0));
  ASSERT_TRUE(Add(Chunk(0, "456789abcdef", std::nullopt)).ok());
  EXPECT_TRUE(assembler_->complete(0));
  EXPECT_EQ(Target(0), "0123456789abcdef");
  EXPECT_EQ(Target(1), "abcdefghijklmnop");
}

// Planes of two tokens, two heads and eight bytes a head, in memory with gaps of every kind.
class GetAssemblerPlanesTest : public ::testing::TestWithParam<PlaneTarget> {
 protected:
  static constexpr size_t kPlaneBytes = 32;
  static constexpr uint8_t kUntouched = 0x55;

  GetAssemblerPlanesTest() : memory_(256, kUntouched) {
    const PlanePiece piece{.spec = {.heads = 2, .channels = 4, .dtype = Dtype::kFloat16}, .tokens = 2, .heads = 2};
    planes_.assign(2, piece);
    for (size_t plane = 0; plane < 2; ++plane) {
      PlaneTarget target = GetParam();
      target.data = memory_.data() + 128 * plane + 64;
      target_.planes.push_back(target);
    }
  }

  // The target's rows joined; what is read is set back to untouched.
  std::string TakePlane(size_t plane) {
    std::string bytes;
    const PlaneTarget& target = target_.planes[plane];
    const ptrdiff_t head_stride = target.head_stride != 0 ? target.head_stride : 8;
    const ptrdiff_t token_stride = target.token_stride != 0 ? target.token_stride : 2 * head_stride;
    for (ptrdiff_t token = 0; token < 2; ++token) {
      for (ptrdiff_t head = 0; head < 2; ++head) {
        auto* row = static_cast<char*>(target.data) + token * token_stride + head * head_stride;
        bytes.append(row, 8);
        std::memset(row, kUntouched, 8);
      }
    }
    return bytes;
  }

  std::vector<uint8_t> memory_;
  std::vector<PlanePiece> planes_;
  GetTarget target_;
};

TEST_P(GetAssemblerPlanesTest, ScattersRowsAndLeavesTheGapsAlone) {
  std::string bytes(2 * kPlaneBytes, '\0');
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i + 1);
  v1::GetResponse response;
  response.add_chunks()->mutable_result()->set_payload_bytes(bytes.size());
  response.mutable_chunks(0)->set_bytes(bytes.size());
  response.set_payload(bytes);
  const std::string message = response.SerializeAsString();
  for (int piece = 1; piece <= static_cast<int>(message.size()); ++piece) {
    const GetTarget* target = &target_;
    GetResult result;
    GetResult* results = &result;
    GetAssembler assembler({&target, 1}, planes_, {&results, 1});
    google::protobuf::io::ArrayInputStream stream(message.data(), static_cast<int>(message.size()), piece);
    ASSERT_TRUE(assembler.Add(&stream).ok());
    EXPECT_TRUE(assembler.complete(0));
    EXPECT_EQ(TakePlane(0) + TakePlane(1), bytes) << piece;
    EXPECT_EQ(memory_, std::vector<uint8_t>(memory_.size(), kUntouched)) << "a gap was written";
  }
}

TEST_P(GetAssemblerPlanesTest, RefusesABlockThatDoesNotFillThePlanes) {
  for (const size_t size : {2 * kPlaneBytes - 1, 2 * kPlaneBytes + 1}) {
    v1::GetResponse response;
    response.add_chunks()->mutable_result()->set_payload_bytes(size);
    response.mutable_chunks(0)->set_bytes(size);
    response.set_payload(std::string(size, 'x'));
    const GetTarget* target = &target_;
    GetResult result;
    GetResult* results = &result;
    GetAssembler assembler({&target, 1}, planes_, {&results, 1});
    const std::string message = response.SerializeAsString();
    google::protobuf::io::ArrayInputStream stream(message.data(), static_cast<int>(message.size()));
    ASSERT_TRUE(assembler.Add(&stream).ok());
    EXPECT_TRUE(absl::IsOutOfRange(result.status));
    EXPECT_EQ(memory_, std::vector<uint8_t>(memory_.size(), kUntouched));
  }
}

INSTANTIATE_TEST_SUITE_P(Strides, GetAssemblerPlanesTest,
                         ::testing::Values(PlaneTarget{}, PlaneTarget{.token_stride = 24},
                                           PlaneTarget{.head_stride = 12}, PlaneTarget{.head_stride = 16},
                                           PlaneTarget{.token_stride = 8, .head_stride = 16},
                                           PlaneTarget{.token_stride = -16}));

TEST_F(GetAssemblerTest, ReadsMessagesThatAreCutAnywhere) {
  for (int piece = 1; piece < 30; ++piece) {
    assembler_.emplace(target_pointers_, planes_, result_pointers_);
    v1::GetResponse response = Chunk(0, "0123456789abcdef", 16);
    v1::GetChunk* second = response.add_chunks();
    second->set_index(1);
    second->set_bytes(4);
    second->mutable_result()->set_payload_bytes(4);
    response.mutable_payload()->append("wxyz");
    ASSERT_TRUE(Add(response, piece).ok()) << piece;
    EXPECT_EQ(Target(0), "0123456789abcdef");
    EXPECT_EQ(Target(1).substr(0, 4), "wxyz");
    EXPECT_TRUE(assembler_->complete(1));
  }
}

TEST_F(GetAssemblerTest, TakesAMissAsAResult) {
  v1::GetResponse response = Chunk(0, "", 0);
  response.mutable_chunks(0)->mutable_result()->mutable_status()->set_code(5);
  ASSERT_TRUE(Add(response).ok());
  EXPECT_TRUE(absl::IsNotFound(results_[0].status));
  EXPECT_TRUE(assembler_->complete(0));
}

TEST_F(GetAssemblerTest, SkipsABlockThatDoesNotFitItsTarget) {
  ASSERT_TRUE(Add(Chunk(0, std::string(17, 'x'), 17)).ok());
  ASSERT_TRUE(Add(Chunk(1, "0123456789abcdef", 16)).ok());
  EXPECT_TRUE(absl::IsOutOfRange(results_[0].status));
  EXPECT_EQ(results_[0].payload_bytes, 17u);
  EXPECT_TRUE(results_[1].status.ok());
  EXPECT_EQ(Target(1), "0123456789abcdef");
}

TEST_F(GetAssemblerTest, RefusesWhatContradictsItself) {
  const auto fails_with = [&](const v1::GetResponse& response, const char* message) {
    const absl::Status status = Add(response);
    EXPECT_TRUE(absl::IsInternal(status));
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
    assembler_.emplace(target_pointers_, planes_, result_pointers_);
  };
  fails_with(Chunk(2, "", 0), "block 2 of 2");
  fails_with(Chunk(4'000'000'000u, "", 0), "of 2");
  fails_with(Chunk(0, "abc", std::nullopt), "before its result");
  fails_with(Chunk(0, "abc", 2), "more bytes of block 0");
  v1::GetResponse twice = Chunk(0, "", 4);
  *twice.add_chunks() = twice.chunks(0);
  fails_with(twice, "two results for block 0");
  v1::GetResponse short_payload = Chunk(0, "abc", 16);
  short_payload.mutable_chunks(0)->set_bytes(4);
  fails_with(short_payload, "do not agree");
  short_payload.mutable_chunks(0)->set_bytes(UINT64_MAX);
  fails_with(short_payload, "do not agree");
  v1::GetResponse long_payload = Chunk(0, "abcd", 16);
  long_payload.mutable_chunks(0)->set_bytes(3);
  fails_with(long_payload, "do not agree");
  v1::GetResponse no_payload = Chunk(0, "", 16);
  no_payload.mutable_chunks(0)->set_bytes(3);
  fails_with(no_payload, "without a payload");
  v1::GetResponse error_with_bytes = Chunk(0, "abc", 3);
  error_with_bytes.mutable_chunks(0)->mutable_result()->mutable_status()->set_code(15);
  fails_with(error_with_bytes, "both an error and bytes");
}

TEST_F(GetAssemblerTest, RefusesAPayloadBeforeItsChunks) {
  const std::string message = Chunk(0, "0123", 16).SerializeAsString();
  const size_t payload = message.find(
      "\x7a\x04"
      "0123");
  ASSERT_NE(payload, std::string::npos);
  const absl::Status status = Add(message.substr(payload) + message.substr(0, payload));
  EXPECT_TRUE(absl::IsInternal(status)) << status;
}

TEST_F(GetAssemblerTest, NeverAcceptsATruncatedMessageAsWhole) {
  const std::string message = Chunk(0, "0123456789abcdef", 16).SerializeAsString();
  for (size_t bytes = 1; bytes < message.size(); ++bytes) {
    assembler_.emplace(target_pointers_, planes_, result_pointers_);
    const absl::Status status = Add(message.substr(0, bytes));
    EXPECT_FALSE(status.ok() && assembler_->complete(0)) << bytes;
  }
}

TEST_F(GetAssemblerTest, SurvivesEveryChangedByte) {
  const std::string message = Chunk(0, "0123456789abcdef", 16).SerializeAsString();
  for (size_t i = 0; i < message.size(); ++i) {
    for (int value = 0; value < 256; ++value) {
      assembler_.emplace(target_pointers_, planes_, result_pointers_);
      std::string changed = message;
      changed[i] = static_cast<char>(value);
      Add(changed, 5).IgnoreError();
    }
  }
}

}  // namespace
}  // namespace nqkv::client
