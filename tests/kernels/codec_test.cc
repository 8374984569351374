#include "kernels/codec.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/float_format.h"
#include "kernels/nqkv4_codec.h"
#include "tests/kernels/plane_values.h"

namespace nqkv {
namespace {

constexpr PlaneShape kShape = {.tokens = 5, .heads = 2, .channels = 128, .dtype = Dtype::kFloat16};

TEST(CodecTest, SizesAreThoseOfTheFormat) {
  EXPECT_EQ(EncodedBytes(kRawCodec, kShape), 5u * 2 * 128 * 2);
  EXPECT_EQ(EncodedBytes(Nqkv4(64), kShape), 5u * 2 * (64 + 2 * 2));
  EXPECT_EQ(EncodedBytes(Nqkv4(128), kShape), 5u * 2 * (64 + 2));
  EXPECT_EQ(EncodedBytes(Nqkv4(256), kShape), 5u * 2 * (64 + 2));
  EXPECT_EQ(EncodedBytes(kRowCodec, kShape), 5u * (128 + 2));
  EXPECT_EQ(EncodedBytes(Nqkv4(64), {.tokens = 1, .heads = 1, .channels = 80}), 40u + 2 * 2);
}

TEST(CodecTest, NamesAreThoseUsersWrite) {
  EXPECT_EQ(PlaneCodecName(kRawCodec), "raw");
  EXPECT_EQ(PlaneCodecName(Nqkv4(64)), "nqkv4-g64");
  EXPECT_EQ(PlaneCodecName(Nqkv4(128)), "nqkv4-g128");
  EXPECT_EQ(PlaneCodecName(Nqkv4(256)), "nqkv4-g256");
  EXPECT_EQ(PlaneCodecName(kRowCodec), "nqkv4-row-g256");
}

TEST(CodecTest, RefusesNumbersThatTheFormatDoesNotKnow) {
  EXPECT_TRUE(ValidatePlaneCodec(kRawCodec).ok());
  for (uint16_t group : {64, 128, 256}) EXPECT_TRUE(ValidatePlaneCodec(Nqkv4(group)).ok());
  EXPECT_TRUE(ValidatePlaneCodec(kRowCodec).ok());
  for (uint16_t group : {0, 1, 32, 65, 512}) EXPECT_FALSE(ValidatePlaneCodec(Nqkv4(group)).ok());
  EXPECT_FALSE(ValidatePlaneCodec({.id = CodecId::kRaw, .scale_group = 64}).ok());
  EXPECT_FALSE(ValidatePlaneCodec({.id = CodecId::kRaw, .layout = PlaneLayout::kRow}).ok());
  EXPECT_FALSE(ValidatePlaneCodec({.id = CodecId::kNqkv4, .scale_group = 64, .layout = PlaneLayout::kRow}).ok());
  EXPECT_FALSE(ValidatePlaneCodec({.id = static_cast<CodecId>(1), .scale_group = 64}).ok());
}

TEST(CodecTest, DecodedValuesAreWithinHalfTheWidestStepOfTheSource) {
  // The widest gap between levels is 0.3037 of the scale; the grid may add half of 1/127.
  for (Dtype dtype : {Dtype::kFloat16, Dtype::kBfloat16, Dtype::kFloat32}) {
    PlaneShape shape = kShape;
    shape.dtype = dtype;
    const Plane plane = NormalPlane(shape, 2);
    const Plane decoded = Decode(Encode(plane, Nqkv4(64)).bytes, shape, Nqkv4(64), Dtype::kFloat32);
    for (size_t t = 0; t < shape.tokens; ++t) {
      for (size_t h = 0; h < shape.heads; ++h) {
        for (size_t g = 0; g < 2; ++g) {
          float absmax = 0;
          for (size_t c = 64 * g; c < 64 * g + 64; ++c) absmax = std::max(absmax, std::fabs(plane.at(t, h, c)));
          for (size_t c = 64 * g; c < 64 * g + 64; ++c) {
            ASSERT_LE(std::fabs(plane.at(t, h, c) - decoded.at(t, h, c)), absmax * (0.1519f + 0.5f / 127 + 1e-3f));
          }
        }
      }
    }
  }
}

TEST(CodecTest, EncodingWhatWasDecodedChangesNothing) {
  for (uint16_t group : {64, 128, 256}) {
    const Plane plane = NormalPlane({.tokens = 64, .heads = 4, .channels = 192, .dtype = Dtype::kFloat16}, group);
    const Encoded once = Encode(plane, Nqkv4(group));
    const Plane decoded = Decode(once.bytes, plane.shape, Nqkv4(group), Dtype::kFloat16);
    EXPECT_EQ(Encode(decoded, Nqkv4(group)).bytes, once.bytes);
  }
}

// For every scale down to where its levels fall together: what is decoded must come back as the same bytes.
TEST(CodecTest, IsIdempotentForEveryNormalFloat16Scale) {
  for (uint32_t scale = 0x0400; scale < 0x7c00; scale += 64) {
    PlaneShape shape = {.tokens = 64, .heads = 1, .channels = 64, .dtype = Dtype::kFloat16};
    const Plane plane = FilledPlane(shape, [&](size_t t, size_t, size_t c) {
      const float largest = Float16ToFloat(static_cast<uint16_t>(scale + t));
      return c == 0 ? largest : largest * (static_cast<float>(c * 4 % 255) / 127.0f - 1.0f);
    });
    const Encoded once = Encode(plane, Nqkv4(64));
    ASSERT_EQ(Encode(Decode(once.bytes, shape, Nqkv4(64), Dtype::kFloat16), Nqkv4(64)).bytes, once.bytes) << scale;
  }
}

TEST(CodecTest, ZerosStayZeros) {
  const Plane plane = FilledPlane(kShape, [](size_t, size_t, size_t c) { return c % 2 == 0 ? 0.0f : -0.0f; });
  const Encoded encoded = Encode(plane, Nqkv4(64));
  const Plane decoded = Decode(encoded.bytes, kShape, Nqkv4(64), Dtype::kFloat16);
  EXPECT_EQ(decoded.bytes, std::vector<std::byte>(decoded.bytes.size(), std::byte{0}));
  EXPECT_EQ(encoded.bytes[0], std::byte{0x77});
}

TEST(CodecTest, TellsNanAndInfinityFromTooLarge) {
  for (const PlaneCodec& codec : {Nqkv4(64), kRowCodec}) {
    PlaneShape shape = kShape;
    shape.dtype = Dtype::kFloat32;
    Plane plane = NormalPlane(shape, 3);
    plane.set(4, 1, 127, 65519.0f);
    EXPECT_TRUE(Encode(plane, codec).result.in_scale_range);
    plane.set(4, 1, 127, 65520.0f);
    EXPECT_FALSE(Encode(plane, codec).result.in_scale_range);
    EXPECT_TRUE(Encode(plane, codec).result.finite);
    plane.set(2, 0, 77, -std::numeric_limits<float>::infinity());
    EXPECT_FALSE(Encode(plane, codec).result.finite);
    EXPECT_FALSE(Encode(plane, codec).result.in_scale_range);
    plane.set(4, 1, 127, std::numeric_limits<float>::quiet_NaN());
    EXPECT_FALSE(Encode(plane, codec).result.finite);
  }
}

TEST(CodecTest, RawStoresNonFiniteAndSaysSo) {
  Plane plane = NormalPlane(kShape, 4);
  EXPECT_TRUE(Encode(plane, kRawCodec).result.finite);
  plane.set(1, 1, 1, std::numeric_limits<float>::infinity());
  const Encoded encoded = Encode(plane, kRawCodec);
  EXPECT_FALSE(encoded.result.finite);
  EXPECT_EQ(Decode(encoded.bytes, kShape, kRawCodec, Dtype::kFloat16).bytes, plane.bytes);
}

TEST(CodecTest, ChecksumsAreOfTheEncodedBytes) {
  const Plane plane = NormalPlane(kShape, 5);
  for (const PlaneCodec& codec : {kRawCodec, Nqkv4(64), Nqkv4(256), kRowCodec}) {
    const Encoded encoded = Encode(plane, codec);
    EXPECT_EQ(encoded.result.crc32c, Crc32c(encoded.bytes));
  }
}

TEST(CodecTest, AHeadRangeDecodesToThatPartOfTheWhole) {
  const PlaneShape shape = {.tokens = 7, .heads = 6, .channels = 80, .dtype = Dtype::kFloat16};
  const Plane plane = NormalPlane(shape, 6);
  for (const PlaneCodec& codec : {kRawCodec, Nqkv4(64), kRowCodec}) {
    const Encoded encoded = Encode(plane, codec);
    const Plane whole = Decode(encoded.bytes, shape, codec, Dtype::kBfloat16);
    Plane part({.tokens = 7, .heads = 3, .channels = 80, .dtype = Dtype::kBfloat16}, 6);
    const std::vector<std::byte> untouched = part.bytes;
    DecodePlane({.encoded = encoded.bytes,
                 .shape = shape,
                 .codec = codec,
                 .head_begin = 2,
                 .head_end = 5,
                 .dtype = Dtype::kBfloat16,
                 .target = part.bytes.data(),
                 .token_stride = part.token_stride,
                 .head_stride = part.head_stride});
    for (size_t t = 0; t < 7; ++t) {
      for (size_t h = 0; h < 3; ++h) {
        ASSERT_EQ(std::memcmp(part.row(t, h), whole.row(t, h + 2), 160), 0);
        ASSERT_EQ(std::memcmp(part.row(t, h) + 160, untouched.data(), 6), 0);  // The gap.
      }
    }
  }
}

TEST(CodecTest, RawConvertsBetweenDtypes) {
  const Plane plane =
      FilledPlane({.tokens = 1, .heads = 1, .channels = 8, .dtype = Dtype::kFloat32},
                  [](size_t, size_t, size_t c) { return c == 0 ? 1e9f : 1.0f + std::ldexp(1.0f, -int(c) * 3); });
  const Encoded encoded = Encode(plane, kRawCodec);
  const Plane half = Decode(encoded.bytes, plane.shape, kRawCodec, Dtype::kFloat16);
  EXPECT_TRUE(std::isinf(half.at(0, 0, 0)));
  EXPECT_EQ(half.at(0, 0, 3), 1.0f + 0x1p-9f);
  EXPECT_EQ(half.at(0, 0, 4), 1.0f);  // 1 + 2^-12 is nearer to 1 than to the next fp16.
  EXPECT_EQ(Decode(encoded.bytes, plane.shape, kRawCodec, Dtype::kBfloat16).at(0, 0, 3), 1.0f);
}

}  // namespace
}  // namespace nqkv
