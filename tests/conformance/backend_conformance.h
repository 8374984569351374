// What every Backend owes its caller. A test program names the backend with INSTANTIATE_TEST_SUITE_P; the parameter
// makes one, with staging buffers that hold a few of the planes here.
#pragma once

#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/backend.h"
#include "tests/kernels/plane_values.h"

namespace nqkv {

using MakeBackend = std::unique_ptr<Backend> (*)();

class BackendConformanceTest : public testing::TestWithParam<MakeBackend> {
 protected:
  static constexpr size_t kMemoryBytes = size_t{1} << 20;

  void SetUp() override {
    backend_ = GetParam()();
    ASSERT_NE(backend_, nullptr);
    auto memory = backend_->Allocate(kMemoryBytes);
    ASSERT_TRUE(memory.ok()) << memory.status();
    memory_ = *std::move(memory);
  }

  static std::array<uint32_t, 3> Bits(const PlaneErrors& errors) {
    return std::bit_cast<std::array<uint32_t, 3>>(errors);
  }

  static PlaneEncodeJob EncodeJob(const Plane& plane, const PlaneCodec& codec, std::byte* encoded) {
    return {.source = plane.bytes.data(),
            .token_stride = plane.token_stride,
            .head_stride = plane.head_stride,
            .shape = plane.shape,
            .codec = codec,
            .encoded = encoded};
  }

  // Of heads [head_begin, shape.heads) to `target`.
  static PlaneDecodeJob DecodeJob(const std::byte* encoded, uint32_t crc, const PlaneShape& shape,
                                  const PlaneCodec& codec, uint32_t head_begin, Plane* target) {
    return {.encoded = encoded,
            .crc32c = crc,
            .shape = shape,
            .codec = codec,
            .head_begin = head_begin,
            .head_end = shape.heads,
            .dtype = target->shape.dtype,
            .target = target->bytes.data(),
            .token_stride = target->token_stride,
            .head_stride = target->head_stride};
  }

  std::vector<std::byte> ReadBack(const std::byte* memory, size_t bytes) {
    std::vector<std::byte> copy(bytes);
    const absl::Status status = backend_->Read(memory, copy);
    EXPECT_TRUE(status.ok()) << status;
    return copy;
  }

  // Encodes planes, compares bytes and results with the reference, decodes some heads and compares again.
  void ExpectRoundTrip(std::vector<Plane> planes, const std::vector<PlaneCodec>& codecs, std::byte* memory) {
    std::vector<PlaneEncodeJob> jobs;
    std::vector<std::byte*> places;
    for (size_t i = 0; i < planes.size(); ++i) {
      places.push_back(memory);
      jobs.push_back(EncodeJob(planes[i], codecs[i], memory));
      memory += (EncodedBytes(codecs[i], planes[i].shape) + 15) / 16 * 16;
    }
    std::vector<EncodeResult> results(planes.size());
    const absl::Status encoded = backend_->Encode(jobs, results);
    ASSERT_TRUE(encoded.ok()) << encoded;
    std::vector<Plane> got, want;
    for (size_t i = 0; i < planes.size(); ++i) {
      const Encoded reference = EncodeReference(planes[i], codecs[i]);
      ASSERT_EQ(results[i].finite, reference.result.finite);
      ASSERT_EQ(results[i].in_scale_range, reference.result.in_scale_range);
      ASSERT_EQ(results[i].crc32c, reference.result.crc32c);
      ASSERT_EQ(Bits(results[i].errors), Bits(reference.result.errors));
      ASSERT_EQ(ReadBack(places[i], reference.bytes.size()), reference.bytes);
      PlaneShape shape = planes[i].shape;
      shape.heads -= shape.heads / 3;
      shape.dtype = static_cast<Dtype>(1 + i % 3);
      got.emplace_back(shape, 16 * (i % 2));
      want.emplace_back(shape, 16 * (i % 2));
      const PlaneDecodeJob job =
          DecodeJob(reference.bytes.data(), 0, planes[i].shape, codecs[i], planes[i].shape.heads / 3, &want.back());
      DecodePlaneReference({.encoded = reference.bytes,
                            .shape = job.shape,
                            .codec = job.codec,
                            .head_begin = job.head_begin,
                            .head_end = job.head_end,
                            .dtype = job.dtype,
                            .target = job.target,
                            .token_stride = job.token_stride,
                            .head_stride = job.head_stride});
    }
    std::vector<PlaneDecodeJob> decodes;
    for (size_t i = 0; i < planes.size(); ++i) {
      decodes.push_back(
          DecodeJob(places[i], results[i].crc32c, planes[i].shape, codecs[i], planes[i].shape.heads / 3, &got[i]));
    }
    const absl::Status decoded = backend_->Decode(decodes);
    ASSERT_TRUE(decoded.ok()) << decoded;
    for (size_t i = 0; i < planes.size(); ++i) ASSERT_EQ(got[i].bytes, want[i].bytes) << "plane " << i;
  }

  // Planes of mixed shapes and codecs, some with gaps.
  void ExpectMixedRoundTrip(uint32_t seed, size_t count, std::byte* memory) {
    std::mt19937 random(seed);
    std::vector<Plane> planes;
    std::vector<PlaneCodec> codecs;
    for (size_t i = 0; i < count; ++i) {
      const PlaneShape shape = {.tokens = random() % 3 == 0 ? 7u : 16u,
                                .heads = 1 + static_cast<uint32_t>(random() % 3),
                                .channels = random() % 2 == 0 ? 64u : 80u,
                                .dtype = static_cast<Dtype>(1 + random() % 3)};
      planes.push_back(NormalPlane(shape, seed + static_cast<uint32_t>(i), 0.8f, random() % 2 == 0 ? 0 : 8));
      const std::array kCodecs = {kRawCodec, Nqkv4(64), Nqkv4(128), kQ8Channel, kQ8Token, Nqkv4h(64, 4)};
      codecs.push_back(kCodecs[random() % kCodecs.size()]);
    }
    ExpectRoundTrip(std::move(planes), codecs, memory);
  }

  std::unique_ptr<Backend> backend_;
  std::unique_ptr<BackendMemory> memory_;
};

TEST_P(BackendConformanceTest, EncodesAndDecodesLikeTheReference) {
  ExpectMixedRoundTrip(1, 12, memory_->bytes().data());
}

TEST_P(BackendConformanceTest, TakesAnEmptyCall) {
  EXPECT_TRUE(backend_->Encode({}, {}).ok());
  EXPECT_TRUE(backend_->Decode({}).ok());
  EXPECT_TRUE(backend_->Read(memory_->bytes().data(), {}).ok());
}

TEST_P(BackendConformanceTest, TakesMorePlanesThanItHoldsAtATime) {
  std::vector<Plane> planes;
  std::vector<PlaneCodec> codecs;
  for (uint32_t i = 0; i < 40; ++i) {
    planes.push_back(NormalPlane({.tokens = 16, .heads = 2, .channels = 64}, i));
    codecs.push_back(Nqkv4(64));
  }
  ExpectRoundTrip(std::move(planes), codecs, memory_->bytes().data());
}

TEST_P(BackendConformanceTest, ServesManyThreads) {
  std::vector<std::thread> threads;
  for (uint32_t i = 0; i < 6; ++i) {
    threads.emplace_back([this, i] {
      std::byte* const memory = memory_->bytes().data() + i * (kMemoryBytes / 6 / 64 * 64);
      for (uint32_t round = 0; round < 3; ++round) ExpectMixedRoundTrip(100 * i + round, 5, memory);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_P(BackendConformanceTest, SaysWhatCannotBeEncoded) {
  Plane bad = NormalPlane({.tokens = 8, .heads = 2, .channels = 64}, 1);
  bad.set(7, 1, 63, NAN);
  Plane large = NormalPlane({.tokens = 8, .heads = 2, .channels = 64, .dtype = Dtype::kBfloat16}, 1);
  large.set(7, 1, 63, 1e9f);
  std::byte* const memory = memory_->bytes().data();
  const std::vector<PlaneEncodeJob> jobs = {EncodeJob(bad, Nqkv4(64), memory),
                                            EncodeJob(large, Nqkv4(64), memory + 4096),
                                            EncodeJob(bad, kRawCodec, memory + 8192)};
  std::vector<EncodeResult> results(jobs.size());
  ASSERT_TRUE(backend_->Encode(jobs, results).ok());
  EXPECT_FALSE(results[0].finite);
  EXPECT_TRUE(results[1].finite);
  EXPECT_FALSE(results[1].in_scale_range);
  EXPECT_FALSE(results[2].finite);
  EXPECT_EQ(results[2].crc32c, EncodeReference(bad, kRawCodec).result.crc32c);
}

TEST_P(BackendConformanceTest, FindsDamage) {
  const Plane plane = NormalPlane({.tokens = 8, .heads = 2, .channels = 64}, 1);
  std::byte* const memory = memory_->bytes().data();
  const std::vector<PlaneEncodeJob> jobs = {EncodeJob(plane, Nqkv4(64), memory),
                                            EncodeJob(plane, Nqkv4(64), memory + 4096)};
  std::vector<EncodeResult> results(2);
  ASSERT_TRUE(backend_->Encode(jobs, results).ok());
  std::vector<std::byte> byte = ReadBack(memory + 4096 + 100, 1);
  byte[0] ^= std::byte{4};
  ASSERT_TRUE(backend_->Write(byte, memory + 4096 + 100).ok());
  Plane target(plane.shape);
  const std::vector<PlaneDecodeJob> decodes = {
      DecodeJob(memory, results[0].crc32c, plane.shape, Nqkv4(64), 0, &target),
      DecodeJob(memory + 4096, results[1].crc32c, plane.shape, Nqkv4(64), 0, &target)};
  const absl::Status status = backend_->Decode(decodes);
  EXPECT_EQ(status, absl::DataLossError("plane 1 does not have its checksum"));
  EXPECT_TRUE(backend_->Decode({decodes.data(), 1}).ok());
}

TEST_P(BackendConformanceTest, CopiesBytesOfAnyNumber) {
  std::mt19937 random(3);
  for (size_t bytes : {size_t{1}, size_t{1000}, kMemoryBytes}) {
    std::vector<std::byte> content(bytes);
    for (std::byte& byte : content) byte = static_cast<std::byte>(random());
    ASSERT_TRUE(backend_->Write(content, memory_->bytes().data()).ok());
    EXPECT_EQ(ReadBack(memory_->bytes().data(), bytes), content);
  }
}

TEST_P(BackendConformanceTest, RefusesWhatIsNoPlane) {
  const Plane plane = NormalPlane({.tokens = 8, .heads = 2, .channels = 64}, 1);
  std::vector<EncodeResult> results(1);
  PlaneEncodeJob encode = EncodeJob(plane, Nqkv4(64), memory_->bytes().data());
  encode.codec.scale_group = 63;
  EXPECT_EQ(backend_->Encode({&encode, 1}, results).code(), absl::StatusCode::kInvalidArgument);
  encode.codec.scale_group = 64;
  encode.shape.channels = 60;
  EXPECT_EQ(backend_->Encode({&encode, 1}, results).code(), absl::StatusCode::kInvalidArgument);
  Plane target(plane.shape);
  PlaneDecodeJob decode = DecodeJob(memory_->bytes().data(), 0, plane.shape, Nqkv4(64), 2, &target);
  EXPECT_EQ(backend_->Decode({&decode, 1}).code(), absl::StatusCode::kInvalidArgument);
}

TEST_P(BackendConformanceTest, HasWhatAutoPicks) {
  EXPECT_TRUE(backend_->Has(kRawCodec));
  EXPECT_TRUE(backend_->Has(kQ8Channel));
  EXPECT_TRUE(backend_->Has(Nqkv4h(64, 8)));
  EXPECT_TRUE(backend_->Has(kQ8Token));
  EXPECT_TRUE(backend_->Has(Nqkv4(64)));
  EXPECT_FALSE(backend_->Has({.id = CodecId::kNqkv4, .scale_group = 65}));
}

}  // namespace nqkv
