// The memory that blocks live in: anonymous, or a file (on tmpfs) that one process at a time owns.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/status/statusor.h"

namespace nqkv {

struct ArenaOptions {
  uint64_t bytes = 0;       // Rounded up to whole pages of the system.
  std::string path;         // Empty: anonymous.
  bool prefault = false;    // Touch every page now.
  bool huge_pages = false;  // Ask for huge pages; anonymous memory only, a hint.
  // A file outlives its process, and one that was left behind is taken over with its contents when it has this label
  // and size. At most Arena::kLabelBytesMax bytes. Empty: the file does not outlive the arena.
  std::string label;
};

// One mapping, unmapped by the destructor. Starts zeroed, unless restored().
//
// A file has mode 0600, is locked (flock) as long as the arena lives, is allocated in full, so that no later write can
// fail, and is removed by the destructor unless it has a label. One that a crashed process left behind is taken over.
class Arena {
 public:
  // What a file starts with, so that no other file is ever taken for an arena and overwritten.
  static constexpr size_t kHeaderBytes = 4096;
  static constexpr size_t kLabelBytesMax = 256;

  // Errors:
  //   INVALID_ARGUMENT    0 bytes.
  //   RESOURCE_EXHAUSTED  too little memory or room in the file system; says how much was asked for and is free.
  //   ALREADY_EXISTS      another process holds the file.
  //   FAILED_PRECONDITION the path is a file that is no arena.
  //   or what the system said of the path (NOT_FOUND, PERMISSION_DENIED, ...).
  static absl::StatusOr<std::unique_ptr<Arena>> Create(const ArenaOptions& options);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // Whether the contents are a predecessor's.
  bool restored() const { return restored_; }
  // Why the contents of a file that was there were not taken over; empty when there was none, or they were.
  const std::string& discarded() const { return discarded_; }
  // From now on the contents are what the label says: a successor may take them over. Until then, or after `valid` is
  // false, it starts anew.
  void SetValid(bool valid);

  // At least as many bytes as were asked for, aligned to a page.
  std::span<std::byte> bytes() const { return bytes_; }

 private:
  Arena() = default;
  absl::Status MapAnonymous(const ArenaOptions& options);
  absl::Status MapFile(const ArenaOptions& options);
  absl::Status OpenFile(const std::string& path);
  absl::Status TakeOverFile(const ArenaOptions& options, uint64_t bytes);
  std::string FindDifference(const std::string& label, uint64_t bytes) const;
  absl::Status AllocateFile(uint64_t bytes);
  absl::Status Map(uint64_t bytes, int flags);
  absl::Status Prefault();

  void* mapping_ = nullptr;
  size_t mapping_bytes_ = 0;
  std::span<std::byte> bytes_;
  std::string path_;  // Not empty: ours to remove, unless there is a label.
  std::string label_;
  std::string discarded_;
  bool restored_ = false;
  int file_ = -1;
};

}  // namespace nqkv
