#include "kernels/codec_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "kernels/block_format.h"
#include "tests/kernels/plane_values.h"

namespace nqkv {
namespace {

GroupLayout TwoPlanes(Dtype dtype = Dtype::kFloat16) {
  return {.id = 0,
          .block_tokens = 16,
          .planes = {{.layer = 1, .role = PlaneRole::kKey, .heads = 2, .channels = 64, .dtype = dtype},
                     {.layer = 1, .role = PlaneRole::kValue, .heads = 2, .channels = 64, .dtype = dtype}}};
}

std::vector<PlaneCodec> LadderOf(const PlaneSpec& plane, bool first_in_sequence = false, uint16_t tokens = 64) {
  return CodecLadder({}, plane, tokens, first_in_sequence);
}

TEST(CodecLadderTest, AutoTriesEveryCodecOfKeysFromTheCheapestOn) {
  const PlaneSpec keys = {.layer = 3, .role = PlaneRole::kKey, .heads = 2, .channels = 128};
  EXPECT_EQ(LadderOf(keys), (std::vector<PlaneCodec>{Nqkv4(64), Nqkv4h(64), Nqkv4h(64, 4), Nqkv4h(64, 8), kQ8Token,
                                                     kQ8Channel, kRawCodec}));
  const PlaneSpec narrow = {.layer = 3, .role = PlaneRole::kKey, .heads = 2, .channels = 64};
  EXPECT_EQ(LadderOf(narrow),
            (std::vector<PlaneCodec>{Nqkv4(64), Nqkv4h(64), Nqkv4h(64, 4), kQ8Channel, kQ8Token, kRawCodec}));
}

TEST(CodecLadderTest, ValuesHaveNoStrongChannelsAndScalesByToken) {
  const PlaneSpec values = {.layer = 3, .role = PlaneRole::kValue, .heads = 2, .channels = 128};
  EXPECT_EQ(LadderOf(values), (std::vector<PlaneCodec>{Nqkv4(64), Nqkv4h(64), kQ8Token, kRawCodec}));
}

TEST(CodecLadderTest, RotaryKeysOfMlaHaveEightBitsAtLeast) {
  const PlaneSpec rope = {.layer = 3, .role = PlaneRole::kRope, .heads = 1, .channels = 64};
  EXPECT_EQ(LadderOf(rope), (std::vector<PlaneCodec>{kQ8Channel, kQ8Token, kRawCodec}));
  EXPECT_EQ(CodecLadder({.codec = CodecChoice::kNqkv4h}, rope, 64, false),
            (std::vector<PlaneCodec>{kQ8Channel, kRawCodec}));
}

TEST(CodecLadderTest, Layer0AndKeysOfFirstBlocksBeginWithEightBits) {
  PlaneSpec keys = {.layer = 3, .role = PlaneRole::kKey, .heads = 2, .channels = 64};
  const std::vector<PlaneCodec> careful = {kQ8Channel, kQ8Token, kRawCodec};
  EXPECT_EQ(LadderOf(keys, true), careful);
  keys.layer = 0;
  EXPECT_EQ(LadderOf(keys), careful);
  PlaneSpec values = {.layer = 3, .role = PlaneRole::kValue, .heads = 2, .channels = 64};
  EXPECT_EQ(LadderOf(values, true), LadderOf(values, false));
  values.layer = 0;
  EXPECT_EQ(LadderOf(values), (std::vector<PlaneCodec>{kQ8Token, kRawCodec}));
  EXPECT_EQ(CodecLadder({.codec = CodecChoice::kNqkv4}, keys, 64, true),
            (std::vector<PlaneCodec>{Nqkv4(64), kRawCodec}));
}

TEST(CodecLadderTest, WhatWouldTakeMoreThanRawIsNotTried) {
  const PlaneSpec keys = {.layer = 3, .role = PlaneRole::kKey, .heads = 2, .channels = 64};
  const std::vector<PlaneCodec> ladder = LadderOf(keys, false, 1);
  EXPECT_EQ(std::count(ladder.begin(), ladder.end(), kQ8Channel), 0);
  EXPECT_EQ(ladder.back(), kRawCodec);
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

// Plays blocks whose plane 0 needs the ladder's rung `needed`; returns the rungs that were tried, a string a block.
std::string Play(CodecPlan& plan, size_t needed, int blocks, bool first_in_sequence = false) {
  const std::vector<PlaneCodec> ladder = CodecLadder(plan.policy(), plan.group().planes[0], 16, first_in_sequence);
  std::string tried;
  for (int block = 0; block < blocks; ++block) {
    PlaneCodec codec = plan.Choose(0, first_in_sequence);
    for (bool accepted = false; !accepted; codec = accepted ? codec : plan.Next(0, codec, first_in_sequence)) {
      const auto rung = static_cast<size_t>(std::find(ladder.begin(), ladder.end(), codec) - ladder.begin());
      tried += static_cast<char>('0' + rung);
      accepted = plan.Accept(0, codec, WithFloorError(rung < needed ? 0.5f : 0.01f), first_in_sequence);
    }
    tried += ' ';
  }
  return tried;
}

TEST(CodecPlanTest, AutoTriesTheNextBetterCodecUntilOneIsWithinTheBound) {
  CodecPlan plan({}, TwoPlanes());
  EXPECT_EQ(Play(plan, 3, 3), "0123 3 3 ");
  EXPECT_EQ(plan.Choose(1), Nqkv4(64));  // The other plane is remembered for itself.
}

TEST(CodecPlanTest, AutoTriesTheNextCheaperCodecFor1BlockIn64) {
  CodecPlan plan({}, TwoPlanes());
  Play(plan, 2, 1);
  const std::string tried = Play(plan, 2, 640);
  EXPECT_EQ(std::count(tried.begin(), tried.end(), '1'), 10);
  EXPECT_EQ(std::count(tried.begin(), tried.end(), '2'), 640);
  EXPECT_EQ(tried.substr(0, 2 * 63 + 4), [] {
    std::string all;
    for (int block = 0; block < 63; ++block) all += "2 ";
    return all + "12 2";
  }());
}

TEST(CodecPlanTest, AutoGoesDownFastOnceACheaperCodecHoldsAgain) {
  CodecPlan plan({}, TwoPlanes());
  Play(plan, 5, 64);
  EXPECT_EQ(Play(plan, 0, 8), "4 3 2 1 0 0 0 0 ");
  Play(plan, 5, 64);
  EXPECT_EQ(Play(plan, 2, 5), "4 3 2 12 2 ");
}

TEST(CodecPlanTest, FirstBlocksOfSequencesAreRememberedByThemselves) {
  CodecPlan plan({}, TwoPlanes());
  EXPECT_EQ(Play(plan, 1, 3, true), "01 1 1 ");
  EXPECT_EQ(Play(plan, 0, 3), "0 0 0 ");
  EXPECT_EQ(plan.Choose(0, true), kQ8Channel);
}

TEST(CodecPlanTest, EachBoundCountsForItself) {
  CodecPlan plan({}, TwoPlanes());
  const PlaneCodec codec = plan.Choose(0);
  EXPECT_TRUE(plan.Accept(0, codec, {.errors = {0.0125f, 0.10f, 0.5f}}));
  EXPECT_FALSE(plan.Accept(0, codec, {.errors = {0.0126f, 0.10f, 0}}));
  EXPECT_FALSE(plan.Accept(0, codec, {.errors = {0.0125f, 0.11f, 0}}));
  EXPECT_FALSE(plan.Accept(0, codec, {.errors = {std::numeric_limits<float>::infinity(), 0, 0}}));
  EXPECT_FALSE(plan.Accept(0, codec, {.in_scale_range = false}));
}

TEST(CodecPlanTest, ValuesMayHaveLargerErrorsThanKeys) {
  CodecPlan plan({}, TwoPlanes());
  EXPECT_FALSE(plan.Accept(0, Nqkv4(64), WithFloorError(0.0199f)));
  EXPECT_TRUE(plan.Accept(1, Nqkv4(64), WithFloorError(0.0199f)));
  EXPECT_FALSE(plan.Accept(1, Nqkv4(64), WithFloorError(0.0201f)));
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
  EXPECT_EQ(plan.EncodedBytesTypical(whole), head + 2 * small_plane);  // Rotated, in as many bytes.
  plan.Accept(1, Nqkv4h(64), WithFloorError(1.0f));
  EXPECT_EQ(plan.EncodedBytesTypical(whole), head + small_plane + 16 * 2 * (64 + 2));
  EXPECT_EQ(plan.EncodedBytesTypical(whole, true), head + 16 * 2 * (64 + 2) + small_plane);
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
