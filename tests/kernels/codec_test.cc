#include "kernels/codec.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "kernels/float_format.h"
#include "kernels/nqkv4_codec.h"
#include "kernels/nqkv4h_codec.h"
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
  EXPECT_EQ(EncodedBytes(kQ8Channel, kShape), 2u * (5 * 128 + 2 * 128));
  EXPECT_EQ(EncodedBytes(kQ8Token, kShape), 2u * 5 * (128 + 2));
  EXPECT_EQ(EncodedBytes(kQ8Token, {.tokens = 3, .heads = 1, .channels = 136}), 3u * (136 + 2 * 2));
  EXPECT_EQ(EncodedBytes(Nqkv4h(64), kShape), EncodedBytes(Nqkv4(64), kShape));
  EXPECT_EQ(EncodedBytes(Nqkv4h(64, 8), kShape), EncodedBytes(Nqkv4(64), kShape) + 2 * 8 * (2 + 2 + 5));
}

TEST(CodecTest, NamesAreThoseUsersWrite) {
  EXPECT_EQ(PlaneCodecName(kRawCodec), "raw");
  EXPECT_EQ(PlaneCodecName(Nqkv4(64)), "nqkv4-g64");
  EXPECT_EQ(PlaneCodecName(Nqkv4(128)), "nqkv4-g128");
  EXPECT_EQ(PlaneCodecName(Nqkv4(256)), "nqkv4-g256");
  EXPECT_EQ(PlaneCodecName(kRowCodec), "nqkv4-row-g256");
  EXPECT_EQ(PlaneCodecName(Nqkv4h(64)), "nqkv4h-g64");
  EXPECT_EQ(PlaneCodecName(Nqkv4h(128, 4)), "nqkv4h-g128-k4");
  EXPECT_EQ(PlaneCodecName(Nqkv4h(256, 8)), "nqkv4h-g256-k8");
  EXPECT_EQ(PlaneCodecName(kQ8Channel), "q8-channel");
  EXPECT_EQ(PlaneCodecName(kQ8Token), "q8-token");
  EXPECT_EQ(PlaneCodecName(Nqkv4(65)), "unknown");
}

TEST(CodecTest, RefusesNumbersThatTheFormatDoesNotKnow) {
  EXPECT_TRUE(ValidatePlaneCodec(kRawCodec).ok());
  for (const PlaneCodec& codec : kPlaneCodecs) EXPECT_TRUE(ValidatePlaneCodec(codec).ok()) << PlaneCodecName(codec);
  for (uint16_t group : {0, 1, 32, 65, 512}) EXPECT_FALSE(ValidatePlaneCodec(Nqkv4(group)).ok());
  EXPECT_FALSE(ValidatePlaneCodec({.id = CodecId::kRaw, .scale_group = 64}).ok());
  EXPECT_FALSE(ValidatePlaneCodec({.id = CodecId::kRaw, .layout = PlaneLayout::kRow}).ok());
  EXPECT_FALSE(ValidatePlaneCodec({.id = CodecId::kNqkv4, .scale_group = 64, .layout = PlaneLayout::kRow}).ok());
  EXPECT_FALSE(ValidatePlaneCodec({.id = static_cast<CodecId>(1), .scale_group = 64}).ok());
  EXPECT_FALSE(ValidatePlaneCodec({.id = static_cast<CodecId>(6), .scale_group = 64}).ok());
  for (uint16_t group : {1, 64, 127, 256}) {
    EXPECT_FALSE(ValidatePlaneCodec({.id = CodecId::kQ8, .scale_group = group}).ok());
  }
  for (uint8_t strong : {1, 2, 5, 16, 255}) EXPECT_FALSE(ValidatePlaneCodec(Nqkv4h(64, strong)).ok());
  for (CodecId id : {CodecId::kNqkv4, CodecId::kQ8}) {
    EXPECT_FALSE(ValidatePlaneCodec({.id = id, .scale_group = 128, .strong_channels = 4}).ok());
  }
  for (CodecId id : {CodecId::kNqkv4h, CodecId::kQ8}) {
    EXPECT_FALSE(ValidatePlaneCodec({.id = id, .scale_group = 256, .layout = PlaneLayout::kRow}).ok());
  }
}

TEST(CodecTest, AtMostASixteenthOfTheChannelsIsStrong) {
  EXPECT_TRUE(ValidatePlaneCodec(Nqkv4h(64, 4), 64).ok());
  EXPECT_FALSE(ValidatePlaneCodec(Nqkv4h(64, 4), 56).ok());
  EXPECT_TRUE(ValidatePlaneCodec(Nqkv4h(64, 8), 128).ok());
  EXPECT_FALSE(ValidatePlaneCodec(Nqkv4h(64, 8), 120).ok());
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

// The last few round to infinity as bf16.
TEST(CodecTest, Q8IsIdempotentForEveryNormalFloat16Scale) {
  for (Dtype dtype : {Dtype::kFloat16, Dtype::kBfloat16}) {
    for (uint32_t scale = 0x0400; scale < 0x7b80; scale += 64) {
      PlaneShape shape = {.tokens = 64, .heads = 1, .channels = 64, .dtype = dtype};
      const Plane plane = FilledPlane(shape, [&](size_t t, size_t, size_t c) {
        const float largest = Float16ToFloat(static_cast<uint16_t>(scale + t));
        return c == 0 ? largest : largest * (static_cast<float>(c * 4 % 255) / 127.0f - 1.0f);
      });
      const Encoded once = Encode(plane, kQ8Token);
      ASSERT_EQ(Encode(Decode(once.bytes, shape, kQ8Token, dtype), kQ8Token).bytes, once.bytes) << scale;
    }
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
  for (const PlaneCodec& codec : {Nqkv4(64), kRowCodec, kQ8Channel, kQ8Token, Nqkv4h(64), Nqkv4h(128, 8)}) {
    PlaneShape shape = kShape;
    shape.dtype = Dtype::kFloat32;
    Plane plane = NormalPlane(shape, 3);
    plane.set(4, 1, 127, codec.id == CodecId::kNqkv4h ? 40000.0f : 65519.0f);
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

// Half the energy of a row can meet in one number of the rotated row.
TEST(CodecTest, ARotatedRowCanBeTooLargeWhereNoElementIs) {
  const Plane plane = FilledPlane(kShape, [](size_t, size_t, size_t c) { return IsNegated(c) ? -30000.0f : 30000.0f; });
  const EncodeResult result = Encode(plane, Nqkv4h(64)).result;
  EXPECT_TRUE(result.finite);
  EXPECT_FALSE(result.in_scale_range);
  EXPECT_TRUE(Encode(plane, Nqkv4(64)).result.in_scale_range);
}

TEST(CodecTest, Q8IsWithinHalfAPlaceOfTheSource) {
  for (const PlaneCodec& codec : {kQ8Channel, kQ8Token}) {
    const Plane plane = NormalPlane(kShape, 8);
    const Plane decoded = Decode(Encode(plane, codec).bytes, kShape, codec, Dtype::kFloat32);
    for (size_t h = 0; h < kShape.heads; ++h) {
      for (size_t t = 0; t < kShape.tokens; ++t) {
        for (size_t c = 0; c < kShape.channels; ++c) {
          float absmax = 0;
          if (codec == kQ8Channel) {
            for (size_t i = 0; i < kShape.tokens; ++i) absmax = std::max(absmax, std::fabs(plane.at(i, h, c)));
          } else {
            for (size_t i = 0; i < kShape.channels; ++i) absmax = std::max(absmax, std::fabs(plane.at(t, h, i)));
          }
          ASSERT_LE(std::fabs(plane.at(t, h, c) - decoded.at(t, h, c)), absmax * 0.5001f / 127);
        }
      }
    }
  }
}

TEST(CodecTest, StrongChannelsCostTheOthersNothing) {
  const PlaneShape shape = {.tokens = 64, .heads = 2, .channels = 128, .dtype = Dtype::kFloat16};
  const Plane quiet = NormalPlane(shape, 9);
  Plane loud = quiet;
  for (size_t t = 0; t < shape.tokens; ++t) {
    for (size_t c : {5, 21, 85, 127}) loud.set(t, 0, c, 60.0f + static_cast<float>(c));
  }
  EXPECT_GT(Encode(loud, Nqkv4(64)).result.errors.floor_error, 0.5f);
  EXPECT_GT(Encode(loud, Nqkv4h(64)).result.errors.floor_error, 0.5f);
  EXPECT_LT(Encode(loud, Nqkv4h(64, 4)).result.errors.floor_error, 0.012f);
  EXPECT_LT(Encode(loud, Nqkv4h(64, 8)).result.errors.floor_error, 0.012f);
}

// The encoder measures in rotated coordinates, which the transform keeps the energies of.
TEST(CodecTest, MeasuredErrorsAreThoseOfWhatComesBack) {
  const PlaneShape shape = {.tokens = 20, .heads = 1, .channels = 192, .dtype = Dtype::kFloat32};
  const Plane plane = FilledPlane(shape, [normal = NormalPlane(shape, 10)](size_t t, size_t h, size_t c) {
    return normal.at(t, h, c) + (c % 50 == 3 ? 9.0f : 0.0f);
  });
  for (const PlaneCodec& codec : CodecsFor(shape)) {
    const Encoded encoded = Encode(plane, codec);
    const Plane decoded = Decode(encoded.bytes, shape, codec, Dtype::kFloat32);
    double error = 0, signal = 0, norm_error = 0;
    for (size_t t = 0; t < shape.tokens; ++t) {
      double row = 0, back = 0;
      for (size_t c = 0; c < shape.channels; ++c) {
        const double x = plane.at(t, 0, c), y = decoded.at(t, 0, c);
        error += (x - y) * (x - y);
        row += x * x;
        back += y * y;
      }
      signal += row;
      norm_error = std::max(norm_error, std::fabs(std::sqrt(back / row) - 1));
    }
    SCOPED_TRACE(std::string(PlaneCodecName(codec)));
    // The error that the rotated rest has in the strong channels is counted, though the strong channels hide it.
    const double strong_share = static_cast<double>(codec.strong_channels) / shape.channels;
    EXPECT_GE(encoded.result.errors.nmse, (1 - 1e-4) * error / signal);
    EXPECT_LE(encoded.result.errors.nmse, (1 + 1e-4 + 2 * strong_share) * error / signal);
    EXPECT_NEAR(encoded.result.errors.token_norm_error, norm_error, codec.strong_channels == 0 ? 1e-5 : 5e-4);
  }
}

TEST(CodecTest, StrongChannelsThatAreNoneAreDamageAndHarmNobody) {
  const PlaneShape shape = {.tokens = 3, .heads = 2, .channels = 128, .dtype = Dtype::kFloat16};
  const PlaneCodec codec = Nqkv4h(64, 4);
  const std::vector<std::byte> good = Encode(NormalPlane(shape, 11), codec).bytes;
  EXPECT_TRUE(CheckEncodedPlane(codec, shape, good).ok());
  const size_t second_head = good.size() / 2, numbers = second_head + 3 * (64 + 2 * 2);
  for (uint16_t channel : {uint16_t{0}, uint16_t{128}, uint16_t{0xffff}}) {
    std::vector<std::byte> bad = good;
    std::memcpy(bad.data() + numbers + 3 * sizeof(channel), &channel, sizeof(channel));
    const absl::Status status = CheckEncodedPlane(codec, shape, bad);
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
    EXPECT_NE(std::string(status.message()).find("strong channel 3 of head 1"), std::string::npos) << status;
    Decode(bad, shape, codec, Dtype::kFloat16);
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
  for (const PlaneCodec& codec : CodecsFor(kShape)) {
    const Encoded encoded = Encode(plane, codec);
    EXPECT_EQ(encoded.result.crc32c, Crc32c(encoded.bytes));
  }
}

TEST(CodecTest, AHeadRangeDecodesToThatPartOfTheWhole) {
  const PlaneShape shape = {.tokens = 7, .heads = 6, .channels = 80, .dtype = Dtype::kFloat16};
  const Plane plane = NormalPlane(shape, 6);
  for (const PlaneCodec& codec : CodecsFor(shape)) {
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
