// Linked into tests that run on a GPU: where there is none, the whole program is skipped.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>

#include "tests/kernels/device_rig.h"

namespace nqkv {
namespace {

constexpr int kSkipped = 77;

class GpuEnvironment : public testing::Environment {
 public:
  void SetUp() override {
    const std::optional<std::string> reason = DeviceRig::WhyNone();
    if (!reason.has_value()) return;
    std::printf("%s\n", reason->c_str());
    std::fflush(stdout);
    std::_Exit(kSkipped);
  }
};

const testing::Environment* const environment = testing::AddGlobalTestEnvironment(new GpuEnvironment);

}  // namespace
}  // namespace nqkv
