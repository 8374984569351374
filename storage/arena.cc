#include "storage/arena.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <fstream>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/status_macros.h"

namespace nqkv {
namespace {

constexpr char kMagic[16] = "nqkv-arena-v1\n";
// Behind the magic in the header: the label of the contents, zeros while they are not valid.
constexpr size_t kLabelOffset = 64;
constexpr uint64_t kAllocationStepBytes = uint64_t{1} << 30;

uint64_t RoundUp(uint64_t value, uint64_t unit) { return (value + unit - 1) / unit * unit; }

absl::Status SystemError(int error, absl::string_view what, const std::string& path) {
  return absl::ErrnoToStatus(error, absl::StrCat("arena file ", path, ": ", what));
}

absl::Status TooLittle(absl::string_view where, uint64_t asked_bytes, uint64_t free_bytes) {
  return absl::ResourceExhaustedError(
      absl::StrCat(where, ": asked for ", asked_bytes, " bytes, ", free_bytes, " bytes are free"));
}

// What the system could give without swapping; all of memory when it does not say.
uint64_t AvailableMemoryBytes() {
  std::ifstream meminfo("/proc/meminfo");
  std::string name, unit;
  uint64_t kibibytes = 0;
  while (meminfo >> name >> kibibytes) {
    if (name == "MemAvailable:") return kibibytes * 1024;
    std::getline(meminfo, unit);
  }
  return static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

// A tmpfs may be allowed more than there is memory.
uint64_t FreeBytes(int file) {
  struct statfs info = {};
  if (fstatfs(file, &info) != 0) return 0;
  const uint64_t free_bytes = uint64_t{info.f_bavail} * static_cast<uint64_t>(info.f_bsize);
  return info.f_type == TMPFS_MAGIC ? std::min(free_bytes, AvailableMemoryBytes()) : free_bytes;
}

// The path may have been removed, or replaced, between our open and our lock; a lock on such a file protects nothing.
bool StillNamed(int file, const std::string& path) {
  struct stat opened = {}, named = {};
  return fstat(file, &opened) == 0 && stat(path.c_str(), &named) == 0 && opened.st_ino == named.st_ino &&
         opened.st_dev == named.st_dev;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Arena>> Arena::Create(const ArenaOptions& options) {
  if (options.bytes == 0) return absl::InvalidArgumentError("arena: 0 bytes");
  if (options.label.size() > kLabelBytesMax) return absl::InvalidArgumentError("arena: the label is too long");
  std::unique_ptr<Arena> arena(new Arena);
  NQKV_RETURN_IF_ERROR(options.path.empty() ? arena->MapAnonymous(options) : arena->MapFile(options));
  if (options.prefault) NQKV_RETURN_IF_ERROR(arena->Prefault());
  return arena;
}

Arena::~Arena() {
  if (mapping_ != nullptr) munmap(mapping_, mapping_bytes_);
  // Removed while still locked: nobody can have taken it over.
  if (!path_.empty() && label_.empty()) unlink(path_.c_str());
  if (file_ >= 0) close(file_);
}

absl::Status Arena::MapAnonymous(const ArenaOptions& options) {
  const uint64_t bytes = RoundUp(options.bytes, static_cast<uint64_t>(sysconf(_SC_PAGESIZE)));
  const uint64_t available_bytes = AvailableMemoryBytes();
  // The kernel would promise more than it has and kill somebody later.
  if (bytes > available_bytes) return TooLittle("arena in anonymous memory", bytes, available_bytes);
  NQKV_RETURN_IF_ERROR(Map(bytes, MAP_PRIVATE | MAP_ANONYMOUS));
  if (options.huge_pages) madvise(mapping_, mapping_bytes_, MADV_HUGEPAGE);
  bytes_ = {static_cast<std::byte*>(mapping_), mapping_bytes_};
  return absl::OkStatus();
}

absl::Status Arena::MapFile(const ArenaOptions& options) {
  const uint64_t bytes = RoundUp(options.bytes, static_cast<uint64_t>(sysconf(_SC_PAGESIZE))) + kHeaderBytes;
  NQKV_RETURN_IF_ERROR(OpenFile(options.path));
  NQKV_RETURN_IF_ERROR(TakeOverFile(options, bytes));
  NQKV_RETURN_IF_ERROR(AllocateFile(bytes));
  NQKV_RETURN_IF_ERROR(Map(bytes, MAP_SHARED));
  bytes_ = std::span(static_cast<std::byte*>(mapping_), mapping_bytes_).subspan(kHeaderBytes);
  label_ = options.label;
  return absl::OkStatus();
}

// Opens and locks the file at `path`, which is created when there is none.
absl::Status Arena::OpenFile(const std::string& path) {
  for (int attempt = 0; attempt < 16; ++attempt) {
    file_ = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
    if (file_ < 0) return SystemError(errno, "open", path);
    if (flock(file_, LOCK_EX | LOCK_NB) != 0) {
      const int error = errno;
      if (error != EWOULDBLOCK) return SystemError(error, "lock", path);
      return absl::AlreadyExistsError(absl::StrCat("arena file ", path, ": another process holds it"));
    }
    if (StillNamed(file_, path)) return absl::OkStatus();
    close(file_);
    file_ = -1;
  }
  return absl::AbortedError(absl::StrCat("arena file ", path, ": is being replaced all the time"));
}

// Empties the locked file, unless its contents are what the label says, and marks it as an arena; from then on it is
// ours to remove.
absl::Status Arena::TakeOverFile(const ArenaOptions& options, uint64_t bytes) {
  const std::string& path = options.path;
  struct stat info = {};
  if (fstat(file_, &info) != 0) return SystemError(errno, "stat", path);
  char magic[sizeof(kMagic)] = {};
  const bool is_arena =
      S_ISREG(info.st_mode) && (info.st_size == 0 || (pread(file_, magic, sizeof(magic), 0) == sizeof(magic) &&
                                                      memcmp(magic, kMagic, sizeof(magic)) == 0));
  if (!is_arena) {
    return absl::FailedPreconditionError(
        absl::StrCat("arena file ", path, ": exists and is no arena; it is left alone"));
  }
  path_ = path;
  if (fchmod(file_, 0600) != 0) return SystemError(errno, "chmod", path);
  if (!options.label.empty() && info.st_size != 0) {
    discarded_ = FindDifference(options.label, bytes);
    restored_ = discarded_.empty();
    if (restored_) return absl::OkStatus();
  }
  if (ftruncate(file_, 0) != 0) return SystemError(errno, "truncate", path);
  // Marked before it is allocated, so that one left behind by a crash in between is known again.
  if (pwrite(file_, kMagic, sizeof(kMagic), 0) != sizeof(kMagic)) {
    return TooLittle(absl::StrCat("arena file ", path), sizeof(kMagic), FreeBytes(file_));
  }
  return absl::OkStatus();
}

// What tells the file from one of these contents and this size.
std::string Arena::FindDifference(const std::string& label, uint64_t bytes) const {
  struct stat info = {};
  if (fstat(file_, &info) != 0) return "its size cannot be read";
  const auto size = static_cast<uint64_t>(info.st_size);
  char found[kLabelBytesMax] = {};
  if (pread(file_, found, sizeof(found), kLabelOffset) != sizeof(found)) return "its label cannot be read";
  const std::string found_label(found, strnlen(found, sizeof(found)));
  if (found_label.empty()) return "its contents were not complete";
  if (found_label != label) return absl::StrCat("it holds \"", found_label, "\", not \"", label, "\"");
  return size == bytes ? "" : absl::StrCat("it has ", size, " bytes, not ", bytes);
}

void Arena::SetValid(bool valid) {
  if (label_.empty()) return;
  char label[kLabelBytesMax] = {};
  if (valid) memcpy(label, label_.data(), label_.size());
  // The first byte last, so that no half of a label is ever seen.
  char* place = static_cast<char*>(mapping_) + kLabelOffset;
  std::atomic_ref<char> first(*place);
  if (!valid) first.store('\0', std::memory_order_seq_cst);
  memcpy(place + 1, label + 1, sizeof(label) - 1);
  std::atomic_signal_fence(std::memory_order_seq_cst);
  first.store(label[0], std::memory_order_seq_cst);
}

absl::Status Arena::AllocateFile(uint64_t bytes) {
  struct stat info = {};
  if (restored_ && fstat(file_, &info) == 0 && static_cast<uint64_t>(info.st_blocks) * 512 >= bytes) {
    return absl::OkStatus();
  }
  const uint64_t free_bytes = FreeBytes(file_);
  if (bytes > free_bytes) return TooLittle(absl::StrCat("arena file ", path_), bytes, free_bytes);
  // In steps, since a signal makes the call start again.
  for (uint64_t offset = 0; offset < bytes;) {
    const uint64_t step_bytes = std::min(kAllocationStepBytes, bytes - offset);
    const int error = posix_fallocate(file_, static_cast<off_t>(offset), static_cast<off_t>(step_bytes));
    if (error == EINTR) continue;
    if (error == ENOSPC || error == EFBIG) return TooLittle(absl::StrCat("arena file ", path_), bytes, free_bytes);
    if (error != 0) return SystemError(error, absl::StrCat("allocate ", bytes, " bytes"), path_);
    offset += step_bytes;
  }
  return absl::OkStatus();
}

absl::Status Arena::Map(uint64_t bytes, int flags) {
  void* mapping = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, file_, 0);
  if (mapping == MAP_FAILED) {
    const int error = errno;
    if (error == ENOMEM) return TooLittle("arena mapping", bytes, AvailableMemoryBytes());
    return absl::ErrnoToStatus(error, absl::StrCat("arena: map ", bytes, " bytes"));
  }
  mapping_ = mapping;
  mapping_bytes_ = bytes;
  return absl::OkStatus();
}

absl::Status Arena::Prefault() {
#ifdef MADV_POPULATE_WRITE
  if (madvise(mapping_, mapping_bytes_, MADV_POPULATE_WRITE) == 0) return absl::OkStatus();
  if (errno == ENOMEM) return TooLittle("arena prefault", mapping_bytes_, AvailableMemoryBytes());
#endif
  const size_t page_bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  volatile std::byte* page = bytes_.data();
  for (size_t offset = 0; offset < bytes_.size(); offset += page_bytes) page[offset] = std::byte{0};
  return absl::OkStatus();
}

}  // namespace nqkv
