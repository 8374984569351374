// The bound on a plane's errors against what it stands for: the damage to attention. For planes that are known to hurt,
// every codec and AUTO, the Kullback-Leibler divergence of the attention rows that decoded keys give from those that
// the source gives, in units of what nqkv4 does to clean Gaussian keys.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/codec_plan.h"
#include "tests/kernels/plane_values.h"

namespace nqkv {
namespace {

constexpr PlaneShape kShape = {.tokens = 64, .heads = 1, .channels = 128, .dtype = Dtype::kFloat16};
constexpr int kDraws = 4;
constexpr int kQueries = 32;
constexpr double kWorseMax = 2;  // Times the divergence of clean keys.

using Rows = std::vector<std::vector<double>>;  // [token][channel]

struct Keys {
  std::string name;
  Plane plane;
  size_t sinks = 0;  // So many of the first tokens.
};

double Normal(std::mt19937& random) { return std::normal_distribution<double>()(random); }

Plane ToPlane(const Rows& rows) {
  return FilledPlane(kShape, [&](size_t t, size_t, size_t c) { return static_cast<float>(rows[t][c]); });
}

Rows Gaussian(std::mt19937& random) {
  Rows rows(kShape.tokens, std::vector<double>(kShape.channels));
  for (auto& row : rows) {
    for (double& x : row) x = Normal(random);
  }
  return rows;
}

// A constant offset before the rotary embedding in the channels of some pairs (i, i + D/2), as models with a bias in
// their key projection have it. Slow pairs keep their place over the block, fast ones go round.
Keys WithOffsets(const std::string& name, const std::vector<size_t>& pairs, double offset, std::mt19937& random) {
  Rows rows = Gaussian(random);
  const size_t half = kShape.channels / 2;
  for (size_t t = 0; t < rows.size(); ++t) {
    for (size_t i = 0; i < pairs.size(); ++i) {
      const double pair = static_cast<double>(pairs[i]), position = 2000.0 + static_cast<double>(t);
      const double angle = position * std::pow(1e6, -pair / static_cast<double>(half));
      const double first = offset, second = -offset / 2;
      rows[t][pairs[i]] += first * std::cos(angle) - second * std::sin(angle);
      rows[t][pairs[i] + half] += first * std::sin(angle) + second * std::cos(angle);
    }
  }
  return {name, ToPlane(rows)};
}

Keys WithOutliers(double deviation, std::mt19937& random) {
  Rows rows = Gaussian(random);
  for (auto& row : rows) {
    for (size_t c : {7, 70}) row[c] *= deviation;
  }
  return {"outlier channels", ToPlane(rows)};
}

Keys WithSink(double norm, std::mt19937& random) {
  Rows rows = Gaussian(random);
  for (double& x : rows[0]) x *= norm;
  return {"sink", ToPlane(rows), 1};
}

Keys HeavyTails(std::mt19937& random) {
  Rows rows(kShape.tokens, std::vector<double>(kShape.channels));
  std::student_t_distribution<double> tails(3);
  for (auto& row : rows) {
    for (double& x : row) x = tails(random) / std::sqrt(3.0);
  }
  return {"heavy tails", ToPlane(rows)};
}

Keys OneHot() {
  Rows rows(kShape.tokens, std::vector<double>(kShape.channels));
  for (size_t t = 0; t < rows.size(); ++t) rows[t][t] = 11;
  return {"one-hot", ToPlane(rows)};
}

Keys Zero() { return {"zero", ToPlane(Rows(kShape.tokens, std::vector<double>(kShape.channels)))}; }

std::vector<Keys> AllKeys(uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<Keys> all;
  all.push_back({"gaussian", ToPlane(Gaussian(random))});
  for (double offset : {12.0, 60.0}) {
    const std::string suffix = offset > 20 ? " of 60" : " of 12";
    all.push_back(WithOffsets("slow offsets" + suffix, {45, 60}, offset, random));
    all.push_back(WithOffsets("middle offsets" + suffix, {20, 26}, offset, random));
    all.push_back(WithOffsets("fast offsets" + suffix, {2, 5}, offset, random));
    all.push_back(WithOffsets("mixed offsets" + suffix, {5, 20, 45, 60}, offset, random));
  }
  for (double deviation : {4.0, 8.0, 20.0}) all.push_back(WithOutliers(deviation, random));
  for (double norm : {10.0, 30.0, 100.0}) all.push_back(WithSink(norm, random));
  all.push_back(HeavyTails(random));
  all.push_back(OneHot());
  all.push_back(Zero());
  return all;
}

Rows ToRows(const Plane& plane) {
  Rows rows(plane.shape.tokens, std::vector<double>(plane.shape.channels));
  for (size_t t = 0; t < rows.size(); ++t) {
    for (size_t c = 0; c < rows[t].size(); ++c) rows[t][c] = static_cast<double>(plane.at(t, 0, c));
  }
  return rows;
}

// Of one query over the tokens from `first` on.
std::vector<double> AttentionRow(const Rows& keys, const std::vector<double>& query, size_t first) {
  std::vector<double> weights(keys.size() - first);
  for (size_t t = first; t < keys.size(); ++t) {
    const double product = std::inner_product(query.begin(), query.end(), keys[t].begin(), 0.0);
    weights[t - first] = product / std::sqrt(static_cast<double>(query.size()));
  }
  const double largest = *std::max_element(weights.begin(), weights.end());
  for (double& weight : weights) weight = std::exp(weight - largest);
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  for (double& weight : weights) weight /= sum;
  return weights;
}

// Attention of random queries, a row each. Without the sinks: what they hold of a row they hold whatever the codec,
// their values are next to nothing, and what a head returns is made of the other tokens' weights.
Rows Attention(const Plane& keys, size_t first) {
  const Rows rows = ToRows(keys);
  std::mt19937 random(4711);
  Rows attention;
  for (int i = 0; i < kQueries; ++i) {
    std::vector<double> query(kShape.channels);
    for (double& x : query) x = Normal(random);
    attention.push_back(AttentionRow(rows, query, first));
  }
  return attention;
}

// The mean over the queries.
double Divergence(const Rows& want, const Rows& got) {
  double sum = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    for (size_t t = 0; t < want[i].size(); ++t) {
      if (want[i][t] > 0) sum += want[i][t] * std::log(want[i][t] / std::max(got[i][t], 1e-300));
    }
  }
  return sum / static_cast<double>(want.size());
}
double Divergence(const Keys& keys, const Plane& decoded) {
  return Divergence(Attention(keys.plane, keys.sinks), Attention(decoded, keys.sinks));
}

Plane DecodedOf(const Encoded& encoded, const PlaneCodec& codec) {
  return Decode(encoded.bytes, kShape, codec, Dtype::kFloat32);
}

bool IsWithin(const PlaneErrors& errors, const CodecPolicy& policy) {
  return errors.floor_error <= policy.floor_error_max && errors.token_norm_error <= policy.token_norm_error_max;
}

bool IsExact(const Plane& source, const Plane& decoded) { return ToRows(source) == ToRows(decoded); }

class FidelityBoundTest : public testing::Test {
 protected:
  FidelityBoundTest() {
    for (uint32_t draw = 0; draw < kDraws; ++draw) {
      std::mt19937 random(1000 + draw);
      const Keys keys{"clean", ToPlane(Gaussian(random))};
      clean_ += Divergence(keys, DecodedOf(Encode(keys.plane, Nqkv4(64)), Nqkv4(64))) / kDraws;
    }
  }

  const CodecPolicy policy_;
  double clean_ = 0;  // Divergence of clean keys under nqkv4.
};

TEST_F(FidelityBoundTest, IsBrokenWhereverAttentionIsDamaged) {
  int damaged = 0;
  for (uint32_t draw = 0; draw < kDraws; ++draw) {
    for (const Keys& keys : AllKeys(draw)) {
      for (const PlaneCodec& codec : CodecsFor(kShape)) {
        SCOPED_TRACE(keys.name + ", " + std::string(PlaneCodecName(codec)));
        const Encoded encoded = Encode(keys.plane, codec);
        const Plane decoded = DecodedOf(encoded, codec);
        const double worse = Divergence(keys, decoded) / clean_;
        const bool within = IsWithin(encoded.result.errors, policy_);
        if (worse > kWorseMax) {
          ++damaged;
          EXPECT_FALSE(within) << worse << " times, floor error " << encoded.result.errors.floor_error;
        }
        if (IsExact(keys.plane, decoded)) {
          EXPECT_TRUE(within) << "floor error " << encoded.result.errors.floor_error;
        }
      }
    }
  }
  EXPECT_GT(damaged, 0);
}

TEST_F(FidelityBoundTest, IsKeptByCleanKeysInEveryCodec) {
  for (uint32_t draw = 0; draw < kDraws; ++draw) {
    const Keys keys = AllKeys(draw).front();
    for (const PlaneCodec& codec : CodecsFor(kShape)) {
      const PlaneErrors errors = Encode(keys.plane, codec).result.errors;
      EXPECT_TRUE(IsWithin(errors, policy_)) << PlaneCodecName(codec) << ": " << errors.floor_error;
    }
  }
}

TEST_F(FidelityBoundTest, IsBrokenByOffsetsUnderNqkv4AndUnderRotationAlone) {
  for (const Keys& keys : AllKeys(0)) {
    if (keys.name.find("offsets") == std::string::npos) continue;
    for (const PlaneCodec& codec : {Nqkv4(64), Nqkv4(128), Nqkv4(256), kRowCodec, Nqkv4h(64), Nqkv4h(128)}) {
      EXPECT_FALSE(IsWithin(Encode(keys.plane, codec).result.errors, policy_)) << keys.name << PlaneCodecName(codec);
    }
  }
}

TEST_F(FidelityBoundTest, IsBrokenByALargeSinkUnderScalesByChannel) {
  std::mt19937 random(1);
  const Keys keys = WithSink(100, random);
  const PlaneErrors errors = Encode(keys.plane, kQ8Channel).result.errors;
  EXPECT_FALSE(IsWithin(errors, policy_));
  EXPECT_LT(errors.nmse, 0.001f);  // Which cannot see it.
}

TEST_F(FidelityBoundTest, IsKeptByAutoWhichKeepsAttention) {
  for (uint32_t draw = 0; draw < kDraws; ++draw) {
    for (Keys& keys : AllKeys(draw)) {
      SCOPED_TRACE(keys.name);
      const GroupLayout group = {.id = 0,
                                 .block_tokens = kShape.tokens,
                                 .planes = {{.layer = 1, .role = PlaneRole::kKey, .heads = 1, .channels = 128}}};
      CodecPlan plan(policy_, group);
      // Sinks are where sequences begin. Their own logits count too then.
      const bool first = keys.sinks > 0;
      keys.sinks = 0;
      PlaneCodec codec = plan.Choose(0, first);
      Encoded encoded = Encode(keys.plane, codec);
      while (!plan.Accept(0, codec, encoded.result, first)) {
        codec = plan.Next(0, codec, first);
        encoded = Encode(keys.plane, codec);
      }
      EXPECT_LE(Divergence(keys, DecodedOf(encoded, codec)), kWorseMax * clean_) << PlaneCodecName(codec);
      EXPECT_TRUE(IsWithin(encoded.result.errors, policy_));
      // Neither is anything stored raw that eight bits would do for.
      EXPECT_NE(codec, kRawCodec);
    }
  }
}

}  // namespace
}  // namespace nqkv
