#include "kernels/block_encoder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>

#include "tests/kernels/plane_values.h"

namespace nqkv {
namespace {

using ::testing::HasSubstr;

GroupLayout Group(Dtype dtype = Dtype::kFloat16) {
  GroupLayout group{.id = 3, .block_tokens = 16, .planes = {}};
  for (uint16_t layer = 1; layer <= 4; ++layer) {
    group.planes.push_back({.layer = layer, .role = PlaneRole::kKey, .heads = 4, .channels = 64, .dtype = dtype});
    group.planes.push_back({.layer = layer, .role = PlaneRole::kValue, .heads = 4, .channels = 64, .dtype = dtype});
  }
  return group;
}

class BlockEncoderTest : public ::testing::Test {
 protected:
  static BlockHeader Header(const PartRange& range) { return {.layer_group = 3, .tokens = 16, .range = range}; }
  absl::Status Add(BlockEncoder& encoder, const Plane& plane) {
    return encoder.Add(plane.bytes.data(), plane.token_stride, plane.head_stride, block_);
  }
  absl::StatusOr<BlockView> Finished(BlockEncoder& encoder) {
    summary_ = encoder.Finish(block_);
    return BlockView::Parse(std::span(block_).first(encoder.bytes_used()));
  }
  Plane Normal(const BlockEncoder& encoder) { return NormalPlane(encoder.next_shape(), ++seed_); }
  static Plane WithOffsetChannels(const BlockEncoder& encoder) {
    return FilledPlane(encoder.next_shape(), [](size_t t, size_t, size_t c) {
      return c % 16 == 0 ? 50.0f : 0.1f * static_cast<float>((t * 31 + c * 17) % 13);
    });
  }
  // No scale fits: not a channel's, since its first token is far larger than the others, nor a token's.
  static Plane Unkind(const BlockEncoder& encoder) {
    Plane plane = WithOffsetChannels(encoder);
    for (size_t h = 0; h < plane.shape.heads; ++h) {
      for (size_t c = 0; c < plane.shape.channels; ++c) plane.set(0, h, c, 100 * plane.at(0, h, c));
    }
    return plane;
  }

  std::vector<std::byte> block_ = std::vector<std::byte>(1 << 20, std::byte{0x77});
  BlockEncoder::Summary summary_;
  uint32_t seed_ = 0;
};

TEST_F(BlockEncoderTest, BuildsABlockThatParsesAndDecodes) {
  CodecPlan plan({}, Group());
  BlockEncoder encoder(&plan, Header(WholeRange(plan.group())));
  std::vector<Plane> planes;
  while (!encoder.done()) {
    planes.push_back(Normal(encoder));
    ASSERT_TRUE(Add(encoder, planes.back()).ok());
  }
  const absl::StatusOr<BlockView> view = Finished(encoder);
  ASSERT_TRUE(view.ok()) << view.status();
  ASSERT_EQ(view->plane_count(), 8u);
  for (size_t i = 0; i < 8; ++i) {
    const PlaneEntry entry = view->plane(i);
    EXPECT_TRUE(view->CheckPlane(entry).ok());
    EXPECT_EQ(entry.codec, Nqkv4(64));
    EXPECT_LT(entry.errors.floor_error, 0.02f);
    const auto bytes = view->plane_bytes(entry);
    EXPECT_EQ(std::vector<std::byte>(bytes.begin(), bytes.end()), Encode(planes[i], Nqkv4(64)).bytes);
  }
  EXPECT_EQ(summary_.raw_bytes, RawBytes(plan.group(), WholeRange(plan.group())));
  EXPECT_EQ(summary_.fallback_planes, 0u);
  EXPECT_GT(summary_.worst.nmse, 0);
  EXPECT_EQ(encoder.bytes_used(), plan.EncodedBytesMin(WholeRange(plan.group())));
}

TEST_F(BlockEncoderTest, ExpectsThePlanesOfItsPartOnly) {
  CodecPlan plan({}, Group());
  BlockEncoder encoder(&plan, Header({2, 3, 1, 3}));
  EXPECT_EQ(encoder.next_plane().layer, 2);
  EXPECT_EQ(encoder.next_shape(), (PlaneShape{16, 2, 64, Dtype::kFloat16}));
  ASSERT_TRUE(Add(encoder, Normal(encoder)).ok());
  EXPECT_EQ(encoder.next_plane().role, PlaneRole::kValue);
  ASSERT_TRUE(Add(encoder, Normal(encoder)).ok());
  EXPECT_TRUE(encoder.done());
  EXPECT_TRUE(Finished(encoder).ok());
}

TEST_F(BlockEncoderTest, AutoStoresAPlaneOverTheBoundRawAndRemembers) {
  CodecPlan plan({}, Group());
  for (int block = 0; block < 2; ++block) {
    BlockEncoder encoder(&plan, Header({1, 2, 0, 4}));
    const Plane keys = Unkind(encoder);
    ASSERT_TRUE(Add(encoder, keys).ok());
    ASSERT_TRUE(Add(encoder, Normal(encoder)).ok());
    const absl::StatusOr<BlockView> view = Finished(encoder);
    ASSERT_TRUE(view.ok()) << view.status();
    EXPECT_EQ(view->plane(0).codec, kRawCodec);
    EXPECT_EQ(view->plane(0).errors.floor_error, 0);
    EXPECT_EQ(view->plane(1).codec, Nqkv4(64));
    EXPECT_EQ(summary_.fallback_planes, 1u);
  }
  EXPECT_EQ(plan.Choose(0).id, CodecId::kRaw);
}

TEST_F(BlockEncoderTest, AutoStoresAPlaneOverTheBoundInTheCheapestCodecThatHolds) {
  CodecPlan plan({}, Group());
  BlockEncoder encoder(&plan, Header({1, 2, 0, 4}));
  ASSERT_TRUE(Add(encoder, WithOffsetChannels(encoder)).ok());
  ASSERT_TRUE(Add(encoder, Normal(encoder)).ok());
  const absl::StatusOr<BlockView> view = Finished(encoder);
  ASSERT_TRUE(view.ok()) << view.status();
  EXPECT_EQ(view->plane(0).codec, Nqkv4h(64, 4));
  EXPECT_TRUE(view->CheckPlane(view->plane(0)).ok());
  EXPECT_LE(view->plane(0).errors.floor_error, plan.policy().floor_error_max);
  EXPECT_EQ(view->plane(1).codec, Nqkv4(64));
  EXPECT_EQ(summary_.fallback_planes, 0u);
}

TEST_F(BlockEncoderTest, ABlockThatBeginsASequenceHasKeysOfEightBits) {
  CodecPlan plan({}, Group());
  BlockHeader header = Header({1, 2, 0, 4});
  header.first_in_sequence = true;
  BlockEncoder encoder(&plan, header);
  while (!encoder.done()) ASSERT_TRUE(Add(encoder, Normal(encoder)).ok());
  const absl::StatusOr<BlockView> view = Finished(encoder);
  ASSERT_TRUE(view.ok()) << view.status();
  EXPECT_EQ(view->plane(0).codec.id, CodecId::kQ8);
  EXPECT_EQ(view->plane(1).codec, Nqkv4(64));
  EXPECT_EQ(encoder.bytes_used(), plan.EncodedBytesTypical({1, 2, 0, 4}, true));
}

TEST_F(BlockEncoderTest, SaysHowMuchRoomItNeedsAndGoesOnInALargerBlock) {
  CodecPlan plan({}, Group());
  BlockEncoder encoder(&plan, Header({1, 2, 0, 4}));
  const Plane keys = Unkind(encoder);
  const std::vector<std::byte> whole = block_;
  block_.resize(PlanesOffset(2) + 16 * 4 * 34);  // Enough for nqkv4, which the plane will not get.
  absl::Status status = Add(encoder, keys);
  for (; absl::IsResourceExhausted(status); status = Add(encoder, keys)) {
    ASSERT_GT(encoder.bytes_needed(), block_.size());
    block_.resize(encoder.bytes_needed());
  }
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(encoder.bytes_needed(), PlanesOffset(2) + keys.shape.raw_bytes());
  block_.resize(1 << 20);
  ASSERT_TRUE(Add(encoder, Normal(encoder)).ok());
  const absl::StatusOr<BlockView> view = Finished(encoder);
  ASSERT_TRUE(view.ok()) << view.status();
  EXPECT_EQ(view->plane(0).codec, kRawCodec);
}

TEST_F(BlockEncoderTest, ARepeatedCallCountsAsOneBlock) {
  CodecPlan plan({}, Group());
  plan.Accept(0, Nqkv4h(64, 4), {.in_scale_range = false});  // 63 blocks of q8 to come.
  BlockEncoder encoder(&plan, Header({1, 2, 0, 4}));
  const Plane keys = Normal(encoder);
  block_.resize(PlanesOffset(2));
  for (int i = 0; i < 10; ++i) EXPECT_FALSE(Add(encoder, keys).ok());
  for (int block = 1; block < 63; ++block) EXPECT_EQ(plan.Choose(0).id, CodecId::kQ8);
  EXPECT_EQ(plan.Choose(0), Nqkv4h(64, 4));
}

TEST_F(BlockEncoderTest, RefusesNanAndInfinityNamingThePlane) {
  for (CodecChoice choice : {CodecChoice::kAuto, CodecChoice::kRaw, CodecChoice::kNqkv4}) {
    CodecPlan plan({.codec = choice}, Group());
    BlockEncoder encoder(&plan, Header({1, 2, 0, 4}));
    Plane keys = Normal(encoder);
    keys.set(15, 3, 63, std::numeric_limits<float>::quiet_NaN());
    const absl::Status status = Add(encoder, keys);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("layer 1"));
    EXPECT_EQ(encoder.next_plane().role, PlaneRole::kKey);  // Nothing was added.
    keys.set(15, 3, 63, 1.0f);
    EXPECT_TRUE(Add(encoder, keys).ok());
  }
}

TEST_F(BlockEncoderTest, StoresNanAndInfinityRawWhereAllowed) {
  CodecPlan plan({.allow_non_finite = true}, Group());
  BlockEncoder encoder(&plan, Header({1, 2, 0, 4}));
  Plane keys = Normal(encoder);
  keys.set(3, 2, 1, std::numeric_limits<float>::infinity());
  ASSERT_TRUE(Add(encoder, keys).ok());
  ASSERT_TRUE(Add(encoder, Normal(encoder)).ok());
  const absl::StatusOr<BlockView> view = Finished(encoder);
  ASSERT_TRUE(view.ok());
  EXPECT_EQ(view->plane(0).codec, kRawCodec);
  EXPECT_EQ(view->plane(1).codec, Nqkv4(64));
}

TEST_F(BlockEncoderTest, StoresRawWhatHasNoFloat16Scale) {
  for (CodecChoice choice : {CodecChoice::kAuto, CodecChoice::kNqkv4}) {
    CodecPlan plan({.codec = choice}, Group(Dtype::kBfloat16));
    BlockEncoder encoder(&plan, Header({1, 2, 0, 4}));
    Plane keys = Normal(encoder);
    keys.set(0, 0, 0, 1e6f);
    ASSERT_TRUE(Add(encoder, keys).ok());
    ASSERT_TRUE(Add(encoder, Normal(encoder)).ok());
    const absl::StatusOr<BlockView> view = Finished(encoder);
    ASSERT_TRUE(view.ok());
    EXPECT_EQ(view->plane(0).codec, kRawCodec);
    EXPECT_EQ(summary_.fallback_planes, 1u);
  }
}

TEST_F(BlockEncoderTest, ARawPolicyHasNoFallbacks) {
  CodecPlan plan({.codec = CodecChoice::kRaw}, Group());
  BlockEncoder encoder(&plan, Header({1, 2, 0, 4}));
  while (!encoder.done()) ASSERT_TRUE(Add(encoder, Normal(encoder)).ok());
  ASSERT_TRUE(Finished(encoder).ok());
  EXPECT_EQ(summary_.fallback_planes, 0u);
}

}  // namespace
}  // namespace nqkv
