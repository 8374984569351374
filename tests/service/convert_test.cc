#include "service/convert.h"

#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/service/model_blocks.h"

namespace nqkv {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr SpecBounds kBounds = {.block_raw_bytes_max = uint64_t{1} << 30, .plane_raw_bytes_max = uint64_t{64} << 20};

absl::Status StatusOfSpec(const std::function<void(v1::CacheSpec*)>& change, const SpecBounds& bounds = kBounds) {
  v1::CacheSpec spec = ModelSpec();
  change(&spec);
  return GroupsFromSpec(spec, bounds).status();
}

// Each contradiction, and the field that its error names.
struct BadSpec {
  const char* name;
  std::function<void(v1::CacheSpec*)> change;
  const char* message;
  absl::StatusCode code = absl::StatusCode::kInvalidArgument;
};

const std::vector<BadSpec>& BadSpecs() {
  const auto group = [](v1::CacheSpec* spec) { return spec->mutable_layer_groups(0); };
  const auto plane = [](v1::CacheSpec* spec, int i) { return spec->mutable_layer_groups(0)->mutable_planes(i); };
  static const std::vector<BadSpec> specs = {
      {"no model", [](auto* spec) { spec->clear_model(); }, "spec.model: required"},
      {"long model", [](auto* spec) { spec->set_model(std::string(257, 'm')); }, "spec.model: 257 bytes, at most 256"},
      {"long digest", [](auto* spec) { spec->set_rope_digest(std::string(65, 'd')); }, "spec.rope_digest: 65 bytes"},
      {"no groups", [](auto* spec) { spec->clear_layer_groups(); }, "spec.layer_groups: required"},
      {"no kind", [=](auto* spec) { group(spec)->clear_kind(); }, "spec.layer_groups[0].kind: required"},
      {"sliding", [=](auto* spec) { group(spec)->set_kind(v1::LAYER_GROUP_KIND_SLIDING); },
       "spec.layer_groups[0].kind LAYER_GROUP_KIND_SLIDING is not built yet", absl::StatusCode::kUnimplemented},
      {"state", [=](auto* spec) { group(spec)->set_kind(v1::LAYER_GROUP_KIND_STATE); },
       "LAYER_GROUP_KIND_STATE is not built yet", absl::StatusCode::kUnimplemented},
      {"zero tokens", [=](auto* spec) { group(spec)->set_block_tokens(0); },
       "spec.layer_groups[0].block_tokens: 0 is not within 1 to 1024"},
      {"many tokens", [=](auto* spec) { group(spec)->set_block_tokens(1'025); }, "block_tokens: 1025"},
      {"overflowing tokens", [=](auto* spec) { group(spec)->set_block_tokens(65'536 + 16); }, "block_tokens: 65552"},
      {"no planes", [=](auto* spec) { group(spec)->clear_planes(); }, "spec.layer_groups[0].planes: required"},
      {"zero heads", [=](auto* spec) { plane(spec, 0)->set_heads(0); },
       "spec.layer_groups[0].planes[0].heads: 0 is not within 1 to 1024"},
      {"overflowing heads", [=](auto* spec) { plane(spec, 0)->set_heads(65'536 + 8); }, "planes[0].heads: 65544"},
      {"mixed heads", [=](auto* spec) { plane(spec, 3)->set_heads(4); },
       "spec.layer_groups[0].planes[3].heads: 4, but 8 in the planes before"},
      {"zero channels", [=](auto* spec) { plane(spec, 1)->set_channels(0); }, "planes[1].channels: 0 is not within"},
      {"odd channels", [=](auto* spec) { plane(spec, 1)->set_channels(65); }, "65 is not a multiple of 8"},
      {"absurd channels", [=](auto* spec) { plane(spec, 1)->set_channels(UINT32_MAX); }, "channels: 4294967295"},
      {"overflowing layer", [=](auto* spec) { plane(spec, 7)->set_layer(65'535); }, "planes[7].layer: 65535"},
      {"no role", [=](auto* spec) { plane(spec, 0)->clear_role(); }, "planes[0].role: required"},
      {"wrong role", [=](auto* spec) { plane(spec, 0)->set_role(v1::PLANE_ROLE_LATENT); },
       "PLANE_ROLE_LATENT does not belong into a group of kind LAYER_GROUP_KIND_FULL"},
      {"no dtype", [=](auto* spec) { plane(spec, 0)->clear_dtype(); }, "planes[0].dtype: required"},
      {"fp8", [=](auto* spec) { plane(spec, 0)->set_dtype(v1::DTYPE_FLOAT8_E4M3); },
       "planes[0].dtype DTYPE_FLOAT8_E4M3 is not built yet", absl::StatusCode::kUnimplemented},
      {"twice", [=](auto* spec) { *plane(spec, 1) = *plane(spec, 0); }, "the same layer and role as the plane before"},
      {"unordered", [=](auto* spec) { plane(spec, 0)->Swap(plane(spec, 2)); }, "planes must come by layer"},
      {"no value plane", [=](auto* spec) { group(spec)->mutable_planes()->RemoveLast(); },
       "layer 3 has no plane of role PLANE_ROLE_VALUE"},
      {"group id twice", [=](auto* spec) { *spec->add_layer_groups() = spec->layer_groups(0); },
       "spec.layer_groups[1].id: 0 is the id of layer_groups[0] too"},
      {"plane in two groups",
       [=](auto* spec) {
         *spec->add_layer_groups() = spec->layer_groups(0);
         spec->mutable_layer_groups(1)->set_id(1);
       },
       "spec.layer_groups[1].planes[0]: layer 0 has a plane of this role before"},
      {"large id", [=](auto* spec) { group(spec)->set_id(65'536); }, "spec.layer_groups[0].id: 65536"},
      {"huge plane",
       [=](auto* spec) {
         group(spec)->set_block_tokens(1'024);
         for (auto& each : *group(spec)->mutable_planes()) {
           each.set_heads(1'024);
           each.set_channels(8'192);
         }
       },
       "planes[0]: one block's plane takes 17179869184 bytes"},
  };
  return specs;
}

TEST(ConvertTest, RefusesSpecsThatContradictThemselvesNamingTheField) {
  ASSERT_TRUE(StatusOfSpec([](v1::CacheSpec*) {}).ok());
  for (const BadSpec& bad : BadSpecs()) {
    const absl::Status status = StatusOfSpec(bad.change);
    EXPECT_EQ(status.code(), bad.code) << bad.name << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(bad.message)) << bad.name;
  }
}

TEST(ConvertTest, RefusesABlockLargerThanTheBound) {
  const uint64_t bytes = RawBytes(ModelLayout(), WholeRange(ModelLayout()));
  const auto unchanged = [](v1::CacheSpec*) {};
  EXPECT_TRUE(StatusOfSpec(unchanged, {.block_raw_bytes_max = bytes, .plane_raw_bytes_max = bytes}).ok());
  const absl::Status status = StatusOfSpec(unchanged, {.block_raw_bytes_max = bytes - 1, .plane_raw_bytes_max = bytes});
  EXPECT_THAT(std::string(status.message()), HasSubstr("spec.layer_groups[0]: one block takes 131072 bytes"));
}

TEST(ConvertTest, ReadsASpecAsTheGroupsThatItSays) {
  const absl::StatusOr<std::vector<GroupLayout>> groups = GroupsFromSpec(ModelSpec(), kBounds);
  ASSERT_TRUE(groups.ok()) << groups.status();
  EXPECT_THAT(*groups, ElementsAre(ModelLayout()));
}

TEST(ConvertTest, ReadsLatentAttentionWithAndWithoutRope) {
  v1::CacheSpec spec;
  spec.set_model("mla");
  v1::LayerGroup* group = spec.add_layer_groups();
  group->set_kind(v1::LAYER_GROUP_KIND_MLA);
  group->set_block_tokens(64);
  for (const auto& [layer, role, channels] :
       {std::tuple(0, v1::PLANE_ROLE_LATENT, 512), std::tuple(0, v1::PLANE_ROLE_ROPE, 64),
        std::tuple(1, v1::PLANE_ROLE_LATENT, 512)}) {
    v1::PlaneSpec* plane = group->add_planes();
    plane->set_layer(static_cast<uint32_t>(layer));
    plane->set_role(role);
    plane->set_heads(1);
    plane->set_channels(static_cast<uint32_t>(channels));
    plane->set_dtype(v1::DTYPE_BFLOAT16);
  }
  EXPECT_TRUE(GroupsFromSpec(spec, kBounds).ok()) << GroupsFromSpec(spec, kBounds).status();
  group->mutable_planes(2)->set_role(v1::PLANE_ROLE_ROPE);
  EXPECT_THAT(std::string(GroupsFromSpec(spec, kBounds).status().message()),
              HasSubstr("layer 1 has no plane of role PLANE_ROLE_LATENT"));
}

TEST(ConvertTest, NamesOfCachesHaveOneToAHundredAndTwentyEightOfTheirLetters) {
  EXPECT_TRUE(CheckCacheName("Aa0._/:-").ok());
  EXPECT_TRUE(CheckCacheName(std::string(128, 'n')).ok());
  EXPECT_FALSE(CheckCacheName("").ok());
  EXPECT_FALSE(CheckCacheName(std::string(129, 'n')).ok());
  EXPECT_FALSE(CheckCacheName("a b").ok());
  EXPECT_FALSE(CheckCacheName(std::string("a\0b", 3)).ok());
}

TEST(ConvertTest, FillsAPolicysDefaultsAndRefusesItsContradictions) {
  EXPECT_EQ(*PolicyFromProto({}), CodecPolicy());
  v1::CodecPolicy policy;
  policy.set_codec(v1::CODEC_NQKV4);
  policy.set_layout(v1::PLANE_LAYOUT_ROW);
  EXPECT_EQ(PolicyFromProto(policy)->scale_group, 256);
  EXPECT_EQ(*PolicyFromProto(ToProto(*PolicyFromProto(policy))), *PolicyFromProto(policy));

  const auto message = [](const v1::CodecPolicy& bad) { return std::string(PolicyFromProto(bad).status().message()); };
  policy.set_scale_group(64);
  EXPECT_THAT(message(policy), HasSubstr("policy.scale_group: 64, but layout ROW has 256 only"));
  policy.set_codec(v1::CODEC_AUTO);
  EXPECT_THAT(message(policy), HasSubstr("policy.layout: ROW needs codec NQKV4"));
  policy.Clear();
  policy.set_scale_group(32);
  EXPECT_THAT(message(policy), HasSubstr("policy.scale_group: 32"));
  policy.Clear();
  policy.set_floor_error_max(-1);
  EXPECT_THAT(message(policy), HasSubstr("policy.floor_error_max: -1"));
  policy.set_floor_error_max(std::numeric_limits<float>::quiet_NaN());
  EXPECT_THAT(message(policy), HasSubstr("policy.floor_error_max"));
  policy.Clear();
  policy.set_layout(v1::PLANE_LAYOUT_ROW);
  for (const v1::Codec codec : {v1::CODEC_AUTO, v1::CODEC_RAW, v1::CODEC_NQKV4H, v1::CODEC_Q8}) {
    policy.set_codec(codec);
    EXPECT_THAT(message(policy), HasSubstr("policy.layout"));
  }
}

class ShardTest : public ::testing::Test {
 protected:
  absl::StatusOr<std::vector<PartRange>> Parts() { return ShardFromProto(shard_, groups_); }
  std::string Message() { return std::string(Parts().status().message()); }

  v1::ShardSpec shard_;
  std::vector<GroupLayout> groups_ = {ModelLayout()};  // 8 heads, layers 0 to 3.
};

TEST_F(ShardTest, HoldsTheWholeModelWhenItSaysNothing) { EXPECT_EQ((*Parts())[0], WholeRange(groups_[0])); }

TEST_F(ShardTest, SplitsHeadsEvenlyAndSharesThemAmongMoreRanks) {
  shard_.set_tensor_size(4);
  shard_.set_tensor_rank(3);
  EXPECT_EQ((*Parts())[0], (PartRange{0, 4, 6, 8}));
  shard_.set_tensor_size(16);
  shard_.set_tensor_rank(5);
  EXPECT_EQ((*Parts())[0], (PartRange{0, 4, 2, 3}));
  shard_.set_tensor_size(3);
  shard_.set_tensor_rank(0);
  EXPECT_THAT(Message(),
              HasSubstr("shard.tensor_size: the 8 heads of layer group 0 cannot be split evenly over 3 ranks"));
  shard_.set_tensor_size(12);
  EXPECT_THAT(Message(), HasSubstr("cannot be split evenly over 12 ranks"));
}

TEST_F(ShardTest, RefusesARankBeyondItsSize) {
  shard_.set_tensor_rank(2);
  shard_.set_tensor_size(2);
  EXPECT_THAT(Message(), HasSubstr("shard.tensor_rank: 2 of 2 ranks"));
  shard_.Clear();
  shard_.set_pipeline_rank(1);
  EXPECT_THAT(Message(), HasSubstr("shard.pipeline_rank: 1 of 1 ranks"));
  shard_.Clear();
  shard_.set_context_size(2);
  EXPECT_EQ(Parts().status().code(), absl::StatusCode::kUnimplemented);
}

TEST_F(ShardTest, TakesAPipelineStagesLayersFromItsParts) {
  shard_.set_pipeline_size(2);
  EXPECT_THAT(Message(), HasSubstr("shard.parts: required"));
  shard_.set_tensor_size(2);
  shard_.set_tensor_rank(1);
  v1::ShardPart* part = shard_.add_parts();
  *part->mutable_layers() = ToRange(1, 3);
  EXPECT_EQ((*Parts())[0], (PartRange{1, 3, 4, 8}));
  *part->mutable_heads() = ToRange(0, 1);
  EXPECT_EQ((*Parts())[0], (PartRange{1, 3, 0, 1}));
  *part->mutable_layers() = ToRange(1, 5);
  EXPECT_THAT(Message(), HasSubstr("shard.parts[0].layers: [1, 5) is not within [0, 4)"));
  part->set_layer_group(9);
  EXPECT_THAT(Message(), HasSubstr("shard.parts[0].layer_group: the spec has no layer group 9"));
  part->set_layer_group(0);
  part->clear_layers();
  *shard_.add_parts() = *part;
  EXPECT_THAT(Message(), HasSubstr("shard.parts[1].layer_group: 0 is named twice"));
}

TEST(ConvertTest, SnapsLayerRangesToTheLayersThatTheGroupHas) {
  GroupLayout group = ModelLayout({.layers = 3});
  for (PlaneSpec& plane : group.planes) plane.layer = static_cast<uint16_t>(plane.layer * 4 + 2);  // 2, 6, 10.
  const auto snap = [&](uint16_t begin, uint16_t end) {
    const PartRange snapped = SnapLayers({begin, end, 0, 8}, group);
    return std::pair<int, int>(snapped.layer_begin, snapped.layer_end);
  };
  EXPECT_EQ(snap(2, 3), std::pair(2, 6));
  EXPECT_EQ(snap(2, 6), std::pair(2, 6));
  EXPECT_EQ(snap(3, 7), std::pair(6, 10));
  EXPECT_EQ(snap(7, 11), std::pair(10, 11));
  const v1::Range between = ToRange(3, 6);
  EXPECT_THAT(std::string(PartFromProto(&between, nullptr, WholeRange(group), group, "begin").status().message()),
              HasSubstr("begin.layers: no plane of layer group 0 lies in the range"));
}

}  // namespace
}  // namespace nqkv
