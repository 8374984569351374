#include "service/machine.h"

#include <filesystem>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_dir.h"

namespace nqkv {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

constexpr uint64_t kMiB = uint64_t{1} << 20;

// A machine whose files lie in a folder.
class MachineTest : public ::testing::Test {
 protected:
  void Write(const std::string& path, const std::string& text) {
    const std::filesystem::path file = root() + path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
  }
  void SetAvailable(uint64_t bytes) {
    Write("/proc/meminfo", absl::StrCat("MemTotal: 99999999 kB\nMemAvailable:   ", bytes / 1'024, " kB\n"));
  }
  const std::string& root() const { return folder_.path(); }

  testing::TempDir folder_;
};

TEST_F(MachineTest, TakesHalfOfTheAvailableMemoryWhereNoGroupLimitsIt) {
  SetAvailable(1'000 * kMiB);
  EXPECT_EQ(AvailableMemoryBytes(root()), 1'000 * kMiB);
  EXPECT_EQ(DefaultHostBytes(root()), 500 * kMiB);
}

TEST_F(MachineTest, TakesHalfOfWhatTheControlGroupLeaves) {
  SetAvailable(100'000 * kMiB);
  Write("/proc/self/cgroup", "0::/pod/container\n");
  Write("/sys/fs/cgroup/pod/container/memory.max", absl::StrCat(3'000 * kMiB, "\n"));
  Write("/sys/fs/cgroup/pod/container/memory.current", absl::StrCat(1'000 * kMiB, "\n"));
  EXPECT_EQ(DefaultHostBytes(root()), 1'000 * kMiB);
}

TEST_F(MachineTest, HeedsTheTightestOfTheGroupsAbove) {
  SetAvailable(100'000 * kMiB);
  Write("/proc/self/cgroup", "0::/pod/container\n");
  Write("/sys/fs/cgroup/pod/container/memory.max", "max\n");
  Write("/sys/fs/cgroup/pod/container/memory.current", "4096\n");
  Write("/sys/fs/cgroup/pod/memory.max", absl::StrCat(600 * kMiB, "\n"));
  Write("/sys/fs/cgroup/pod/memory.current", absl::StrCat(200 * kMiB, "\n"));
  EXPECT_EQ(DefaultHostBytes(root()), 200 * kMiB);
}

TEST_F(MachineTest, FindsTheRootGroupWhenThePathIsOutsideTheContainersView) {
  SetAvailable(100'000 * kMiB);
  Write("/proc/self/cgroup", "0::/outside/of/the/view\n");
  Write("/sys/fs/cgroup/memory.max", absl::StrCat(400 * kMiB, "\n"));
  Write("/sys/fs/cgroup/memory.current", "0\n");
  EXPECT_EQ(DefaultHostBytes(root()), 200 * kMiB);
}

TEST_F(MachineTest, ReadsControlGroupsOfTheFirstVersionToo) {
  SetAvailable(100'000 * kMiB);
  Write("/proc/self/cgroup", "11:cpu,cpuacct:/docker/1\n9:memory:/docker/1\n");
  Write("/sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes", absl::StrCat(800 * kMiB, "\n"));
  Write("/sys/fs/cgroup/memory/docker/1/memory.usage_in_bytes", absl::StrCat(400 * kMiB, "\n"));
  EXPECT_EQ(DefaultHostBytes(root()), 200 * kMiB);
}

TEST_F(MachineTest, TakesAtLeast64MiB) {
  SetAvailable(10 * kMiB);
  EXPECT_EQ(DefaultHostBytes(root()), 64 * kMiB);
  Write("/proc/self/cgroup", "0::/full\n");
  Write("/sys/fs/cgroup/full/memory.max", "1000\n");
  Write("/sys/fs/cgroup/full/memory.current", "2000\n");
  EXPECT_EQ(AvailableMemoryBytes(root()), 0u);
  EXPECT_EQ(DefaultHostBytes(root()), 64 * kMiB);
}

TEST_F(MachineTest, NamesAVisibleGpuAsUnused) {
  EXPECT_EQ(VisibleGpu(root()), "");
  EXPECT_THAT(DescribeBackend(VisibleGpu(root())),
              AllOf(StartsWith("CPU backend, codec path "), Not(HasSubstr("GPU"))));
  Write("/dev/nvidia0", "");
  EXPECT_EQ(VisibleGpu(root()), "/dev/nvidia0");
  EXPECT_THAT(DescribeBackend(VisibleGpu(root())),
              AllOf(StartsWith("CPU backend, codec path "), HasSubstr("a GPU is visible (/dev/nvidia0) and not used")));
}

}  // namespace
}  // namespace nqkv
