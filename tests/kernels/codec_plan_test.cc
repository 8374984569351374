#include "kernels/codec_plan.h"

#include <gtest/gtest.h>

#include <limits>

#include "kernels/block_format.h"

namespace nqkv {
namespace {

GroupLayout TwoPlanes(Dtype dtype = Dtype::kFloat16) {
  return {.id = 0,
          .block_tokens = 16,
          .planes = {{.layer = 0, .role = PlaneRole::kKey, .heads = 2, .channels = 64, .dtype = dtype},
                     {.layer = 0, .role = PlaneRole::kValue, .heads = 2, .channels = 64, .dtype = dtype}}};
}

EncodeResult WithFloorError(float floor_error) {
  return {.errors = {.floor_error = floor_error, .token_norm_error = 0.01f, .nmse = 0.001f}};
}

TEST(CodecPlanTest, AutoKeepsTheCheapCodecWhileItIsWithinTheBound) {
  CodecPlan plan({}, TwoPlanes());
  for (int block = 0; block < 200; ++block) {
    const PlaneCodec codec = plan.Choose(0);
    ASSERT_EQ(codec.id, CodecId::kNqkv4);
    ASSERT_TRUE(plan.Accept(0, codec, WithFloorError(0.01f)));
  }
}

TEST(CodecPlanTest, AutoRemembersAPlaneOverTheBoundAndRetriesOneBlockIn64) {
  CodecPlan plan({}, TwoPlanes());
  int tries = 0;
  for (int block = 0; block < 640; ++block) {
    const PlaneCodec codec = plan.Choose(0);
    if (codec.id != CodecId::kNqkv4) continue;
    ++tries;
    EXPECT_EQ(block % 64, 0);
    EXPECT_FALSE(plan.Accept(0, codec, WithFloorError(0.5f)));
  }
  EXPECT_EQ(tries, 10);
  EXPECT_EQ(plan.Choose(1).id, CodecId::kNqkv4);  // The other plane is remembered for itself.
}

TEST(CodecPlanTest, AutoGoesBackToTheCheapCodecWhenTheRetrySucceeds) {
  CodecPlan plan({}, TwoPlanes());
  plan.Accept(0, plan.Choose(0), WithFloorError(0.5f));
  for (int block = 0; block < 63; ++block) ASSERT_EQ(plan.Choose(0).id, CodecId::kRaw);
  ASSERT_TRUE(plan.Accept(0, plan.Choose(0), WithFloorError(0.01f)));
  EXPECT_EQ(plan.Choose(0).id, CodecId::kNqkv4);
}

TEST(CodecPlanTest, EachBoundCountsForItself) {
  CodecPlan plan({}, TwoPlanes());
  const PlaneCodec codec = plan.Choose(0);
  EXPECT_TRUE(plan.Accept(0, codec, {.errors = {0.02f, 0.10f, 0.5f}}));
  EXPECT_FALSE(plan.Accept(0, codec, {.errors = {0.021f, 0.10f, 0}}));
  EXPECT_FALSE(plan.Accept(0, codec, {.errors = {0.02f, 0.11f, 0}}));
  EXPECT_FALSE(plan.Accept(0, codec, {.errors = {std::numeric_limits<float>::infinity(), 0, 0}}));
  EXPECT_FALSE(plan.Accept(0, codec, {.in_scale_range = false}));
}

TEST(CodecPlanTest, ADamagedBlockSaysNothingAboutThePlane) {
  CodecPlan plan({}, TwoPlanes());
  EXPECT_FALSE(plan.Accept(0, plan.Choose(0), {.finite = false}));
  EXPECT_EQ(plan.Choose(0).id, CodecId::kNqkv4);
}

TEST(CodecPlanTest, FixedPoliciesDoNotLookAtTheError) {
  CodecPlan plan({.codec = CodecChoice::kNqkv4, .scale_group = 128}, TwoPlanes());
  const PlaneCodec codec = plan.Choose(0);
  EXPECT_EQ(codec, (PlaneCodec{.id = CodecId::kNqkv4, .scale_group = 128}));
  EXPECT_TRUE(plan.Accept(0, codec, WithFloorError(2.0f)));
  EXPECT_FALSE(plan.Accept(0, codec, {.in_scale_range = false}));
  CodecPlan raw({.codec = CodecChoice::kRaw}, TwoPlanes());
  EXPECT_EQ(raw.Choose(0).id, CodecId::kRaw);
}

TEST(CodecPlanTest, SizesBoundWhatABlockCanTake) {
  CodecPlan plan({}, TwoPlanes());
  const PartRange whole = WholeRange(plan.group());
  const uint64_t head = PlanesOffset(2), raw_plane = 16 * 2 * 64 * 2, small_plane = 16 * 2 * (64 / 2 + 2);
  EXPECT_EQ(plan.EncodedBytesMin(whole), head + 2 * small_plane);
  EXPECT_EQ(plan.EncodedBytesMax(whole), head + 2 * raw_plane);
  EXPECT_EQ(plan.EncodedBytesTypical(whole), plan.EncodedBytesMin(whole));
  plan.Accept(1, plan.Choose(1), WithFloorError(1.0f));
  EXPECT_EQ(plan.EncodedBytesTypical(whole), head + small_plane + raw_plane);
}

TEST(CodecPlanTest, AFixedPolicyIsRawAtMostWhereAScaleMayNotExist) {
  const CodecPolicy policy{.codec = CodecChoice::kNqkv4};
  CodecPlan half(policy, TwoPlanes(Dtype::kFloat16)), brain(policy, TwoPlanes(Dtype::kBfloat16));
  const PartRange whole = WholeRange(half.group());
  EXPECT_EQ(half.EncodedBytesMax(whole), half.EncodedBytesMin(whole));
  EXPECT_GT(brain.EncodedBytesMax(whole), brain.EncodedBytesMin(whole));
}

TEST(CodecPolicyTest, NamesTheFieldThatIsWrong) {
  const auto message = [](const CodecPolicy& policy) { return std::string(policy.Validate().message()); };
  EXPECT_TRUE(CodecPolicy{}.Validate().ok());
  EXPECT_NE(message({.codec = static_cast<CodecChoice>(9)}).find("codec"), std::string::npos);
  EXPECT_NE(message({.scale_group = 96}).find("scale_group"), std::string::npos);
  EXPECT_NE(message({.codec = CodecChoice::kNqkv4, .layout = PlaneLayout::kRow}).find("scale_group"),
            std::string::npos);
  EXPECT_NE(message({.scale_group = 256, .layout = PlaneLayout::kRow}).find("layout"), std::string::npos);
  EXPECT_NE(message({.floor_error_max = -1}).find("floor_error_max"), std::string::npos);
  EXPECT_NE(message({.floor_error_max = std::numeric_limits<float>::quiet_NaN()}).find("floor_error_max"),
            std::string::npos);
  EXPECT_NE(message({.token_norm_error_max = 0}).find("token_norm_error_max"), std::string::npos);
}

TEST(CodecPolicyTest, HasANameAUserCanWrite) {
  EXPECT_EQ(CodecPolicy{}.Name(), "auto");
  EXPECT_EQ((CodecPolicy{.codec = CodecChoice::kRaw}).Name(), "raw");
  EXPECT_EQ((CodecPolicy{.codec = CodecChoice::kNqkv4}).Name(), "nqkv4-g64");
  EXPECT_EQ((CodecPolicy{.codec = CodecChoice::kNqkv4, .scale_group = 256, .layout = PlaneLayout::kRow}).Name(),
            "nqkv4-row-g256");
}

}  // namespace
}  // namespace nqkv
