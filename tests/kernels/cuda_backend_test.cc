// The backend on a fake device that is slow, out of order, full or broken.
#include "kernels/cuda_backend.h"

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "tests/kernels/plane_values.h"
#include "tests/support/fake_cuda/fake_runtime.h"

namespace nqkv {
namespace {

constexpr PlaneShape kShape = {.tokens = 16, .heads = 2, .channels = 64};
constexpr CudaBackendOptions kSmall = {.staging_bytes = 20000, .staging_buffers = 2};

class CudaBackendTest : public testing::Test {
 protected:
  CudaBackendTest() { fake_cuda::Reset({.seed = 1}); }
  ~CudaBackendTest() override { fake_cuda::Reset({}); }
};

struct Block {
  std::vector<Plane> planes;
  std::vector<PlaneEncodeJob> jobs;
  std::vector<EncodeResult> results;

  Block(size_t count, uint32_t seed, std::byte* memory) : results(count) {
    for (size_t i = 0; i < count; ++i) {
      planes.push_back(NormalPlane(kShape, seed + static_cast<uint32_t>(i)));
      jobs.push_back({.source = planes.back().bytes.data(),
                      .token_stride = planes.back().token_stride,
                      .head_stride = planes.back().head_stride,
                      .shape = kShape,
                      .codec = Nqkv4(64),
                      .encoded = memory + i * 2048});
    }
  }

  // Encodes, decodes and compares; an error is an answer, wrong data are not.
  absl::Status RoundTrip(Backend& backend) {
    for (size_t i = 0; i < planes.size(); ++i) jobs[i].source = planes[i].bytes.data();
    absl::Status status = backend.Encode(jobs, results);
    if (!status.ok()) return status;
    std::vector<Plane> got(planes.size(), Plane(kShape));
    std::vector<PlaneDecodeJob> decodes;
    for (size_t i = 0; i < planes.size(); ++i) {
      EXPECT_EQ(results[i].crc32c, EncodeReference(planes[i], Nqkv4(64)).result.crc32c);
      decodes.push_back({.encoded = jobs[i].encoded,
                         .crc32c = results[i].crc32c,
                         .shape = kShape,
                         .codec = Nqkv4(64),
                         .head_begin = 0,
                         .head_end = kShape.heads,
                         .dtype = kShape.dtype,
                         .target = got[i].bytes.data(),
                         .token_stride = got[i].token_stride,
                         .head_stride = got[i].head_stride});
    }
    status = backend.Decode(decodes);
    if (!status.ok()) return status;
    for (size_t i = 0; i < planes.size(); ++i) {
      const std::vector<std::byte> encoded = EncodeReference(planes[i], Nqkv4(64)).bytes;
      EXPECT_EQ(got[i].bytes, Decode(encoded, kShape, Nqkv4(64), kShape.dtype).bytes);
    }
    return status;
  }
};

TEST_F(CudaBackendTest, NeverGivesWrongDataInWhateverOrderStreamsRun) {
  for (uint32_t seed = 1; seed <= 10; ++seed) {
    fake_cuda::Reset({.seed = seed});
    const auto backend = MakeCudaBackend(kSmall);
    ASSERT_TRUE(backend.ok());
    const auto memory = (*backend)->Allocate(64 * 2048);
    ASSERT_TRUE(memory.ok());
    std::vector<std::thread> threads;
    for (uint32_t i = 0; i < 4; ++i) {
      threads.emplace_back([&, i] {
        const absl::Status status =
            Block(9, seed * 100 + i, (*memory)->bytes().data() + i * 16 * 2048).RoundTrip(**backend);
        EXPECT_TRUE(status.ok()) << status;
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
}

TEST_F(CudaBackendTest, FailingCallsAreErrorsAndNothingElse) {
  size_t failed = 0, succeeded = 0;
  for (uint32_t seed = 1; seed <= 20; ++seed) {
    fake_cuda::Reset({.seed = seed});
    const auto backend = MakeCudaBackend(kSmall);
    ASSERT_TRUE(backend.ok());
    const auto memory = (*backend)->Allocate(64 * 2048);
    ASSERT_TRUE(memory.ok());
    fake_cuda::SetFailureRate(0.02);
    std::vector<std::thread> threads;
    std::atomic<size_t> errors = 0, successes = 0;
    for (uint32_t i = 0; i < 3; ++i) {
      threads.emplace_back([&, i] {
        Block block(5, seed * 100 + i, (*memory)->bytes().data() + i * 16 * 2048);
        for (int round = 0; round < 3; ++round) ++(block.RoundTrip(**backend).ok() ? successes : errors);
      });
    }
    for (std::thread& thread : threads) thread.join();
    failed += errors;
    succeeded += successes;
    fake_cuda::SetFailureRate(0);
  }
  EXPECT_GT(failed, 10u);
  EXPECT_GT(succeeded, 10u);
}

TEST_F(CudaBackendTest, FailsForGoodOnceTheDeviceIsBroken) {
  const auto backend = MakeCudaBackend(kSmall);
  ASSERT_TRUE(backend.ok());
  const auto memory = (*backend)->Allocate(64 * 2048);
  ASSERT_TRUE(memory.ok());
  Block block(3, 1, (*memory)->bytes().data());
  EXPECT_TRUE(block.RoundTrip(**backend).ok());
  fake_cuda::Break();
  EXPECT_EQ(block.RoundTrip(**backend).code(), absl::StatusCode::kInternal);
  EXPECT_EQ(block.RoundTrip(**backend).code(), absl::StatusCode::kInternal);
  std::byte byte{};
  EXPECT_EQ((*backend)->Read((*memory)->bytes().data(), {&byte, 1}).code(), absl::StatusCode::kInternal);
  EXPECT_EQ((*backend)->Write({&byte, 1}, (*memory)->bytes().data()).code(), absl::StatusCode::kInternal);
}

TEST_F(CudaBackendTest, TakesPlanesOfOneCallInFewLaunches) {
  const auto backend = MakeCudaBackend({.staging_bytes = size_t{1} << 20, .staging_buffers = 1});
  ASSERT_TRUE(backend.ok());
  const auto memory = (*backend)->Allocate(64 * 2048);
  ASSERT_TRUE(memory.ok());
  Block block(32, 1, (*memory)->bytes().data());
  const uint64_t before = fake_cuda::Launches();
  EXPECT_TRUE(block.RoundTrip(**backend).ok());
  EXPECT_EQ(fake_cuda::Launches() - before, 4u);  // Encode, decode, and the checksums of each.
}

TEST_F(CudaBackendTest, AllocatesNothingAfterTheStart) {
  const auto backend = MakeCudaBackend(kSmall);
  ASSERT_TRUE(backend.ok());
  const auto memory = (*backend)->Allocate(64 * 2048);
  ASSERT_TRUE(memory.ok());
  const fake_cuda::InUse before = fake_cuda::Count();
  EXPECT_EQ(before.device_bytes, 2 * 20000u + 64 * 2048u);
  EXPECT_EQ(before.pinned_bytes, 2 * 20000u);
  EXPECT_TRUE(Block(20, 1, (*memory)->bytes().data()).RoundTrip(**backend).ok());
  EXPECT_EQ(fake_cuda::Count(), before);
}

TEST_F(CudaBackendTest, RefusesAPlaneThatIsLargerThanItsBuffers) {
  const auto backend = MakeCudaBackend({.staging_bytes = 4000, .staging_buffers = 1});
  ASSERT_TRUE(backend.ok());
  const auto memory = (*backend)->Allocate(2048);
  ASSERT_TRUE(memory.ok());
  const absl::Status status = Block(1, 1, (*memory)->bytes().data()).RoundTrip(**backend);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(status.message().find("that has 4000"), std::string::npos) << status;
}

TEST_F(CudaBackendTest, SaysWhyThereIsNone) {
  fake_cuda::Reset({.devices = 0});
  EXPECT_EQ(MakeCudaBackend({}).status().code(), absl::StatusCode::kUnavailable);
  fake_cuda::Reset({.device_bytes = 1000});
  EXPECT_EQ(MakeCudaBackend({}).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(MakeCudaBackend({.staging_buffers = 0}).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(CudaBackendTest, HasNoRowLayout) {
  const auto backend = MakeCudaBackend(kSmall);
  ASSERT_TRUE(backend.ok());
  EXPECT_FALSE((*backend)->Has(kRowCodec));
}

}  // namespace
}  // namespace nqkv
