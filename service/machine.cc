#include "service/machine.h"

#include <sched.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <optional>
#include <sstream>
#include <thread>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "kernels/codec.h"

namespace nqkv {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

std::optional<std::string> ReadFile(const std::string& path) {
  std::ifstream file(path);
  if (!file) return std::nullopt;
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// "max" and other words are no number: no limit.
std::optional<uint64_t> ReadNumber(const std::string& path) {
  const std::optional<std::string> text = ReadFile(path);
  uint64_t number = 0;
  if (!text.has_value() || !absl::SimpleAtoi(*text, &number)) return std::nullopt;
  return number;
}

uint64_t SystemAvailableBytes(const std::string& root) {
  const std::string text = ReadFile(root + "/proc/meminfo").value_or("");
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    const std::vector<absl::string_view> words = absl::StrSplit(line, ' ', absl::SkipEmpty());
    uint64_t kib = 0;
    if (words.size() >= 2 && words[0] == "MemAvailable:" && absl::SimpleAtoi(words[1], &kib)) return kib * 1024;
  }
  return uint64_t{1} << 30;
}

struct ControlGroupFiles {
  std::string root;
  std::string path;
  absl::string_view limit;
  absl::string_view usage;
};

// Version 2's line is "0::/path", version 1's has the controller's name: "9:memory:/path".
std::optional<ControlGroupFiles> MemoryControlGroup(const std::string& root) {
  const std::string text = ReadFile(root + "/proc/self/cgroup").value_or("");
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    const std::vector<std::string> fields = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (fields.size() != 3) continue;
    if (fields[1] == "memory") {
      return ControlGroupFiles{root + "/sys/fs/cgroup/memory", fields[2], "memory.limit_in_bytes",
                               "memory.usage_in_bytes"};
    }
    if (fields[0] == "0" && fields[1].empty()) {
      return ControlGroupFiles{root + "/sys/fs/cgroup", fields[2], "memory.max", "memory.current"};
    }
  }
  return std::nullopt;
}

uint64_t ControlGroupAvailableBytes(const std::string& root) {
  uint64_t available = UINT64_MAX;
  const std::optional<ControlGroupFiles> files = MemoryControlGroup(root);
  if (!files.has_value()) return available;
  // In a container the path may name a place outside its view: the root is always tried.
  std::string path = files->path;
  while (true) {
    const std::string folder = absl::StrCat(files->root, path == "/" ? "" : path, "/");
    const std::optional<uint64_t> limit = ReadNumber(absl::StrCat(folder, files->limit));
    const std::optional<uint64_t> usage = ReadNumber(absl::StrCat(folder, files->usage));
    if (limit.has_value() && usage.has_value()) available = std::min(available, *limit - std::min(*limit, *usage));
    if (path.empty() || path == "/") return available;
    path.resize(path.rfind('/') == std::string::npos ? 0 : path.rfind('/'));
  }
}

bool CanCreateIn(const std::string& folder) { return access(folder.c_str(), W_OK | X_OK) == 0; }

}  // namespace

uint64_t AvailableMemoryBytes(const std::string& root) {
  return std::min(SystemAvailableBytes(root), ControlGroupAvailableBytes(root));
}

uint64_t DefaultHostBytes(const std::string& root) {
  return std::max(AvailableMemoryBytes(root) / 2 / kMiB, uint64_t{64}) * kMiB;
}

uint32_t AvailableCores() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return static_cast<uint32_t>(std::max(1, CPU_COUNT(&set)));
  return std::max(1u, std::thread::hardware_concurrency());
}

std::string DefaultSocketDirectory() {
  std::string run = "/run/nqkv";
  if (CanCreateIn(run) || (access(run.c_str(), F_OK) != 0 && CanCreateIn("/run"))) return run;
  const char* runtime = std::getenv("XDG_RUNTIME_DIR");
  if (runtime != nullptr && *runtime != '\0' && CanCreateIn(runtime)) return absl::StrCat(runtime, "/nqkv");
  return absl::StrCat("/tmp/nqkv-", geteuid());
}

absl::Status PrepareSocketDirectory(const std::string& path) {
  if (mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) {
    return absl::UnavailableError(absl::StrCat("socket directory ", path, ": ", std::strerror(errno)));
  }
  struct stat info = {};
  if (lstat(path.c_str(), &info) != 0 || !S_ISDIR(info.st_mode)) {
    return absl::UnavailableError(absl::StrCat("socket directory ", path, ": not a directory"));
  }
  if (info.st_uid != geteuid() && info.st_uid != 0) {
    return absl::PermissionDeniedError(absl::StrCat("socket directory ", path, " belongs to user ", info.st_uid));
  }
  if (!CanCreateIn(path)) {
    return absl::PermissionDeniedError(absl::StrCat("socket directory ", path, " cannot be written"));
  }
  return absl::OkStatus();
}

std::string VisibleGpu(const std::string& root) {
  for (const char* path : {"/dev/nvidia0", "/proc/driver/nvidia/version", "/dev/dxg"}) {
    if (access((root + path).c_str(), F_OK) == 0) return path;
  }
  return "";
}

std::string DescribeBackend(const std::string& gpu) {
  std::string cpu = absl::StrCat("CPU backend, codec path ", CodecPathName());
  if (gpu.empty()) return cpu;
  return absl::StrCat(cpu, "; a GPU is visible (", gpu, ") and not used: the CUDA backend is not built yet");
}

}  // namespace nqkv
