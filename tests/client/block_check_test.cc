#include "client/block_check.h"

#include <cmath>
#include <cstring>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/codec.h"
#include "tests/support/safetensors_file.h"

namespace nqkv::client {
namespace {

using ::testing::HasSubstr;

// A capture of two blocks, and what a right server answers for its first one in nqkv4-g64.
class BlockCheckTest : public ::testing::Test {
 protected:
  static constexpr uint32_t kTokens = 16, kHeads = 2, kChannels = 64;

  BlockCheckTest() : file_(testing::CaptureBytes(2 * kTokens, /*layers=*/2, kHeads, kChannels)) {
    auto parsed = Safetensors::Parse({reinterpret_cast<const std::byte*>(file_.data()), file_.size()});
    capture_.emplace(*Capture::FromSafetensors(*std::move(parsed), kTokens));
    check_.emplace(&*capture_);
    for (size_t plane = 0; plane < 4; ++plane) AddPlane(plane, 0, kHeads);
    result_.stored_bytes += 200;  // Header and table.
  }

  void AddPlane(size_t plane, uint32_t head_begin, uint32_t head_end) {
    const nqkv::PlaneShape shape{.tokens = kTokens, .heads = head_end - head_begin, .channels = kChannels};
    const nqkv::PlaneCodec codec{.id = nqkv::CodecId::kNqkv4, .scale_group = 64};
    std::vector<std::byte> encoded(nqkv::EncodedBytes(codec, shape));
    const ptrdiff_t head_stride = kChannels * 2, token_stride = kHeads * head_stride;
    const auto result = nqkv::EncodePlane({.source = capture_->Plane(0, plane).data() + head_begin * head_stride,
                                           .token_stride = token_stride,
                                           .head_stride = head_stride,
                                           .shape = shape,
                                           .codec = codec,
                                           .encoded = encoded});
    const size_t plane_bytes = capture_->Plane(0, plane).size();
    payload_.resize(std::max(payload_.size(), (plane + 1) * plane_bytes));
    nqkv::DecodePlane({.encoded = encoded,
                       .shape = shape,
                       .codec = codec,
                       .head_begin = 0,
                       .head_end = shape.heads,
                       .dtype = nqkv::Dtype::kFloat16,
                       .target = payload_.data() + plane * plane_bytes + head_begin * head_stride,
                       .token_stride = token_stride,
                       .head_stride = head_stride});
    result_.planes.push_back({.layer = static_cast<uint32_t>(plane / 2),
                              .role = plane % 2 == 0 ? PlaneRole::kKey : PlaneRole::kValue,
                              .heads = {head_begin, head_end},
                              .codec = Codec::kNqkv4,
                              .scale_group = 64,
                              .layout = PlaneLayout::kHead,
                              .stored_bytes = encoded.size(),
                              .floor_error = result.errors.floor_error,
                              .token_norm_error = result.errors.token_norm_error,
                              .nmse = result.errors.nmse,
                              .crc32c = result.crc32c});
    result_.stored_bytes += encoded.size();
  }
  void ExpectDifference(const char* message) {
    const absl::Status status = check_->Check(0, payload_, result_);
    EXPECT_TRUE(absl::IsDataLoss(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
  }

  std::string file_;
  std::optional<Capture> capture_;
  std::optional<BlockCheck> check_;
  std::vector<std::byte> payload_;
  GetResult result_;
};

TEST_F(BlockCheckTest, AddsUpWhatIsRight) {
  ASSERT_TRUE(check_->Check(0, payload_, result_).ok());
  const RoleTotals& keys = check_->totals().at(PlaneRole::kKey);
  EXPECT_EQ(keys.planes, 2u);
  EXPECT_EQ(keys.elements, 2u * kTokens * kHeads * kChannels);
  EXPECT_EQ(keys.raw_bytes, keys.elements * 2);
  EXPECT_EQ(keys.codecs.at("nqkv4-g64"), 2u);
  // 4 bits and 16 for each 64; half of the 200 bytes on top.
  EXPECT_NEAR(keys.bits_an_element(), 4.25 + 100.0 * 8 / static_cast<double>(keys.elements), 1e-9);
  EXPECT_GT(keys.nmse(), 0);
  EXPECT_LT(keys.nmse(), 0.05);
  EXPECT_LT(keys.cosine, 1);
  EXPECT_GT(keys.cosine, 0.9);
  EXPECT_EQ(keys.floor_error, std::max(result_.planes[0].floor_error, result_.planes[2].floor_error));
}

TEST_F(BlockCheckTest, MeasuresTheErrorOfTheWholeRole) {
  ASSERT_TRUE(check_->Check(0, payload_, result_).ok());
  // The planes' own figures, weighted alike since their energies nearly are.
  const double mean = (result_.planes[0].nmse + result_.planes[2].nmse) / 2;
  EXPECT_NEAR(check_->totals().at(PlaneRole::kKey).nmse(), mean, 0.05 * mean);
}

TEST_F(BlockCheckTest, FindsASingleWrongBit) {
  payload_[payload_.size() / 2 + 77] ^= std::byte{1};
  ExpectDifference("block 0, layer 1, key: byte 77 differs");
}

TEST_F(BlockCheckTest, FindsAWrongChecksum) {
  result_.planes[3].crc32c ^= 1;
  ExpectDifference("layer 1, value: its CRC32C differs");
}

TEST_F(BlockCheckTest, FindsWrongErrors) {
  result_.planes[0].floor_error = std::nextafter(result_.planes[0].floor_error, 1.0f);
  ExpectDifference("layer 0, key: its errors differ");
}

TEST_F(BlockCheckTest, FindsAWrongSize) {
  ++result_.planes[0].stored_bytes;
  ExpectDifference("stored bytes, the codec makes");
}

TEST_F(BlockCheckTest, FindsAnUnknownCodec) {
  result_.planes[0].scale_group = 65;
  ExpectDifference("layer 0, key");
}

TEST_F(BlockCheckTest, FindsAMissingPlane) {
  result_.planes.pop_back();
  ExpectDifference("layer 1, value: its stored parts do not make it whole");
}

TEST_F(BlockCheckTest, FindsAStrangePlane) {
  result_.planes[0].layer = 9;
  ExpectDifference("a plane that the spec lacks");
}

TEST_F(BlockCheckTest, FindsAPayloadThatIsTooShort) {
  payload_.pop_back();
  ExpectDifference("which the planes contradict");
}

TEST_F(BlockCheckTest, TakesAPlaneStoredInParts) {
  GetResult whole = std::move(result_);
  result_ = {};
  AddPlane(0, 0, 1);
  AddPlane(0, 1, 2);
  for (size_t plane = 1; plane < 4; ++plane) AddPlane(plane, 0, kHeads);
  EXPECT_TRUE(check_->Check(0, payload_, result_).ok());
  EXPECT_EQ(check_->totals().at(PlaneRole::kKey).codecs.at("nqkv4-g64"), 3u);
}

}  // namespace
}  // namespace nqkv::client
