// On a GPU (label gpu) and, on every commit, on the fake device.
#include "kernels/cuda_backend.h"
#include "tests/conformance/backend_conformance.h"

namespace nqkv {
namespace {

std::unique_ptr<Backend> MakeSmallCudaBackend() {
  auto backend = MakeCudaBackend({.staging_bytes = 40000, .staging_buffers = 2});
  EXPECT_TRUE(backend.ok()) << backend.status();
  return backend.ok() ? *std::move(backend) : nullptr;
}

}  // namespace

INSTANTIATE_TEST_SUITE_P(Cuda, BackendConformanceTest, testing::Values(&MakeSmallCudaBackend));

}  // namespace nqkv
