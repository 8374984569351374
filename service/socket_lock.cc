#include "service/socket_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

namespace nqkv {

absl::StatusOr<SocketLock> SocketLock::Acquire(const std::string& path) {
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (fd < 0) return absl::UnavailableError(absl::StrCat(path, ": ", std::strerror(errno)));
  SocketLock lock(fd);
  if (flock(fd, LOCK_EX | LOCK_NB) == 0) return lock;
  if (errno == EWOULDBLOCK) return absl::AlreadyExistsError(absl::StrCat(path, " is held by another nqkvd"));
  return absl::UnavailableError(absl::StrCat(path, ": ", std::strerror(errno)));
}

SocketLock::SocketLock(SocketLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}

SocketLock& SocketLock::operator=(SocketLock&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}

SocketLock::~SocketLock() {
  if (fd_ >= 0) close(fd_);
}

}  // namespace nqkv
