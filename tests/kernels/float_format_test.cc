#include "kernels/float_format.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>

namespace nqkv {
namespace {

// The definition, with nothing of the implementation's bit arithmetic.
double Float16Value(uint16_t bits) {
  const int exponent = (bits >> 10) & 31, fraction = bits & 1023;
  const double magnitude = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

bool IsFinite16(uint16_t bits) { return (bits & 0x7c00) != 0x7c00; }

TEST(FloatFormatTest, EveryFiniteFloat16HasItsValue) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    if (!IsFinite16(half)) continue;
    ASSERT_EQ(Float16ToFloat(half), Float16Value(half)) << bits;
  }
}

TEST(FloatFormatTest, EveryFloat16ComesBack) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const bool signalling = !IsFinite16(half) && (half & 0x3ff) != 0 && (half & 0x200) == 0;
    ASSERT_EQ(FloatToFloat16(Float16ToFloat(half)), signalling ? half | 0x200 : half) << bits;
  }
}

TEST(FloatFormatTest, RoundsToTheNearestFloat16AndTiesToEven) {
  for (uint16_t bits = 0; bits < 0x7bff; ++bits) {
    const auto next = static_cast<uint16_t>(bits + 1);
    const auto middle = static_cast<float>((Float16Value(bits) + Float16Value(next)) / 2);
    const uint16_t even = (bits & 1) == 0 ? bits : next;
    ASSERT_EQ(FloatToFloat16(middle), even);
    ASSERT_EQ(FloatToFloat16(std::nextafterf(middle, 0)), bits);
    ASSERT_EQ(FloatToFloat16(std::nextafterf(middle, 1e9f)), next);
    ASSERT_EQ(FloatToFloat16(-middle), 0x8000 | even);
  }
}

TEST(FloatFormatTest, WhatIsTooLargeForFloat16BecomesInfinity) {
  EXPECT_EQ(FloatToFloat16(65504.0f), 0x7bff);
  EXPECT_EQ(FloatToFloat16(std::nextafterf(65520.0f, 0)), 0x7bff);
  EXPECT_EQ(FloatToFloat16(65520.0f), 0x7c00);
  EXPECT_EQ(FloatToFloat16(-1e30f), 0xfc00);
  EXPECT_EQ(FloatToFloat16(std::numeric_limits<float>::infinity()), 0x7c00);
}

TEST(FloatFormatTest, NanStaysNanInBothFormats) {
  for (uint32_t bits : {0x7f800001u, 0x7fc00000u, 0x7fffffffu, 0xff800001u}) {
    const float nan = std::bit_cast<float>(bits);
    EXPECT_TRUE(std::isnan(Float16ToFloat(FloatToFloat16(nan))));
    EXPECT_TRUE(std::isnan(Bfloat16ToFloat(FloatToBfloat16(nan))));
  }
}

TEST(FloatFormatTest, RoundsToTheNearestBfloat16AndTiesToEven) {
  std::mt19937 random(1);
  for (int i = 0; i < 200000; ++i) {
    const uint32_t high = random() & 0xffff;
    if ((high & 0x7f80) == 0x7f80) continue;
    const uint32_t low = i % 4 == 0 ? 0x8000 : random() & 0xffff;
    const uint32_t up = low > 0x8000 || (low == 0x8000 && (high & 1) != 0);
    ASSERT_EQ(FloatToBfloat16(std::bit_cast<float>(high << 16 | low)), high + up);
  }
}

}  // namespace
}  // namespace nqkv
