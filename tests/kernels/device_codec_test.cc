// The kernels must give the reference's bits: bytes and errors. Runs on a GPU (label gpu) and, on every commit, on the
// CPU under the fake runtime.
#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "tests/kernels/device_rig.h"
#include "tests/kernels/plane_values.h"

namespace nqkv {
namespace {

constexpr std::array kDtypes = {Dtype::kFloat16, Dtype::kBfloat16, Dtype::kFloat32};
constexpr std::array<PlaneCodec, 5> kCodecs = {Nqkv4(64), Nqkv4(128), Nqkv4(256), kQ8Channel, kQ8Token};

std::string Describe(const PlaneShape& shape, const PlaneCodec& codec) {
  return std::string(PlaneCodecName(codec)) + " of [" + std::to_string(shape.tokens) + "][" +
         std::to_string(shape.heads) + "][" + std::to_string(shape.channels) + "], dtype " +
         std::to_string(static_cast<int>(shape.dtype));
}

std::array<uint32_t, 3> Bits(const PlaneErrors& errors) { return std::bit_cast<std::array<uint32_t, 3>>(errors); }

class DeviceCodecTest : public testing::Test {
 protected:
  void ExpectSameEncoding(std::span<const Plane> planes, const PlaneCodec& codec, const Placement& placement) {
    SCOPED_TRACE(Describe(planes.front().shape, codec) + ", " + Describe(placement));
    const auto got = rig_.Encode(planes, codec, placement);
    ASSERT_TRUE(got.ok()) << got.status();
    for (size_t i = 0; i < planes.size(); ++i) {
      const Encoded want = EncodeReference(planes[i], codec);
      ASSERT_EQ((*got)[i].result.finite, want.result.finite) << "plane " << i;
      ASSERT_EQ((*got)[i].result.in_scale_range, want.result.in_scale_range) << "plane " << i;
      if (codec.id != CodecId::kRaw && !(want.result.finite && want.result.in_scale_range)) continue;
      ASSERT_EQ((*got)[i].bytes, want.bytes) << "plane " << i;
      ASSERT_EQ(Bits((*got)[i].result.errors), Bits(want.result.errors)) << "plane " << i;
    }
  }

  // Decodes the heads from a third on.
  void ExpectSameDecoding(std::span<const std::vector<std::byte>> encoded, const PlaneShape& shape,
                          const PlaneCodec& codec, Dtype dtype, const Placement& placement) {
    SCOPED_TRACE(Describe(shape, codec) + " to " + std::to_string(static_cast<int>(dtype)) + ", " +
                 Describe(placement));
    const uint32_t head_begin = shape.heads / 3;
    const auto got = rig_.Decode(encoded, shape, codec, head_begin, dtype, placement);
    ASSERT_TRUE(got.ok()) << got.status();
    for (size_t i = 0; i < encoded.size(); ++i) {
      Plane want({shape.tokens, shape.heads - head_begin, shape.channels, dtype});
      DecodePlaneReference({.encoded = encoded[i],
                            .shape = shape,
                            .codec = codec,
                            .head_begin = head_begin,
                            .head_end = shape.heads,
                            .dtype = dtype,
                            .target = want.bytes.data(),
                            .token_stride = want.token_stride,
                            .head_stride = want.head_stride});
      ASSERT_EQ((*got)[i], Place(want, placement)) << "plane " << i;
    }
  }

  void ExpectSame(const Plane& plane, const PlaneCodec& codec, const Placement& placement = {}) {
    ExpectSameEncoding({&plane, 1}, codec, placement);
    const std::vector<std::byte> encoded = EncodeReference(plane, codec).bytes;
    ExpectSameDecoding({&encoded, 1}, plane.shape, codec, kDtypes[plane.shape.channels / 8 % 3], placement);
  }

  DeviceRig rig_;
};

PlaneShape RandomShape(std::mt19937& random, uint32_t tokens_max) {
  const auto below = [&](uint32_t end) { return static_cast<uint32_t>(random() % end); };
  return {.tokens = 1 + below(tokens_max),
          .heads = 1 + below(4),
          .channels = 8 * (1 + below(40)),
          .dtype = kDtypes[below(3)]};
}

TEST_F(DeviceCodecTest, EqualsTheReferenceForEveryWidth) {
  for (uint32_t channels = 8; channels <= 576; channels += 8) {
    const Dtype dtype = kDtypes[channels / 8 % 3];
    const Plane plane = NormalPlane({.tokens = 3, .heads = 2, .channels = channels, .dtype = dtype}, channels);
    ExpectSame(plane, kCodecs[channels / 8 % kCodecs.size()]);
  }
}

TEST_F(DeviceCodecTest, EqualsTheReferenceForTheWidthsOfModels) {
  for (uint32_t channels : {64u, 80u, 96u, 112u, 128u, 192u, 256u, 576u}) {
    for (Dtype dtype : kDtypes) {
      const Plane plane = NormalPlane({.tokens = 64, .heads = 2, .channels = channels, .dtype = dtype}, channels);
      ExpectSameEncoding({&plane, 1}, Nqkv4(64), {});
      const std::vector<std::byte> encoded = EncodeReference(plane, Nqkv4(64)).bytes;
      for (Dtype target : kDtypes) ExpectSameDecoding({&encoded, 1}, plane.shape, Nqkv4(64), target, {});
    }
  }
}

TEST_F(DeviceCodecTest, EqualsTheReferenceForWideHeads) {
  for (uint32_t channels : {1024u, 2056u, 8184u, 8192u}) {
    for (Dtype dtype : {Dtype::kFloat16, Dtype::kFloat32}) {
      const Plane plane = NormalPlane({.tokens = 5, .heads = 1, .channels = channels, .dtype = dtype}, channels);
      ExpectSame(plane, Nqkv4(64));
      ExpectSame(plane, channels == 8184 ? kQ8Token : kQ8Channel);
    }
  }
}

TEST_F(DeviceCodecTest, EqualsTheReferenceForAnyNumberOfTokens) {
  for (uint32_t tokens = 1; tokens <= 256; tokens += tokens < 35 ? 1 : 31) {
    const Dtype dtype = kDtypes[tokens % 3];
    const Plane plane = NormalPlane({.tokens = tokens, .heads = 2, .channels = 64, .dtype = dtype}, tokens);
    ExpectSame(plane, Nqkv4(64));
    ExpectSame(plane, kQ8Channel);
  }
}

TEST_F(DeviceCodecTest, EqualsTheReferenceForAnyLayout) {
  for (uint32_t page_tokens : {1u, 5u, 16u, 1024u}) {
    for (bool heads_first : {false, true}) {
      for (size_t gap : {0, 4, 16}) {
        for (Dtype dtype : kDtypes) {
          const Plane plane = NormalPlane({.tokens = 33, .heads = 3, .channels = 80, .dtype = dtype}, 7);
          const Placement placement = {.page_tokens = page_tokens,
                                       .page_table = gap != 4,
                                       .heads_first = heads_first,
                                       .gap_bytes = gap,
                                       .base_offset = gap == 16 ? 0 : 2 * gap};
          const PlaneCodec codec = heads_first ? Nqkv4(64) : kCodecs[page_tokens % kCodecs.size()];
          ExpectSameEncoding({&plane, 1}, codec, placement);
          const std::vector<std::byte> encoded = EncodeReference(plane, codec).bytes;
          for (Dtype target : kDtypes) ExpectSameDecoding({&encoded, 1}, plane.shape, codec, target, placement);
        }
      }
    }
  }
}

TEST_F(DeviceCodecTest, EqualsTheReferenceForManyPlanesALaunch) {
  std::vector<Plane> planes;
  std::vector<std::vector<std::byte>> encoded;
  for (uint32_t i = 0; i < 9; ++i) {
    planes.push_back(NormalPlane({.tokens = 20, .heads = 3, .channels = 128}, i, 0.1f * static_cast<float>(i)));
    encoded.push_back(EncodeReference(planes.back(), Nqkv4(128)).bytes);
  }
  const Placement placement = {.page_tokens = 16, .page_table = true};
  ExpectSameEncoding(planes, Nqkv4(128), placement);
  ExpectSameDecoding(encoded, planes.front().shape, Nqkv4(128), Dtype::kBfloat16, placement);
}

// Every 16-bit pattern as an element, those beside it of the same size and so of the same scale.
TEST_F(DeviceCodecTest, EqualsTheReferenceForEvery16BitPattern) {
  for (Dtype dtype : {Dtype::kFloat16, Dtype::kBfloat16}) {
    std::vector<Plane> planes;
    for (uint32_t first = 0; first < 65536; first += 8192) {
      Plane plane({.tokens = 16, .heads = 1, .channels = 512, .dtype = dtype});
      for (uint32_t i = 0; i < 8192; ++i) {
        const auto bits = static_cast<uint16_t>(first + i);
        std::memcpy(plane.bytes.data() + 2 * i, &bits, 2);
      }
      planes.push_back(std::move(plane));
    }
    for (const PlaneCodec& codec : kCodecs) ExpectSameEncoding(planes, codec, {});
  }
}

// Every 16-bit pattern that has a scale, beside one fixed value, so that each is placed on a foreign scale's grid.
TEST_F(DeviceCodecTest, EqualsTheReferenceForEvery16BitPatternOnForeignScales) {
  for (Dtype dtype : {Dtype::kFloat16, Dtype::kBfloat16}) {
    for (float largest : {3 * 0x1p-24f, 0x1p-14f, 1.0f, 65000.0f}) {
      std::vector<uint16_t> patterns;
      Plane probe({.tokens = 1, .heads = 1, .channels = 8, .dtype = dtype});
      for (uint32_t bits = 0; bits < 65536; ++bits) {
        const auto pattern = static_cast<uint16_t>(bits);
        std::memcpy(probe.bytes.data(), &pattern, 2);
        if (std::fabs(probe.at(0, 0, 0)) <= largest) patterns.push_back(pattern);
      }
      const auto tokens = static_cast<uint32_t>(patterns.size() / 63 + 1);
      Plane plane({.tokens = std::min(tokens, 1024u), .heads = 1, .channels = 64, .dtype = dtype});
      for (size_t t = 0, next = 0; t < plane.shape.tokens; ++t) {
        for (size_t c = 0; c < 63; ++c) std::memcpy(plane.row(t, 0) + 2 * c, &patterns[next++ % patterns.size()], 2);
        plane.set(t, 0, 63, largest);
      }
      ExpectSame(plane, Nqkv4(64));
      ExpectSame(plane, kQ8Token);
    }
  }
}

TEST_F(DeviceCodecTest, EqualsTheReferenceForAdversarialValues) {
  std::mt19937 random(11);
  const auto exponent = [&](int low, int high) {
    return low + static_cast<int>(random() % static_cast<uint32_t>(high - low));
  };
  const auto sign = [&] { return random() % 2 == 0 ? 1.0f : -1.0f; };
  const std::vector<std::function<float(size_t, size_t, size_t)>> makers = {
      [](size_t, size_t, size_t) { return 0.0f; },
      [](size_t t, size_t, size_t c) { return c == t ? -7.5f : 0.0f; },
      [](size_t, size_t, size_t c) { return c == 0 ? 65504.0f : 1e-7f; },
      [&](size_t, size_t, size_t) { return sign() * std::ldexp(1.0f, exponent(-24, 15)); },
      [&](size_t, size_t, size_t) { return sign() * std::ldexp(1.0f, exponent(-149, 15)); },
      [&](size_t, size_t, size_t) { return sign() * std::ldexp(1.7f, exponent(-70, -60)); },
      [&](size_t, size_t, size_t) { return static_cast<float>(random() % 64) * 0x1p-24f; },
      [&](size_t, size_t, size_t c) { return c % 16 == 3 ? 60.0f : sign() * 0.01f; },
      [&](size_t t, size_t, size_t) { return t % 3 == 0 ? 0.0f : sign() * 0x1p-25f; },
      [](size_t, size_t, size_t c) { return (static_cast<float>(c) + 0.5f) / 127.0f; },  // Ties of the grid.
      [](size_t, size_t, size_t) { return 1.0f; },  // Channels that tie for the strongest.
  };
  for (size_t i = 0; i < makers.size(); ++i) {
    SCOPED_TRACE("maker " + std::to_string(i));
    for (Dtype dtype : kDtypes) {
      ExpectSame(FilledPlane({.tokens = 19, .heads = 2, .channels = 128, .dtype = dtype}, makers[i]), Nqkv4(64));
      ExpectSame(FilledPlane({.tokens = 5, .heads = 3, .channels = 112, .dtype = dtype}, makers[i]),
                 kCodecs[1 + i % 4]);
    }
  }
}

TEST_F(DeviceCodecTest, EqualsTheReferenceForRandomBits) {
  std::mt19937 random(12);
  for (int round = 0; round < 60; ++round) {
    Plane plane(RandomShape(random, 20));
    for (std::byte& byte : plane.bytes) byte = static_cast<std::byte>(random());
    ExpectSameEncoding({&plane, 1}, kCodecs[static_cast<size_t>(round) % kCodecs.size()], {});
  }
}

TEST_F(DeviceCodecTest, FindsNonFiniteAndTooLargeWhereverTheyAre) {
  for (Dtype dtype : kDtypes) {
    std::vector<Plane> planes;
    for (size_t t : {0, 15, 18}) {
      for (size_t c : {0, 64, 111}) {
        for (float bad : {INFINITY, NAN, 65520.0f, -1e9f}) {
          planes.push_back(NormalPlane({.tokens = 19, .heads = 2, .channels = 112, .dtype = dtype}, 1));
          planes.back().set(t, 1, c, bad);
        }
      }
    }
    for (const PlaneCodec& codec : {Nqkv4(64), kQ8Channel, kQ8Token}) ExpectSameEncoding(planes, codec, {});
  }
}

// What no encoder writes but a stored block may hold: any codes, any scales, NaN and negative ones included.
TEST_F(DeviceCodecTest, DecodesAnyBytesLikeTheReference) {
  std::mt19937 random(13);
  for (int round = 0; round < 60; ++round) {
    const PlaneShape shape = RandomShape(random, 9);
    const PlaneCodec& codec = kCodecs[static_cast<size_t>(round) % kCodecs.size()];
    std::vector<std::byte> encoded(EncodedBytes(codec, shape));
    for (std::byte& byte : encoded) byte = static_cast<std::byte>(random());
    for (Dtype dtype : kDtypes) ExpectSameDecoding({&encoded, 1}, shape, codec, dtype, {});
  }
}

TEST_F(DeviceCodecTest, DecodesInfiniteAndNaNScalesLikeTheReference) {
  for (uint16_t scale : {0x7c00, 0xfc00, 0x7c01, 0xfdff, 0x7e00, 0xffff, 0x8000, 0x0001}) {
    const PlaneShape shape = {.tokens = 1, .heads = 1, .channels = 32};
    std::vector<std::byte> encoded(EncodedBytes(Nqkv4(64), shape));
    for (size_t i = 0; i < 16; ++i) encoded[i] = static_cast<std::byte>(i | (15 - i) << 4);
    std::memcpy(encoded.data() + 16, &scale, 2);
    for (Dtype dtype : kDtypes) ExpectSameDecoding({&encoded, 1}, shape, Nqkv4(64), dtype, {});
  }
}

// nqkv4h: as many strong channels as the width allows, or fewer.
PlaneCodec Rotated(uint16_t scale_group, uint32_t channels, uint32_t variant) {
  constexpr std::array<uint8_t, 3> kStrong = {8, 4, 0};
  for (size_t i = variant % 3; i < 3; ++i) {
    if (16u * kStrong[i] <= channels)
      return {.id = CodecId::kNqkv4h, .scale_group = scale_group, .strong_channels = kStrong[i]};
  }
  return {};
}

TEST_F(DeviceCodecTest, RotatesEveryWidthLikeTheReference) {
  for (uint32_t channels = 8; channels <= 576; channels += 8) {
    const Dtype dtype = kDtypes[channels / 24 % 3];
    const auto scale_group = static_cast<uint16_t>(64u << channels / 8 % 3);
    const Plane plane = NormalPlane({.tokens = 3, .heads = 2, .channels = channels, .dtype = dtype}, channels);
    ExpectSame(plane, Rotated(scale_group, channels, channels / 8));
  }
  for (uint32_t channels : {2056u, 8192u}) {
    const Plane plane = NormalPlane({.tokens = 3, .heads = 1, .channels = channels, .dtype = Dtype::kFloat32}, 1);
    ExpectSame(plane, Rotated(64, channels, 0));
  }
}

TEST_F(DeviceCodecTest, RotatesAnyNumberOfTokensLikeTheReference) {
  for (uint32_t tokens : {1u, 2u, 15u, 16u, 17u, 33u, 64u, 256u}) {
    for (uint32_t variant : {0u, 1u, 2u}) {
      ExpectSame(NormalPlane({.tokens = tokens, .heads = 2, .channels = 128}, tokens), Rotated(64, 128, variant));
    }
  }
}

TEST_F(DeviceCodecTest, RotatesAnyLayoutLikeTheReference) {
  for (uint32_t page_tokens : {5u, 1024u}) {
    for (size_t gap : {0, 4, 16}) {
      for (Dtype dtype : kDtypes) {
        const Plane plane = NormalPlane({.tokens = 33, .heads = 3, .channels = 80, .dtype = dtype}, 7);
        const Placement placement = {
            .page_tokens = page_tokens, .page_table = true, .gap_bytes = gap, .base_offset = gap == 16 ? 0 : gap};
        const PlaneCodec codec = Rotated(64, 80, 1);
        ExpectSameEncoding({&plane, 1}, codec, placement);
        const std::vector<std::byte> encoded = EncodeReference(plane, codec).bytes;
        for (Dtype target : kDtypes) ExpectSameDecoding({&encoded, 1}, plane.shape, codec, target, placement);
      }
    }
  }
}

TEST_F(DeviceCodecTest, RotatesAdversarialValuesLikeTheReference) {
  std::mt19937 random(16);
  const auto sign = [&] { return random() % 2 == 0 ? 1.0f : -1.0f; };
  const std::vector<std::function<float(size_t, size_t, size_t)>> makers = {
      [](size_t, size_t, size_t) { return 0.0f; },
      [](size_t, size_t, size_t) { return 1.0f; },  // Channels that tie for the strongest.
      [](size_t t, size_t, size_t c) { return c == t ? -7.5f : 0.0f; },
      [](size_t, size_t, size_t) { return 65504.0f; },  // Beyond fp16 once rotated.
      [&](size_t, size_t, size_t c) { return c % 16 == 3 ? 60.0f : sign() * 0.01f; },
      [&](size_t, size_t, size_t) { return sign() * std::ldexp(1.0f, -static_cast<int>(random() % 149)); },
      [](size_t t, size_t, size_t c) { return t == 3 && c == 5 ? NAN : 65504.0f; },
      [](size_t t, size_t, size_t c) { return t == 3 && c == 5 ? 1e9f : 1.0f; },
  };
  for (size_t i = 0; i < makers.size(); ++i) {
    SCOPED_TRACE("maker " + std::to_string(i));
    for (Dtype dtype : kDtypes) {
      const Plane plane = FilledPlane({.tokens = 19, .heads = 2, .channels = 128, .dtype = dtype}, makers[i]);
      for (uint32_t variant : {0u, 1u, 2u}) ExpectSameEncoding({&plane, 1}, Rotated(64, 128, variant), {});
    }
  }
}

// Strong channels out of order and beyond the plane included.
TEST_F(DeviceCodecTest, RotatesAnyBytesBackLikeTheReference) {
  std::mt19937 random(17);
  for (uint32_t round = 0; round < 40; ++round) {
    const PlaneShape shape = RandomShape(random, 9);
    const PlaneCodec codec = Rotated(64, shape.channels, round);
    std::vector<std::byte> encoded(EncodedBytes(codec, shape));
    for (std::byte& byte : encoded) byte = static_cast<std::byte>(random());
    ExpectSameDecoding({&encoded, 1}, shape, codec, kDtypes[round % 3], {});
  }
}

TEST_F(DeviceCodecTest, CopiesRawPlanesInAnyLayout) {
  for (uint32_t page_tokens : {5u, 1024u}) {
    for (size_t gap : {0, 4, 16}) {
      for (Dtype dtype : kDtypes) {
        const Plane plane = NormalPlane({.tokens = 33, .heads = 3, .channels = 40, .dtype = dtype}, 7);
        const Placement placement = {
            .page_tokens = page_tokens, .page_table = true, .gap_bytes = gap, .base_offset = gap == 16 ? 0 : gap};
        ExpectSameEncoding({&plane, 1}, kRawCodec, placement);
        const std::vector<std::byte> encoded = EncodeReference(plane, kRawCodec).bytes;
        for (Dtype target : kDtypes) ExpectSameDecoding({&encoded, 1}, plane.shape, kRawCodec, target, placement);
      }
    }
  }
}

// Payloads of NaN included.
TEST_F(DeviceCodecTest, ConvertsEveryRaw16BitPatternLikeTheReference) {
  for (Dtype dtype : {Dtype::kFloat16, Dtype::kBfloat16}) {
    Plane plane({.tokens = 64, .heads = 1, .channels = 1024, .dtype = dtype});
    for (uint32_t i = 0; i < 65536; ++i) {
      const auto bits = static_cast<uint16_t>(i);
      std::memcpy(plane.bytes.data() + 2 * i, &bits, 2);
    }
    ExpectSameEncoding({&plane, 1}, kRawCodec, {});
    const std::vector<std::byte> encoded = EncodeReference(plane, kRawCodec).bytes;
    for (Dtype target : kDtypes) ExpectSameDecoding({&encoded, 1}, plane.shape, kRawCodec, target, {});
  }
}

TEST_F(DeviceCodecTest, ConvertsRandomRawBitsLikeTheReference) {
  std::mt19937 random(14);
  Plane plane({.tokens = 30, .heads = 2, .channels = 136, .dtype = Dtype::kFloat32});
  for (std::byte& byte : plane.bytes) byte = static_cast<std::byte>(random());
  const std::vector<std::byte> encoded = EncodeReference(plane, kRawCodec).bytes;
  for (Dtype target : kDtypes) ExpectSameDecoding({&encoded, 1}, plane.shape, kRawCodec, target, {});
}

TEST_F(DeviceCodecTest, FindsWhatIsNotFiniteInRawPlanes) {
  for (Dtype dtype : kDtypes) {
    std::vector<Plane> planes;
    for (float bad : {INFINITY, NAN, 1e30f, 1.0f}) {
      planes.push_back(NormalPlane({.tokens = 19, .heads = 2, .channels = 112, .dtype = dtype}, 1));
      planes.back().set(18, 1, 111, bad);
    }
    ExpectSameEncoding(planes, kRawCodec, {});
  }
}

TEST_F(DeviceCodecTest, ChecksumsEqualTheHosts) {
  std::mt19937 random(15);
  std::vector<std::vector<std::byte>> bytes;
  for (size_t size : {4, 5, 7, 9, 42, 1022, 1023, 1024, 1025, 1026, 4098, 36864, 100001}) {
    bytes.emplace_back(size);
    for (std::byte& byte : bytes.back()) byte = static_cast<std::byte>(random());
  }
  bytes.emplace_back(5000);  // Zeros.
  for (size_t offset : {0, 2, 5}) {
    const auto crcs = rig_.Checksums(bytes, offset);
    ASSERT_TRUE(crcs.ok()) << crcs.status();
    for (size_t i = 0; i < bytes.size(); ++i) {
      EXPECT_EQ((*crcs)[i], Crc32c(bytes[i])) << bytes[i].size() << " bytes, offset " << offset;
    }
  }
}

TEST_F(DeviceCodecTest, RefusesWhatIsNoPlane) {
  DeviceEncodeArgs encode{.shape = {.tokens = 1, .heads = 1, .channels = 8},
                          .codec = Nqkv4(64),
                          .layout = {.token_stride = 16, .head_stride = 16, .page_tokens = 1}};
  const auto encode_code = [&] { return EncodeOnDevice(encode, rig_.stream()).code(); };
  EXPECT_EQ(encode_code(), absl::StatusCode::kOk);  // No jobs.
  encode.layout.token_stride = 15;
  EXPECT_EQ(encode_code(), absl::StatusCode::kInvalidArgument);
  encode.layout = {.token_stride = 16, .head_stride = 16, .page_tokens = 0};
  EXPECT_EQ(encode_code(), absl::StatusCode::kInvalidArgument);
  encode.layout.page_tokens = 1;
  encode.shape.channels = 12;
  EXPECT_EQ(encode_code(), absl::StatusCode::kInvalidArgument);
  encode.shape.channels = 8;
  encode.codec = kRowCodec;
  EXPECT_EQ(encode_code(), absl::StatusCode::kUnimplemented);
  DeviceDecodeArgs decode{.shape = {.tokens = 1, .heads = 2, .channels = 8},
                          .codec = Nqkv4(64),
                          .head_begin = 1,
                          .head_end = 3,
                          .layout = {.page_tokens = 1}};
  EXPECT_EQ(DecodeOnDevice(decode, rig_.stream()).code(), absl::StatusCode::kInvalidArgument);
  decode.head_end = 1;
  EXPECT_EQ(DecodeOnDevice(decode, rig_.stream()).code(), absl::StatusCode::kInvalidArgument);
  decode.head_end = 2;
  EXPECT_TRUE(DecodeOnDevice(decode, rig_.stream()).ok());
}

}  // namespace
}  // namespace nqkv
