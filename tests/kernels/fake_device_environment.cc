// Linked into tests that run on the fake device: threads, warps and streams run in random order.
#include <gtest/gtest.h>

#include "tests/support/fake_cuda/fake_runtime.h"

namespace nqkv {
namespace {

class FakeDeviceEnvironment : public testing::Environment {
 public:
  void SetUp() override { fake_cuda::Reset({.seed = 20260}); }
  void TearDown() override { fake_cuda::Reset({}); }  // Ends the process when something is left.
};

const testing::Environment* const environment = testing::AddGlobalTestEnvironment(new FakeDeviceEnvironment);

}  // namespace
}  // namespace nqkv
