// Every path that the processor has must give the reference's bits: bytes, checksums and errors.
#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <iostream>
#include <random>
#include <string>
#include <vector>

#include "kernels/codec_path.h"
#include "tests/kernels/plane_values.h"

namespace nqkv {
namespace {

constexpr std::array kDtypes = {Dtype::kFloat16, Dtype::kBfloat16, Dtype::kFloat32};

std::string Describe(const PlaneShape& shape, const PlaneCodec& codec) {
  return std::string(PlaneCodecName(codec)) + " of [" + std::to_string(shape.tokens) + "][" +
         std::to_string(shape.heads) + "][" + std::to_string(shape.channels) + "], dtype " +
         std::to_string(static_cast<int>(shape.dtype));
}

std::array<uint32_t, 3> Bits(const PlaneErrors& errors) { return std::bit_cast<std::array<uint32_t, 3>>(errors); }

// Group and strong channels are independent of each other in nqkv4h: not every pair is worth its time.
bool AddsToTheOthers(const PlaneCodec& codec) {
  return codec.id != CodecId::kNqkv4h || (codec.scale_group == 64) != (codec.strong_channels == 0);
}

class CodecPathTest : public testing::TestWithParam<CodecPath> {
 protected:
  std::vector<std::byte> EncodeUnmeasured(const Plane& plane, const PlaneCodec& codec) {
    std::vector<std::byte> encoded(EncodedBytes(codec, plane.shape));
    EncodePlaneOn(GetParam(), {.source = plane.bytes.data(),
                               .token_stride = plane.token_stride,
                               .head_stride = plane.head_stride,
                               .shape = plane.shape,
                               .codec = codec,
                               .encoded = encoded,
                               .measure = false});
    return encoded;
  }

  void ExpectSameEncoding(const Plane& plane, const PlaneCodec& codec) {
    const Encoded want = EncodeReference(plane, codec), got = EncodeOn(GetParam(), plane, codec);
    ASSERT_EQ(got.result.finite, want.result.finite) << Describe(plane.shape, codec);
    ASSERT_EQ(got.result.in_scale_range, want.result.in_scale_range) << Describe(plane.shape, codec);
    if (codec.id != CodecId::kRaw && !(want.result.finite && want.result.in_scale_range)) return;
    ASSERT_EQ(got.bytes, want.bytes) << Describe(plane.shape, codec);
    ASSERT_EQ(got.result.crc32c, want.result.crc32c) << Describe(plane.shape, codec);
    ASSERT_EQ(Bits(got.result.errors), Bits(want.result.errors)) << Describe(plane.shape, codec);
    ASSERT_EQ(EncodeUnmeasured(plane, codec), want.bytes) << Describe(plane.shape, codec);
  }

  // Decodes the middle heads, to each dtype, with gaps and without, around the cache and through it.
  void ExpectSameDecoding(const std::vector<std::byte>& encoded, const PlaneShape& shape, const PlaneCodec& codec) {
    const uint32_t head_begin = shape.heads / 3;
    for (Dtype dtype : kDtypes) {
      for (size_t gap : {0, 32, 6}) {
        const PlaneShape part = {shape.tokens, shape.heads - head_begin, shape.channels, dtype};
        Plane want(part, gap), got(part, gap);
        DecodeArgs args{.encoded = encoded,
                        .shape = shape,
                        .codec = codec,
                        .head_begin = head_begin,
                        .head_end = shape.heads,
                        .dtype = dtype,
                        .target = want.bytes.data(),
                        .token_stride = want.token_stride,
                        .head_stride = want.head_stride};
        DecodePlaneReference(args);
        for (bool streaming : {false, true}) {
          std::fill(got.bytes.begin(), got.bytes.end(), std::byte{0x5a});
          args.target = got.bytes.data();
          args.streaming = streaming;
          DecodePlaneOn(GetParam(), args);
          ASSERT_EQ(got.bytes, want.bytes) << Describe(shape, codec) << " to " << static_cast<int>(dtype);
        }
      }
    }
  }

  void ExpectSame(const Plane& plane, const PlaneCodec& codec) {
    ExpectSameEncoding(plane, codec);
    ExpectSameDecoding(EncodeReference(plane, codec).bytes, plane.shape, codec);
  }

  void ExpectSameForAllCodecs(const Plane& plane) {
    for (const PlaneCodec& codec : CodecsFor(plane.shape)) {
      if (AddsToTheOthers(codec)) ExpectSame(plane, codec);
    }
  }
};

PlaneShape RandomShape(std::mt19937& random, uint32_t tokens_max) {
  const auto below = [&](uint32_t end) { return static_cast<uint32_t>(random() % end); };
  return {.tokens = 1 + below(tokens_max),
          .heads = 1 + below(4),
          .channels = 8 * (1 + below(40)),
          .dtype = kDtypes[below(3)]};
}

TEST_P(CodecPathTest, EqualsTheReferenceForEveryWidth) {
  for (Dtype dtype : kDtypes) {
    for (uint32_t channels = 8; channels <= 576; channels += 8) {
      ExpectSameForAllCodecs(NormalPlane({.tokens = 3, .heads = 2, .channels = channels, .dtype = dtype}, channels));
    }
  }
}

TEST_P(CodecPathTest, EqualsTheReferenceForWideHeads) {
  for (uint32_t channels : {1024u, 1032u, 2048u, 4096u, 4104u, 8184u, 8192u}) {
    ExpectSameForAllCodecs(NormalPlane({.tokens = 11, .heads = 2, .channels = channels}, channels));
  }
}

TEST_P(CodecPathTest, EqualsTheReferenceForAnyNumberOfTokens) {
  for (uint32_t tokens = 1; tokens <= 256; tokens += tokens < 70 ? 1 : 31) {
    const Dtype dtype = kDtypes[tokens % 3];
    const Plane plane = NormalPlane({.tokens = tokens, .heads = 2, .channels = 64, .dtype = dtype}, tokens);
    for (const PlaneCodec& codec : {Nqkv4(64), kRawCodec, Nqkv4h(64, 4), kQ8Channel, kQ8Token}) {
      ExpectSame(plane, codec);
    }
  }
}

TEST_P(CodecPathTest, EqualsTheReferenceForManyHeads) {
  for (uint32_t heads : {1u, 63u, 64u, 65u, 127u, 128u, 129u, 300u}) {
    ExpectSame(NormalPlane({.tokens = 9, .heads = heads, .channels = 64}, heads), Nqkv4(64));
    ExpectSame(NormalPlane({.tokens = 2, .heads = heads, .channels = 128}, heads), Nqkv4(64));
  }
}

TEST_P(CodecPathTest, EqualsTheReferenceForAnyStride) {
  for (size_t gap : {2, 8, 16, 30, 32, 64, 4096}) {
    for (Dtype dtype : kDtypes) {
      ExpectSameForAllCodecs(NormalPlane({.tokens = 10, .heads = 3, .channels = 80, .dtype = dtype}, 1, 0.8f, gap));
    }
  }
}

// Every 16-bit pattern as an element, those beside it of the same size and so of the same scale.
TEST_P(CodecPathTest, EqualsTheReferenceForEvery16BitPattern) {
  for (Dtype dtype : {Dtype::kFloat16, Dtype::kBfloat16}) {
    Plane plane({.tokens = 16, .heads = 1, .channels = 512, .dtype = dtype});
    for (uint32_t first = 0; first < 65536; first += 8192) {
      for (uint32_t i = 0; i < 8192; ++i) {
        const auto bits = static_cast<uint16_t>(first + i);
        std::memcpy(plane.bytes.data() + 2 * i, &bits, 2);
      }
      ExpectSameForAllCodecs(plane);
    }
  }
}

// Every 16-bit pattern that has a scale, beside one fixed value, so that each is placed on many scales' grids.
TEST_P(CodecPathTest, EqualsTheReferenceForEvery16BitPatternOnForeignScales) {
  for (Dtype dtype : {Dtype::kFloat16, Dtype::kBfloat16}) {
    for (float largest : {0x1p-24f, 3 * 0x1p-24f, 0x1p-14f, 0.37f, 1.0f, 1234.5f, 65000.0f}) {
      std::vector<uint16_t> patterns;
      Plane probe({.tokens = 1, .heads = 1, .channels = 8, .dtype = dtype});
      for (uint32_t bits = 0; bits < 65536; ++bits) {
        const auto pattern = static_cast<uint16_t>(bits);
        std::memcpy(probe.bytes.data(), &pattern, 2);
        if (std::fabs(probe.at(0, 0, 0)) <= largest) patterns.push_back(pattern);
      }
      const auto tokens = static_cast<uint32_t>(patterns.size() / 63 / 1000 + 1);
      Plane plane({.tokens = std::min(tokens * 1000, 1024u), .heads = 1, .channels = 64, .dtype = dtype});
      for (size_t t = 0, next = 0; t < plane.shape.tokens; ++t) {
        for (size_t c = 0; c < 63; ++c) std::memcpy(plane.row(t, 0) + 2 * c, &patterns[next++ % patterns.size()], 2);
        plane.set(t, 0, 63, largest);
      }
      for (const PlaneCodec& codec : {Nqkv4(64), Nqkv4h(64), Nqkv4h(64, 4), kQ8Channel, kQ8Token}) {
        ExpectSame(plane, codec);
      }
    }
  }
}

TEST_P(CodecPathTest, EqualsTheReferenceForAdversarialValues) {
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
      [&](size_t, size_t, size_t) { return sign() * std::ldexp(1.0f, exponent(-149, -60)); },
      [&](size_t, size_t, size_t) { return sign() * std::ldexp(1.7f, exponent(-70, -60)); },
      [&](size_t, size_t, size_t) { return static_cast<float>(random() % 64) * 0x1p-24f; },
      [&](size_t, size_t, size_t c) { return c % 16 == 3 ? 60.0f : sign() * 0.01f; },
      [&](size_t t, size_t, size_t) { return t % 3 == 0 ? 0.0f : sign() * 0x1p-25f; },
      [](size_t, size_t, size_t c) { return (static_cast<float>(c) + 0.5f) / 127.0f; },  // Ties of the grid.
      [](size_t, size_t, size_t c) { return c == 0 ? 1.0f : (static_cast<float>(c % 254) - 126.5f) / 127.0f; },
  };
  for (size_t i = 0; i < makers.size(); ++i) {
    SCOPED_TRACE("maker " + std::to_string(i));
    for (Dtype dtype : kDtypes) {
      ExpectSameForAllCodecs(FilledPlane({.tokens = 19, .heads = 2, .channels = 128, .dtype = dtype}, makers[i]));
      ExpectSameForAllCodecs(FilledPlane({.tokens = 5, .heads = 3, .channels = 112, .dtype = dtype}, makers[i]));
    }
  }
}

TEST_P(CodecPathTest, EqualsTheReferenceForRandomBits) {
  std::mt19937 random(12);
  for (int round = 0; round < 100; ++round) {
    const PlaneShape shape = RandomShape(random, 20);
    Plane plane(shape);
    for (std::byte& byte : plane.bytes) byte = static_cast<std::byte>(random());
    ExpectSameForAllCodecs(plane);
  }
}

TEST_P(CodecPathTest, FindsNonFiniteAndTooLargeWhereverTheyAre) {
  for (Dtype dtype : kDtypes) {
    for (size_t t : {0, 7, 8, 18}) {
      for (size_t c : {0, 63, 64, 111}) {
        for (float bad : {INFINITY, -INFINITY, NAN, 65520.0f, -1e9f}) {
          Plane plane = NormalPlane({.tokens = 19, .heads = 2, .channels = 112, .dtype = dtype}, 1);
          plane.set(t, 1, c, bad);
          for (const PlaneCodec& codec : CodecsFor(plane.shape)) ExpectSameEncoding(plane, codec);
        }
      }
    }
  }
}

// What no encoder writes but a stored block may hold: any codes, any scales, NaN and negative ones included.
TEST_P(CodecPathTest, DecodesAnyBytesLikeTheReference) {
  std::mt19937 random(13);
  for (int round = 0; round < 100; ++round) {
    const PlaneShape shape = RandomShape(random, 9);
    for (const PlaneCodec& codec : CodecsFor(shape)) {
      std::vector<std::byte> encoded(EncodedBytes(codec, shape));
      for (std::byte& byte : encoded) byte = static_cast<std::byte>(random());
      ExpectSameDecoding(encoded, shape, codec);
    }
  }
}

TEST(FastestCodecPathTest, IsTheOneThatRuns) {
  CodecPath fastest = CodecPath::kScalar;
  for (CodecPath path : kCodecPaths) fastest = HasCodecPath(path) ? path : fastest;
  EXPECT_EQ(CodecPathName(), CodecPathName(fastest));
}

// The vector paths, since the scalar one is the reference. Those that the processor lacks are named in the output,
// since they have not been tested.
std::vector<CodecPath> AvailablePaths() {
  std::vector<CodecPath> paths;
  for (CodecPath path : kCodecPaths) {
    if (HasCodecPath(path)) {
      if (path != CodecPath::kScalar) paths.push_back(path);
    } else {
      std::cout << "NOT RUN: codec path " << CodecPathName(path) << ", which this processor lacks\n";
    }
  }
  if (paths.empty()) paths.push_back(CodecPath::kScalar);
  return paths;
}

INSTANTIATE_TEST_SUITE_P(Paths, CodecPathTest, testing::ValuesIn(AvailablePaths()),
                         [](const auto& tested) { return std::string(CodecPathName(tested.param)); });

}  // namespace
}  // namespace nqkv
