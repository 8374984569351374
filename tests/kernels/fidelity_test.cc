#include "kernels/fidelity.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <random>
#include <vector>

#include "tests/kernels/plane_values.h"

namespace nqkv {
namespace {

// Floor error, token-norm error and NMSE straight from their definitions, in double precision and from decoded values.
PlaneErrors ErrorsByDefinition(const Plane& source, const Plane& decoded) {
  const PlaneShape& shape = source.shape;
  double worst_floor = 0, worst_norm = 0, all_error = 0, all_signal = 0;
  for (size_t h = 0; h < shape.heads; ++h) {
    std::vector<double> channel_energy(shape.channels, 0.0);
    double weighted_error = 0, weighted_signal = 0;
    for (size_t t = 0; t < shape.tokens; ++t) {
      double signal = 0, error = 0, norm = 0;
      for (size_t c = 0; c < shape.channels; ++c) {
        const double x = source.at(t, h, c), y = decoded.at(t, h, c);
        signal += x * x;
        error += (x - y) * (x - y);
        norm += y * y;
      }
      all_error += error;
      all_signal += signal;
      if (signal == 0) continue;
      weighted_error += error / signal;
      weighted_signal += 1;
      worst_norm = std::max(worst_norm, std::fabs(std::sqrt(norm / signal) - 1));
      for (size_t c = 0; c < shape.channels; ++c) {
        channel_energy[c] += double{source.at(t, h, c)} * source.at(t, h, c) / signal;
      }
    }
    std::sort(channel_energy.begin(), channel_energy.end());
    double floor = 0;
    for (size_t c = 0; c < shape.channels - (shape.channels + 15) / 16; ++c) floor += channel_energy[c];
    if (weighted_error == 0 || weighted_error < weighted_signal * std::exp2(-20)) continue;
    worst_floor = std::max(worst_floor, weighted_error / floor);
  }
  return {static_cast<float>(worst_floor), static_cast<float>(worst_norm),
          static_cast<float>(all_signal > 0 ? all_error / all_signal : 0)};
}

void ExpectErrorsByDefinition(const Plane& plane, const PlaneCodec& codec) {
  const Encoded encoded = Encode(plane, codec);
  ASSERT_TRUE(encoded.result.finite && encoded.result.in_scale_range);
  const PlaneErrors want = ErrorsByDefinition(plane, Decode(encoded.bytes, plane.shape, codec, Dtype::kFloat32));
  const PlaneErrors& got = encoded.result.errors;
  EXPECT_NEAR(got.floor_error, want.floor_error, 2e-5 * want.floor_error);
  EXPECT_NEAR(got.token_norm_error, want.token_norm_error, 1e-6);
  EXPECT_NEAR(got.nmse, want.nmse, 1e-5 * want.nmse);
}

constexpr PlaneShape kShape = {.tokens = 24, .heads = 3, .channels = 128, .dtype = Dtype::kFloat16};

TEST(FidelityTest, ErrorsOfNormalValuesAreThoseOfTheDefinition) {
  for (uint16_t group : {64, 128, 256}) ExpectErrorsByDefinition(NormalPlane(kShape, group), Nqkv4(group));
  ExpectErrorsByDefinition(NormalPlane(kShape, 4), kRowCodec);
}

TEST(FidelityTest, ErrorsOfOddWidthsAndDtypesAreThoseOfTheDefinition) {
  for (uint32_t channels : {8u, 80u, 96u, 112u, 192u, 576u}) {
    for (Dtype dtype : {Dtype::kFloat16, Dtype::kBfloat16, Dtype::kFloat32}) {
      const PlaneShape shape = {.tokens = 5, .heads = 2, .channels = channels, .dtype = dtype};
      ExpectErrorsByDefinition(NormalPlane(shape, channels), Nqkv4(64));
      ExpectErrorsByDefinition(NormalPlane(shape, channels), kRowCodec);
    }
  }
}

// A few channels with a constant offset, as the keys of some models have: NMSE looks clean, the rest is ruined.
TEST(FidelityTest, ConstantOffsetChannelsShowInTheFloorErrorAlone) {
  std::mt19937 random(5);
  std::normal_distribution<float> normal(0, 1);
  const Plane plane =
      FilledPlane(kShape, [&](size_t, size_t, size_t c) { return normal(random) + (c % 32 == 3 ? 40.0f : 0.0f); });
  ExpectErrorsByDefinition(plane, Nqkv4(64));
  const PlaneErrors errors = Encode(plane, Nqkv4(64)).result.errors;
  EXPECT_GT(errors.floor_error, 0.5f);
  EXPECT_LT(errors.nmse, 0.03f);
}

TEST(FidelityTest, ASinkTokenDoesNotHideTheOthers) {
  std::mt19937 random(6);
  std::normal_distribution<float> normal(0, 1);
  const Plane plane =
      FilledPlane(kShape, [&](size_t t, size_t, size_t) { return normal(random) * (t == 0 ? 100.0f : 1.0f); });
  ExpectErrorsByDefinition(plane, Nqkv4(64));
}

TEST(FidelityTest, ZeroOverZeroIsZero) {
  const Plane zeros = FilledPlane(kShape, [](size_t, size_t, size_t) { return 0.0f; });
  const PlaneErrors errors = Encode(zeros, Nqkv4(64)).result.errors;
  EXPECT_EQ(errors.floor_error, 0);
  EXPECT_EQ(errors.token_norm_error, 0);
  EXPECT_EQ(errors.nmse, 0);
}

TEST(FidelityTest, OneHotRowsHaveNoError) {
  const Plane plane = FilledPlane(kShape, [](size_t t, size_t, size_t c) { return c == (t * 7) % 128 ? 3.25f : 0.0f; });
  EXPECT_EQ(Encode(plane, Nqkv4(64)).result.errors.floor_error, 0);
}

TEST(FidelityTest, ErrorWithNoFloorLeftIsInfinite) {
  // Two channels carry everything, so nothing is left of the signal when the strongest eight are taken away.
  const Plane plane = FilledPlane(kShape, [](size_t, size_t, size_t c) {
    return c == 0 ? 1.0f : c == 1 ? 0.6f : 0.0f;
  });
  EXPECT_TRUE(std::isinf(Encode(plane, Nqkv4(64)).result.errors.floor_error));
}

TEST(FidelityTest, ErrorBelowAMillionthOfTheSignalCountsAsNone) {
  HeadFidelity head;
  head.Add(0, {.signal = 2.0f, .error = 2.0f * 0x1p-21f, .decoded = 2.0f}, RowWeight(2.0f));
  EXPECT_EQ(head.FloorError(1e-6f), 0);
  HeadFidelity worse;
  worse.Add(0, {.signal = 2.0f, .error = 2.0f * 0x1p-19f, .decoded = 2.0f}, RowWeight(2.0f));
  EXPECT_FLOAT_EQ(worse.FloorError(0.5f), 0x1p-18f);
}

TEST(FidelityTest, TheFloorLeavesOutTheStrongestSixteenth) {
  std::vector<float> energies(32, 1.0f);
  energies[7] = 50;
  energies[30] = 40;
  EXPECT_EQ(FloorEnergy(energies), 30);
  energies[1] = 40;  // A tie at the border: one of the two goes.
  EXPECT_EQ(FloorEnergy(energies), 29 + 40);
}

TEST(FidelityTest, TheFloorOfEqualEnergiesIsFifteenSixteenths) {
  EXPECT_EQ(FloorEnergy(std::vector<float>(64, 0.5f)), 30);
  EXPECT_EQ(FloorEnergy(std::vector<float>(8, 0.0f)), 0);
}

TEST(FidelityTest, TheFloorIsThatOfSortingForAnyEnergies) {
  std::mt19937 random(9);
  for (int round = 0; round < 500; ++round) {
    std::vector<float> energies(8 * (1 + random() % 24));
    for (float& energy : energies)
      energy = std::ldexp(static_cast<float>(random() % 5), static_cast<int>(random() % 9));
    std::vector<float> sorted = energies;
    std::sort(sorted.begin(), sorted.end(), std::greater<>());
    float want = 0;
    for (size_t i = StrongChannels(sorted.size()); i < sorted.size(); ++i) want += sorted[i];
    ASSERT_EQ(FloorEnergy(energies), want);  // Small integers: exact in any order.
  }
}

}  // namespace
}  // namespace nqkv
