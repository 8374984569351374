#include "proto/spec_fingerprint.h"

#include <fstream>
#include <functional>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "google/protobuf/util/json_util.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace nqkv {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using ::testing::StartsWith;

v1::CacheSpec SomeSpec() {
  v1::CacheSpec spec;
  spec.set_model("m");
  spec.set_revision("r");
  spec.set_rope_digest("rope");
  spec.set_adapter_digest("adapter");
  auto* group = spec.add_layer_groups();
  group->set_id(3);
  group->set_kind(v1::LAYER_GROUP_KIND_FULL);
  group->set_block_tokens(64);
  for (uint32_t layer = 0; layer < 2; ++layer) {
    for (v1::PlaneRole role : {v1::PLANE_ROLE_KEY, v1::PLANE_ROLE_VALUE}) {
      auto* plane = group->add_planes();
      plane->set_layer(layer);
      plane->set_role(role);
      plane->set_heads(8);
      plane->set_channels(128);
      plane->set_dtype(v1::DTYPE_FLOAT16);
    }
  }
  return spec;
}

// A change of one field, and the path under which it is told.
using Change = std::pair<std::string, std::function<void(v1::CacheSpec*)>>;

std::vector<Change> EveryChange() {
  const auto group = [](v1::CacheSpec* spec) { return spec->mutable_layer_groups(0); };
  const auto plane = [](v1::CacheSpec* spec) { return spec->mutable_layer_groups(0)->mutable_planes(2); };
  return {
      {"model ", [](v1::CacheSpec* spec) { spec->set_model("n"); }},
      {"revision ", [](v1::CacheSpec* spec) { spec->set_revision("s"); }},
      {"rope_digest ", [](v1::CacheSpec* spec) { spec->set_rope_digest("other"); }},
      {"adapter_digest ", [](v1::CacheSpec* spec) { spec->clear_adapter_digest(); }},
      {"key_scheme ", [](v1::CacheSpec* spec) { spec->set_key_scheme("engine"); }},
      {"layer_groups[0].id ", [=](v1::CacheSpec* spec) { group(spec)->set_id(4); }},
      {"layer_groups[0].kind ", [=](v1::CacheSpec* spec) { group(spec)->set_kind(v1::LAYER_GROUP_KIND_MLA); }},
      {"layer_groups[0].block_tokens ", [=](v1::CacheSpec* spec) { group(spec)->set_block_tokens(16); }},
      {"layer_groups[0].window_tokens ", [=](v1::CacheSpec* spec) { group(spec)->set_window_tokens(1); }},
      {"layer_groups[0].planes[2].layer ", [=](v1::CacheSpec* spec) { plane(spec)->set_layer(7); }},
      {"layer_groups[0].planes[2].role ", [=](v1::CacheSpec* spec) { plane(spec)->set_role(v1::PLANE_ROLE_ROPE); }},
      {"layer_groups[0].planes[2].heads ", [=](v1::CacheSpec* spec) { plane(spec)->set_heads(4); }},
      {"layer_groups[0].planes[2].channels ", [=](v1::CacheSpec* spec) { plane(spec)->set_channels(64); }},
      {"layer_groups[0].planes[2].dtype ", [=](v1::CacheSpec* spec) { plane(spec)->set_dtype(v1::DTYPE_BFLOAT16); }},
      {"layer_groups[0].planes.size ", [=](v1::CacheSpec* spec) { group(spec)->mutable_planes()->RemoveLast(); }},
      {"layer_groups.size ", [=](v1::CacheSpec* spec) { *spec->add_layer_groups() = *group(spec); }},
  };
}

TEST(SpecFingerprintTest, AgreesWithTheVectorsOfKeysMd) {
  std::ifstream file(NQKV_KEY_VECTORS);
  const nlohmann::json vectors = nlohmann::json::parse(file);
  ASSERT_THAT(vectors.at("specs"), SizeIs(testing::Ge(3)));
  for (const nlohmann::json& vector : vectors.at("specs")) {
    nlohmann::json fields = vector.at("spec");
    v1::CacheSpec spec;
    // Bytes are hex in the vectors and base64 in protobuf's JSON.
    const std::string rope_digest = absl::HexStringToBytes(fields.value("rope_digest", std::string()));
    const std::string adapter_digest = absl::HexStringToBytes(fields.value("adapter_digest", std::string()));
    fields.erase("rope_digest");
    fields.erase("adapter_digest");
    ASSERT_TRUE(google::protobuf::util::JsonStringToMessage(fields.dump(), &spec).ok());
    spec.set_rope_digest(rope_digest);
    spec.set_adapter_digest(adapter_digest);
    EXPECT_EQ(absl::BytesToHexString(SpecFingerprint16(spec)), vector.at("fingerprint").get<std::string>())
        << vector.at("name").get<std::string>();
  }
}

TEST(SpecFingerprintTest, IsSixteenBytesAndTheSameForEqualSpecs) {
  EXPECT_THAT(SpecFingerprint16(SomeSpec()), SizeIs(16));
  EXPECT_EQ(SpecFingerprint16(SomeSpec()), SpecFingerprint16(SomeSpec()));
  EXPECT_THAT(DifferingFields(SomeSpec(), SomeSpec()), IsEmpty());
}

TEST(SpecFingerprintTest, CountsAnEmptyKeySchemeAsTheDefaultOne) {
  v1::CacheSpec named = SomeSpec();
  named.set_key_scheme("nqkv-sha256-v1");
  EXPECT_EQ(SpecFingerprint16(SomeSpec()), SpecFingerprint16(named));
  EXPECT_THAT(DifferingFields(SomeSpec(), named), IsEmpty());
}

TEST(SpecFingerprintTest, ChangesWithEveryFieldAndNamesIt) {
  for (const auto& [path, change] : EveryChange()) {
    v1::CacheSpec changed = SomeSpec();
    change(&changed);
    EXPECT_NE(SpecFingerprint16(changed), SpecFingerprint16(SomeSpec())) << path;
    EXPECT_THAT(DifferingFields(SomeSpec(), changed), ElementsAre(StartsWith(path)));
    EXPECT_THAT(DifferingFields(changed, SomeSpec()), ElementsAre(StartsWith(path)));
  }
}

TEST(SpecFingerprintTest, CoversEveryFieldOfTheMessages) {
  // A new field of these messages must enter the canonical form, or be said not to, before this count changes.
  EXPECT_EQ(v1::CacheSpec::descriptor()->field_count(), 6);
  EXPECT_EQ(v1::LayerGroup::descriptor()->field_count(), 5);
  EXPECT_EQ(v1::PlaneSpec::descriptor()->field_count(), 5);
}

TEST(SpecFingerprintTest, DoesNotMistakeTheEndOfOneFieldForTheBeginOfTheNext) {
  v1::CacheSpec left, right;
  left.set_model("ab");
  left.set_revision("c");
  right.set_model("a");
  right.set_revision("bc");
  EXPECT_NE(SpecFingerprint16(left), SpecFingerprint16(right));
}

TEST(SpecFingerprintTest, NamesEveryDifferingFieldWithBothValues) {
  v1::CacheSpec asked = SomeSpec();
  asked.set_model("n");
  asked.mutable_layer_groups(0)->mutable_planes(3)->set_dtype(v1::DTYPE_BFLOAT16);
  EXPECT_THAT(DifferingFields(SomeSpec(), asked),
              ElementsAre("model ('m', asked for 'n')",
                          "layer_groups[0].planes[3].dtype (DTYPE_FLOAT16, asked for DTYPE_BFLOAT16)"));
}

// Keys and values of `layers` layers.
v1::CacheSpec UniformSpec(uint32_t layers) {
  v1::CacheSpec spec = SomeSpec();
  auto* planes = spec.mutable_layer_groups(0)->mutable_planes();
  const v1::PlaneSpec key = planes->Get(0), value = planes->Get(1);
  planes->Clear();
  for (uint32_t layer = 0; layer < layers; ++layer) {
    for (const v1::PlaneSpec& plane : {key, value}) {
      *planes->Add() = plane;
      planes->rbegin()->set_layer(layer);
    }
  }
  return spec;
}

TEST(SpecFingerprintTest, TellsAnEqualDifferenceOfManyPlanesOnce) {
  const v1::CacheSpec present = UniformSpec(80);
  v1::CacheSpec asked = present;
  for (auto& plane : *asked.mutable_layer_groups(0)->mutable_planes()) {
    plane.set_dtype(v1::DTYPE_BFLOAT16);
    if (plane.role() == v1::PLANE_ROLE_KEY) plane.set_channels(64);
  }
  asked.mutable_layer_groups(0)->mutable_planes(159)->set_heads(4);
  EXPECT_THAT(DifferingFields(present, asked),
              ElementsAre("layer_groups[0].planes[0, 2, 4 and 77 more].channels (128, asked for 64)",
                          "layer_groups[0].planes[0-159].dtype (DTYPE_FLOAT16, asked for DTYPE_BFLOAT16)",
                          "layer_groups[0].planes[159].heads (8, asked for 4)"));
}

TEST(SpecFingerprintTest, KeepsTheSameDifferenceOfTwoGroupsApart) {
  v1::CacheSpec present = SomeSpec();
  *present.add_layer_groups() = present.layer_groups(0);
  v1::CacheSpec asked = present;
  for (int i = 0; i < 2; ++i) asked.mutable_layer_groups(i)->set_block_tokens(16);
  EXPECT_THAT(DifferingFields(present, asked), ElementsAre("layer_groups[0].block_tokens (64, asked for 16)",
                                                           "layer_groups[1].block_tokens (64, asked for 16)"));
}

}  // namespace
}  // namespace nqkv
