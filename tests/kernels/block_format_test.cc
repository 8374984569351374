#include "kernels/block_format.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "kernels/block_encoder.h"
#include "tests/kernels/plane_values.h"

namespace nqkv {
namespace {

using ::testing::HasSubstr;

// Two planes whose first length is no multiple of 16, so that there is padding between them.
GroupLayout Group() {
  return {.id = 7,
          .block_tokens = 3,
          .planes = {{.layer = 5, .role = PlaneRole::kKey, .heads = 2, .channels = 24, .dtype = Dtype::kFloat16},
                     {.layer = 6, .role = PlaneRole::kValue, .heads = 2, .channels = 8, .dtype = Dtype::kBfloat16}}};
}

class BlockFormatTest : public ::testing::Test {
 protected:
  BlockFormatTest() : plan_({.codec = CodecChoice::kNqkv4}, Group()) {
    for (size_t i = 0; i < header_.fingerprint.size(); ++i) header_.fingerprint[i] = static_cast<std::byte>(i + 1);
    header_.layer_group = 7;
    header_.tokens = 3;
    header_.range = {5, 7, 2, 4};
    header_.provenance = Provenance::kOnLossyPrefix;
    header_.measurer = Measurer::kClient;
    header_.first_in_sequence = true;
    header_.token_start = (uint64_t{1} << 48) - 1;
    BlockEncoder encoder(&plan_, header_);
    block_.resize(4096);
    while (!encoder.done()) {
      const Plane plane = NormalPlane(encoder.next_shape(), 1);
      EXPECT_TRUE(encoder.Add(plane.bytes.data(), plane.token_stride, plane.head_stride, block_).ok());
    }
    encoder.Finish(block_);
    block_.resize(encoder.bytes_used());
  }

  template <typename T>
  void Poke(size_t offset, T value) {
    std::memcpy(block_.data() + offset, &value, sizeof(value));
  }
  // What a hostile writer would do: the CRC is right again.
  void Sign() {
    uint16_t planes;
    std::memcpy(&planes, block_.data() + 36, sizeof(planes));
    const uint32_t crc = Crc32c(std::span(block_).first(60));
    Poke(60, ExtendCrc32c(crc, std::span(block_).subspan(64, planes * size_t{40})));
  }
  std::string Refusal() {
    const absl::StatusOr<BlockView> view = BlockView::Parse(block_);
    EXPECT_EQ(view.status().code(), absl::StatusCode::kInvalidArgument) << view.status();
    return std::string(view.status().message());
  }

  CodecPlan plan_;
  BlockHeader header_;
  std::vector<std::byte> block_;
};

TEST_F(BlockFormatTest, ParsesWhatWasWritten) {
  const absl::StatusOr<BlockView> view = BlockView::Parse(block_);
  ASSERT_TRUE(view.ok()) << view.status();
  EXPECT_EQ(view->header().fingerprint, header_.fingerprint);
  EXPECT_EQ(view->header().layer_group, 7);
  EXPECT_EQ(view->header().tokens, 3);
  EXPECT_EQ(view->header().range, header_.range);
  EXPECT_EQ(view->header().provenance, Provenance::kOnLossyPrefix);
  EXPECT_EQ(view->header().measurer, Measurer::kClient);
  EXPECT_TRUE(view->header().first_in_sequence);
  EXPECT_EQ(view->header().token_start, header_.token_start);
  ASSERT_EQ(view->plane_count(), 2u);
  EXPECT_EQ(view->plane(1).layer, 6);
  EXPECT_EQ(view->plane(1).dtype, Dtype::kBfloat16);
  EXPECT_EQ(view->shape(view->plane(0)), (PlaneShape{3, 2, 24, Dtype::kFloat16}));
  EXPECT_TRUE(view->CheckPlane(view->plane(0)).ok());
  EXPECT_TRUE(view->CheckPlane(view->plane(1)).ok());
}

struct Mutation {
  const char* field;
  size_t offset;
  uint64_t value;
  size_t bytes;
};

TEST_F(BlockFormatTest, RefusesEachFieldThatLiesAndNamesIt) {
  const size_t first = 64, second = 104;
  const std::vector<Mutation> mutations = {
      {"magic", 0, 0x564b514f, 4},
      {"version", 4, 2, 2},
      {"flags", 6, 2, 2},
      {"tokens", 26, 0, 2},
      {"tokens", 26, 1025, 2},
      {"layer_end", 30, 5, 2},
      {"head_end", 34, 2, 2},
      {"head_end", 34, 1025, 2},
      {"plane_count", 36, 0, 2},
      {"plane_count", 36, 65535, 2},
      {"offset", 36, 1, 2},  // A shorter table: planes would start earlier.
      {"provenance", 38, 0, 1},
      {"provenance", 38, 4, 1},
      {"measurer", 39, 3, 1},
      {"token_start", 40, uint64_t{1} << 48, 8},
      {"block_bytes", 48, 1, 8},
      {"block_bytes", 48, std::numeric_limits<uint64_t>::max(), 8},
      {"reserved", 56, 1, 4},
      {"layer", first, 4, 2},
      {"layer", first, 7, 2},
      {"layer", second, 5, 2},  // With the role below: a plane twice.
      {"role", first + 2, 0, 1},
      {"role", first + 2, 5, 1},
      {"dtype", first + 3, 4, 1},
      {"codec", first + 4, 9, 1},
      {"layout", first + 5, 3, 1},
      {"scale_group", first + 6, 63, 2},
      {"channels", first + 8, 0, 2},
      {"channels", first + 8, 25, 2},
      {"channels", first + 8, 8200, 2},
      {"length", first + 8, 32, 2},
      {"strong_channels", first + 10, 1, 1},
      {"reserved", first + 11, 1, 1},
      {"offset", first + 12, 0, 4},
      {"offset", first + 12, 0xfffffff0, 4},
      {"offset", second + 12, 192, 4},  // Inside the first plane.
      {"length", first + 16, 0xffffffff, 4},
      {"length", first + 16, 1, 4},
      {"floor_error", first + 20, 0x7fc00000, 4},
      {"token_norm_error", first + 24, 0xbf800000, 4},
      {"nmse", first + 28, 0xffc00000, 4},
      {"reserved", first + 36, 1, 4},
  };
  const std::vector<std::byte> good = block_;
  for (const Mutation& mutation : mutations) {
    block_ = good;
    if (mutation.offset == second && mutation.bytes == 2) Poke(second + 2, uint8_t{1});
    std::memcpy(block_.data() + mutation.offset, &mutation.value, mutation.bytes);
    if (mutation.value != 65535) Sign();
    EXPECT_THAT(Refusal(), HasSubstr(mutation.field)) << "offset " << mutation.offset << " value " << mutation.value;
  }
}

TEST_F(BlockFormatTest, RefusesAPlaneThatWouldReachBehindTheBlock) {
  Poke(26, uint16_t{1024});
  Poke(64 + 16, uint32_t{2 * 1024 * (12 + 2)});  // The length that 1024 tokens have.
  Sign();
  EXPECT_THAT(Refusal(), HasSubstr("length"));
}

TEST_F(BlockFormatTest, RefusesPaddingThatIsNotZero) {
  const absl::StatusOr<BlockView> view = BlockView::Parse(block_);
  const PlaneEntry entry = view->plane(0);
  ASSERT_NE((entry.offset + entry.length) % 16, 0u);
  block_[entry.offset + entry.length] = std::byte{1};
  EXPECT_THAT(Refusal(), HasSubstr("padding"));
}

TEST_F(BlockFormatTest, RefusesEveryTruncation) {
  const std::vector<std::byte> good = block_;
  for (size_t size = 0; size < good.size(); ++size) {
    block_.assign(good.begin(), good.begin() + static_cast<ptrdiff_t>(size));
    Refusal();
  }
}

TEST_F(BlockFormatTest, RefusesBytesBehindTheBlock) {
  block_.push_back(std::byte{0});
  EXPECT_THAT(Refusal(), HasSubstr("block_bytes"));
}

TEST_F(BlockFormatTest, NoFlippedBitPassesUnseen) {
  const std::vector<std::byte> good = block_;
  for (size_t bit = 0; bit < good.size() * 8; ++bit) {
    block_ = good;
    block_[bit / 8] ^= static_cast<std::byte>(1u << bit % 8);
    const absl::StatusOr<BlockView> view = BlockView::Parse(block_);
    const bool seen = !view.ok() || !view->CheckPlane(view->plane(0)).ok() || !view->CheckPlane(view->plane(1)).ok();
    ASSERT_TRUE(seen) << "byte " << bit / 8;
  }
}

TEST_F(BlockFormatTest, ADamagedHeaderIsDataLoss) {
  block_[60] ^= std::byte{1};
  EXPECT_EQ(BlockView::Parse(block_).status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(BlockFormatTest, ADamagedPlaneIsDataLossNamingIt) {
  block_.back() ^= std::byte{1};
  const absl::StatusOr<BlockView> view = BlockView::Parse(block_);
  ASSERT_TRUE(view.ok());
  EXPECT_TRUE(view->CheckPlane(view->plane(0)).ok());
  const absl::Status status = view->CheckPlane(view->plane(1));
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("layer 6"));
}

}  // namespace
}  // namespace nqkv
