#include "storage/arena.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"

namespace nqkv {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kBytes = 1 << 20;

bool Exists(const std::string& path) {
  struct stat info = {};
  return lstat(path.c_str(), &info) == 0;
}

void WriteFile(const std::string& path, const std::string& text) { std::ofstream(path) << text; }

std::string ReadFile(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

class ArenaFileTest : public ::testing::Test {
 protected:
  ArenaFileTest() {
    std::string folder = "/dev/shm/nqkv-arena-test-XXXXXX";
    if (mkdtemp(folder.data()) == nullptr) {
      folder = absl::StrCat(::testing::TempDir(), "/nqkv-arena-test-XXXXXX");
      EXPECT_NE(mkdtemp(folder.data()), nullptr);
    }
    folder_ = folder;
    path_ = absl::StrCat(folder_, "/arena");
  }
  ~ArenaFileTest() override {
    unlink(path_.c_str());
    EXPECT_EQ(rmdir(folder_.c_str()), 0) << "something was left behind";
  }

  std::string folder_;
  std::string path_;
};

TEST(ArenaTest, AnonymousMemoryIsZeroedAndWritable) {
  for (const bool prefault : {false, true}) {
    auto arena = Arena::Create({.bytes = kBytes, .prefault = prefault, .huge_pages = true});
    ASSERT_EQ(arena.status(), absl::OkStatus());
    const auto bytes = (*arena)->bytes();
    EXPECT_GE(bytes.size(), kBytes);
    EXPECT_TRUE(std::all_of(bytes.begin(), bytes.end(), [](std::byte byte) { return byte == std::byte{0}; }));
    std::fill(bytes.begin(), bytes.end(), std::byte{1});
  }
}

TEST(ArenaTest, RefusesNoBytes) { EXPECT_TRUE(absl::IsInvalidArgument(Arena::Create({}).status())); }

TEST(ArenaTest, MoreThanTheMachineHasIsRefusedWithBothFigures) {
  const uint64_t bytes = uint64_t{1} << 50;
  const absl::Status status = Arena::Create({.bytes = bytes}).status();
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(absl::StrCat("asked for ", bytes, " bytes")));
  EXPECT_THAT(std::string(status.message()), HasSubstr("bytes are free"));
}

TEST_F(ArenaFileTest, IsPrivateFullyAllocatedAndRemovedAtTheEnd) {
  const mode_t mask = umask(0);
  auto arena = Arena::Create({.bytes = kBytes, .path = path_, .prefault = true});
  umask(mask);
  ASSERT_EQ(arena.status(), absl::OkStatus());
  struct stat info = {};
  ASSERT_EQ(stat(path_.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0600u);
  EXPECT_GE(static_cast<uint64_t>(info.st_blocks) * 512, kBytes);
  std::fill((*arena)->bytes().begin(), (*arena)->bytes().end(), std::byte{1});
  arena->reset();
  EXPECT_FALSE(Exists(path_));
}

TEST_F(ArenaFileTest, OneThatAnotherProcessHoldsIsLeftAlone) {
  auto arena = Arena::Create({.bytes = kBytes, .path = path_});
  ASSERT_TRUE(arena.ok());
  (*arena)->bytes()[0] = std::byte{7};
  const absl::Status status = Arena::Create({.bytes = kBytes, .path = path_}).status();
  EXPECT_TRUE(absl::IsAlreadyExists(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("another process holds it"));
  EXPECT_EQ((*arena)->bytes()[0], std::byte{7});
  EXPECT_TRUE(Exists(path_));
}

TEST_F(ArenaFileTest, TakesOverWhatACrashLeftAndStartsZeroed) {
  const std::string copy = absl::StrCat(folder_, "/copy");
  {
    auto arena = Arena::Create({.bytes = kBytes, .path = path_});
    ASSERT_TRUE(arena.ok());
    std::fill((*arena)->bytes().begin(), (*arena)->bytes().end(), std::byte{1});
    ASSERT_EQ(link(path_.c_str(), copy.c_str()), 0);
  }
  ASSERT_EQ(rename(copy.c_str(), path_.c_str()), 0);
  ASSERT_EQ(chmod(path_.c_str(), 0644), 0);
  auto arena = Arena::Create({.bytes = 2 * kBytes, .path = path_});
  ASSERT_EQ(arena.status(), absl::OkStatus());
  const auto bytes = (*arena)->bytes();
  EXPECT_TRUE(std::all_of(bytes.begin(), bytes.end(), [](std::byte byte) { return byte == std::byte{0}; }));
  struct stat info = {};
  ASSERT_EQ(stat(path_.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0600u);
}

TEST_F(ArenaFileTest, NeverOverwritesAFileThatIsNoArena) {
  WriteFile(path_, "a letter to a friend");
  const absl::Status status = Arena::Create({.bytes = kBytes, .path = path_}).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_EQ(ReadFile(path_), "a letter to a friend");
}

TEST_F(ArenaFileTest, DoesNotFollowALink) {
  const std::string target = absl::StrCat(folder_, "/target");
  WriteFile(target, "");
  ASSERT_EQ(symlink(target.c_str(), path_.c_str()), 0);
  EXPECT_FALSE(Arena::Create({.bytes = kBytes, .path = path_}).ok());
  EXPECT_TRUE(Exists(path_));
  EXPECT_EQ(ReadFile(target), "");
  unlink(target.c_str());
}

TEST_F(ArenaFileTest, AMissingFolderIsNotFound) {
  EXPECT_TRUE(absl::IsNotFound(Arena::Create({.bytes = kBytes, .path = absl::StrCat(path_, "/x")}).status()));
}

TEST_F(ArenaFileTest, AFileSystemThatIsTooSmallIsRefusedWithBothFiguresAndNoFileLeft) {
  struct statvfs info = {};
  ASSERT_EQ(statvfs(folder_.c_str(), &info), 0);
  const uint64_t bytes = 2 * uint64_t{info.f_blocks} * info.f_frsize;
  const absl::Status status = Arena::Create({.bytes = bytes, .path = path_}).status();
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(absl::StrCat("asked for ", bytes + Arena::kHeaderBytes)));
  EXPECT_THAT(std::string(status.message()), HasSubstr("bytes are free"));
  EXPECT_FALSE(Exists(path_));
}

TEST_F(ArenaFileTest, AnAllocationThatFailsHalfWayLeavesNoFile) {
  struct rlimit before = {};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = signal(SIGXFSZ, SIG_IGN);
  const struct rlimit small = {.rlim_cur = kBytes / 2, .rlim_max = before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const absl::Status status = Arena::Create({.bytes = kBytes, .path = path_}).status();
  setrlimit(RLIMIT_FSIZE, &before);
  signal(SIGXFSZ, handler);
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_FALSE(Exists(path_));
}

}  // namespace
}  // namespace nqkv
