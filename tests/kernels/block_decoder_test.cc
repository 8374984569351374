#include "kernels/block_decoder.h"

#include <gtest/gtest.h>

#include <vector>

#include "kernels/block_encoder.h"
#include "tests/kernels/plane_values.h"

namespace nqkv {
namespace {

constexpr uint16_t kHeads = 8;
constexpr uint32_t kChannels = 64;

GroupLayout Group() {
  GroupLayout group{.id = 0, .block_tokens = 16, .planes = {}};
  for (uint16_t layer = 2; layer < 6; ++layer) {
    group.planes.push_back({.layer = layer, .role = PlaneRole::kKey, .heads = kHeads, .channels = kChannels});
    group.planes.push_back({.layer = layer, .role = PlaneRole::kValue, .heads = kHeads, .channels = kChannels});
  }
  return group;
}

class BlockDecoderTest : public ::testing::Test {
 protected:
  explicit BlockDecoderTest(const CodecPolicy& policy = {}) : policy_(policy) {
    for (uint32_t i = 0; i < group_.planes.size(); ++i) {
      planes_.push_back(NormalPlane({16, kHeads, kChannels, Dtype::kFloat16}, i));
    }
  }

  // What a worker with this shard would have put.
  std::vector<std::byte> Part(const PartRange& range) {
    CodecPlan plan(policy_, group_);
    BlockEncoder encoder(&plan, {.tokens = 16, .range = range});
    std::vector<std::byte> block(plan.EncodedBytesMax(range));
    for (size_t i = PlanesIn(group_, range).first; !encoder.done(); ++i) {
      const Plane& plane = planes_[i];
      EXPECT_TRUE(encoder.Add(plane.row(0, range.head_begin), plane.token_stride, plane.head_stride, block).ok());
    }
    encoder.Finish(block);
    block.resize(encoder.bytes_used());
    return block;
  }
  void Store(const PartRange& range) {
    blocks_.push_back(Part(range));
    const absl::StatusOr<BlockView> view = BlockView::Parse(blocks_.back());
    ASSERT_TRUE(view.ok()) << view.status();
    views_.push_back(*view);
  }

  absl::Status DecodeRange(size_t plane, const PartRange& needed, Dtype dtype, std::vector<std::byte>& target,
                           bool checked = false) {
    PlaneRangeRequest request{.group = &group_, .plane = plane, .needed = needed, .parts = views_, .dtype = dtype};
    target.assign(PlaneRangeBytes(request), std::byte{0});
    request.target = target.data();
    request.checked = checked;
    return DecodePlaneRange(request);
  }

  // A group never crosses a head, so what is decoded does not depend on how the heads were split.
  std::vector<std::byte> Want(size_t plane, const PartRange& needed, Dtype dtype) {
    const PlaneShape& shape = planes_[plane].shape;
    const PlaneCodec codec = policy_.codec == CodecChoice::kRaw ? kRawCodec : Nqkv4(64);
    const Plane whole = Decode(Encode(planes_[plane], codec).bytes, shape, codec, dtype);
    std::vector<std::byte> want;
    for (size_t t = 0; t < shape.tokens; ++t) {
      for (size_t h = needed.head_begin; h < needed.head_end; ++h) {
        const std::byte* row = whole.row(t, h);
        want.insert(want.end(), row, row + kChannels * DtypeBytes(dtype));
      }
    }
    return want;
  }

  CodecPolicy policy_;
  GroupLayout group_ = Group();
  std::vector<Plane> planes_;
  std::vector<std::vector<std::byte>> blocks_;
  std::vector<BlockView> views_;
};

class RawBlockDecoderTest : public BlockDecoderTest {
 protected:
  RawBlockDecoderTest() : BlockDecoderTest({.codec = CodecChoice::kRaw}) {}
};

TEST_F(BlockDecoderTest, ServesAnyShardSizeFromAnyOther) {
  for (uint16_t head = 0; head < kHeads; head += 2) {  // Saved at tensor parallel 4.
    Store({2, 4, head, static_cast<uint16_t>(head + 2)});
    Store({4, 6, head, static_cast<uint16_t>(head + 2)});
  }
  for (uint16_t heads : {1, 2, 3, 4, 8}) {
    for (uint16_t begin = 0; begin + heads <= kHeads; ++begin) {
      const PartRange needed{2, 6, begin, static_cast<uint16_t>(begin + heads)};
      for (size_t plane : {size_t{0}, size_t{3}, size_t{7}}) {
        for (Dtype dtype : {Dtype::kFloat16, Dtype::kBfloat16, Dtype::kFloat32}) {
          std::vector<std::byte> got;
          ASSERT_TRUE(DecodeRange(plane, needed, dtype, got).ok());
          ASSERT_EQ(got, Want(plane, needed, dtype));
        }
      }
    }
  }
}

TEST_F(BlockDecoderTest, PartsMayOverlap) {
  Store({2, 6, 0, 5});
  Store({2, 6, 3, 8});
  Store({3, 4, 0, 8});
  std::vector<std::byte> got;
  for (size_t plane = 0; plane < group_.planes.size(); ++plane) {
    ASSERT_TRUE(DecodeRange(plane, {2, 6, 0, 8}, Dtype::kFloat16, got).ok());
    ASSERT_EQ(got, Want(plane, {2, 6, 0, 8}, Dtype::kFloat16));
  }
}

TEST_F(RawBlockDecoderTest, RawPlanesComeBackAsTheyWere) {
  Store({2, 6, 0, 4});
  Store({2, 6, 4, 8});
  std::vector<std::byte> got;
  ASSERT_TRUE(DecodeRange(5, {2, 6, 0, 8}, Dtype::kFloat16, got).ok());
  EXPECT_EQ(got, planes_[5].bytes);
}

TEST_F(BlockDecoderTest, DamageIsDataLossWhereItIsAndNowhereElse) {
  Store({2, 6, 0, 8});
  const PlaneEntry entry = views_[0].plane(3);
  blocks_[0][entry.offset + 5] ^= std::byte{4};
  std::vector<std::byte> got;
  EXPECT_EQ(DecodeRange(3, {2, 6, 0, 8}, Dtype::kFloat16, got).code(), absl::StatusCode::kDataLoss);
  EXPECT_TRUE(DecodeRange(2, {2, 6, 0, 8}, Dtype::kFloat16, got).ok());
}

TEST_F(BlockDecoderTest, ChecksNothingAgainThatItsCallerHasChecked) {
  Store({2, 6, 0, 8});
  const PlaneEntry entry = views_[0].plane(3);
  blocks_[0][entry.offset + 5] ^= std::byte{4};
  std::vector<std::byte> got;
  EXPECT_TRUE(DecodeRange(3, {2, 6, 0, 8}, Dtype::kFloat16, got, /*checked=*/true).ok());
}

TEST_F(BlockDecoderTest, AHoleInTheCoverageIsAnError) {
  Store({2, 6, 0, 3});
  Store({2, 6, 4, 8});
  std::vector<std::byte> got;
  EXPECT_EQ(DecodeRange(0, {2, 6, 0, 8}, Dtype::kFloat16, got).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(DecodeRange(0, {2, 6, 4, 8}, Dtype::kFloat16, got).ok());
}

TEST_F(BlockDecoderTest, APartOfAnotherGroupIsAnError) {
  Store({2, 6, 0, 8});
  std::vector<std::byte> got;
  group_.block_tokens = 32;
  EXPECT_EQ(DecodeRange(0, {2, 6, 0, 8}, Dtype::kFloat16, got).code(), absl::StatusCode::kFailedPrecondition);
  group_.block_tokens = 16;
  group_.planes[0].channels = 128;
  EXPECT_EQ(DecodeRange(0, {2, 6, 0, 8}, Dtype::kFloat16, got).code(), absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace nqkv
