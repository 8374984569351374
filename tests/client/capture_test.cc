#include "client/capture.h"

#include <cstdlib>
#include <fstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/safetensors_file.h"
#include "tests/support/temp_dir.h"

namespace nqkv::client {
namespace {

using ::testing::HasSubstr;
using testing::SafetensorsBuilder;

class CaptureTest : public ::testing::Test {
 protected:
  absl::StatusOr<Capture> Load(const std::string& bytes, uint32_t block_tokens = 4) {
    bytes_ = bytes;
    auto file = Safetensors::Parse({reinterpret_cast<const std::byte*>(bytes_.data()), bytes_.size()});
    EXPECT_TRUE(file.ok()) << file.status();
    return Capture::FromSafetensors(*std::move(file), block_tokens);
  }
  void ExpectRefused(const SafetensorsBuilder& builder, const char* message) {
    const absl::Status status = Load(builder.Build()).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status));
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
  }
  static std::string Ids(std::vector<int32_t> ids) {
    return std::string(reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof(int32_t));
  }
  SafetensorsBuilder FourTokens() { return SafetensorsBuilder().Add("tokens", "I32", {4}, Ids({1, 2, 3, 4})); }

  std::string bytes_;
};

TEST_F(CaptureTest, DescribesTheModelAndItsBlocks) {
  const auto capture = Load(testing::CaptureBytes(/*tokens=*/10, /*layers=*/3, /*heads=*/2, /*channels=*/8));
  ASSERT_TRUE(capture.ok()) << capture.status();
  EXPECT_EQ(capture->spec().model, "test/model");
  EXPECT_EQ(capture->group().planes.size(), 6u);
  EXPECT_EQ(capture->group().planes[3],
            (PlaneSpec{.layer = 1, .role = PlaneRole::kValue, .heads = 2, .channels = 8, .dtype = Dtype::kFloat16}));
  EXPECT_EQ(capture->block_count(), 2u);  // Two tokens are left over.
  EXPECT_EQ(capture->block_bytes(), 6u * 4 * 2 * 8 * 2);
  EXPECT_EQ(capture->tokens()[1], 1007u);
}

TEST_F(CaptureTest, GivesABlockAsItsPlanes) {
  const auto capture = Load(testing::CaptureBytes(8, 1, 2, 8));
  ASSERT_TRUE(capture.ok()) << capture.status();
  const PutBlock block = capture->Block(1, "key");
  EXPECT_EQ(block.key, "key");
  EXPECT_EQ(block.token_start, 4u);
  EXPECT_FALSE(block.first_in_sequence);
  ASSERT_EQ(block.planes.size(), 2u);
  EXPECT_EQ(block.planes[1].data, capture->Plane(1, 1).data());
  EXPECT_EQ(capture->Plane(1, 1).data(), capture->Plane(0, 1).data() + 4 * 2 * 8 * 2);
}

TEST_F(CaptureTest, RefusesWhatIsNoCapture) {
  const std::string plane(4 * 8 * 2, 'x');
  ExpectRefused(SafetensorsBuilder(), "no tensor 'tokens'");
  ExpectRefused(SafetensorsBuilder().Add("tokens", "F32", {1}, "abcd"), "neither I32 nor I64");
  ExpectRefused(SafetensorsBuilder().Add("tokens", "I32", {2, 1}, Ids({1, 2})), "one dimension");
  ExpectRefused(SafetensorsBuilder().Add("tokens", "I32", {1}, Ids({-1})), "tokens[0] is -1");
  ExpectRefused(FourTokens(), "no tensor layers.0.key");
  ExpectRefused(FourTokens().Add("layers.0.key", "F16", {4, 1, 8}, plane), "no tensor layers.0.value");
  ExpectRefused(FourTokens().Add("layers.0.key", "F16", {32}, plane), "does not have the shape");
  ExpectRefused(FourTokens().Add("layers.0.key", "F16", {2, 2, 8}, plane), "does not have the shape");
  ExpectRefused(FourTokens().Add("layers.0.key", "I16", {4, 1, 8}, plane), "no KV dtype");
}

TEST_F(CaptureTest, RefusesACaptureShorterThanABlock) {
  EXPECT_THAT(std::string(Load(testing::CaptureBytes(10, 1, 1, 8), 16).status().message()),
              HasSubstr("10 tokens do not fill a block of 16"));
}

TEST_F(CaptureTest, TakesTheDefaultFromTheEnvironment) {
  setenv("NQKV_CAPTURE", "/somewhere/else", 1);
  EXPECT_EQ(*Capture::DefaultPath(), "/somewhere/else");
  unsetenv("NQKV_CAPTURE");
}

TEST_F(CaptureTest, FindsAndReadsTheRealOne) {
  const auto path = Capture::DefaultPath();
  if (!path.ok()) GTEST_SKIP() << "the build folder lies outside the source tree: " << path.status();
  const auto capture = Capture::Load(*path, 64);
  ASSERT_TRUE(capture.ok()) << capture.status();
  EXPECT_GE(capture->tokens().size(), 256u);
  EXPECT_EQ(capture->group().planes.size(), 60u);
}

}  // namespace
}  // namespace nqkv::client
