// Keeps two servers off one Unix socket: an advisory lock on a file beside it, held as long as the process lives.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace nqkv {

// Move-only; gives the lock up when it goes, and leaves the file.
class SocketLock {
 public:
  // Errors:
  //   ALREADY_EXISTS   another process holds it.
  //   UNAVAILABLE      the file cannot be opened; says why.
  static absl::StatusOr<SocketLock> Acquire(const std::string& path);

  SocketLock() = default;
  SocketLock(SocketLock&& other) noexcept;
  SocketLock& operator=(SocketLock&& other) noexcept;
  ~SocketLock();

 private:
  explicit SocketLock(int fd) : fd_(fd) {}

  int fd_ = -1;
};

}  // namespace nqkv
