#include "service/listen_address.h"

#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace nqkv {
namespace {

struct FreeAddressInfo {
  void operator()(addrinfo* info) const { freeaddrinfo(info); }
};

absl::Status BindError(const ListenAddress& address, int error) {
  const std::string text = absl::StrCat(address.ToString(), ": ", std::strerror(error));
  if (error == EADDRINUSE) return absl::AlreadyExistsError(absl::StrCat(address.ToString(), " is already in use"));
  if (error == EACCES) return absl::PermissionDeniedError(text);
  return absl::UnavailableError(text);
}

absl::Status TryBind(const ListenAddress& address, const addrinfo& info) {
  const int fd = socket(info.ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return BindError(address, errno);
  const int on = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));  // A port in TIME_WAIT is free.
  absl::Status status;
  if (bind(fd, info.ai_addr, info.ai_addrlen) != 0 || listen(fd, 1) != 0) status = BindError(address, errno);
  close(fd);
  return status;
}

}  // namespace

absl::StatusOr<ListenAddress> ListenAddress::Parse(absl::string_view text) {
  const auto bad = [&] {
    return absl::InvalidArgumentError(absl::StrCat("'", text, "' is not host:port, such as 127.0.0.1:6758"));
  };
  const size_t colon = text.rfind(':');
  if (colon == absl::string_view::npos) return bad();
  ListenAddress address;
  uint32_t port = 0;
  if (!absl::SimpleAtoi(text.substr(colon + 1), &port) || port > 65'535) return bad();
  address.port = static_cast<uint16_t>(port);
  absl::string_view host = text.substr(0, colon);
  if (absl::StartsWith(host, "[") && absl::EndsWith(host, "]")) {
    host = host.substr(1, host.size() - 2);
  } else if (absl::StrContains(host, ":")) {
    return bad();
  }
  if (host.empty()) return bad();
  address.host = std::string(host);
  return address;
}

std::string ListenAddress::ToString() const {
  return absl::StrContains(host, ":") ? absl::StrCat("[", host, "]:", port) : absl::StrCat(host, ":", port);
}

bool ListenAddress::is_loopback() const {
  return host == "localhost" || host == "::1" || absl::StartsWith(host, "127.");
}

absl::Status ListenAddress::Probe() const {
  addrinfo hints = {};
  hints.ai_flags = AI_PASSIVE;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int error = getaddrinfo(host.c_str(), absl::StrCat(port).c_str(), &hints, &found);
  if (error != 0) return absl::InvalidArgumentError(absl::StrCat("host '", host, "': ", gai_strerror(error)));
  const std::unique_ptr<addrinfo, FreeAddressInfo> owner(found);
  absl::Status status = absl::UnavailableError(absl::StrCat(ToString(), ": no address"));
  for (const addrinfo* info = found; info != nullptr; info = info->ai_next) {
    status = TryBind(*this, *info);
    if (status.ok() || absl::IsAlreadyExists(status)) return status;
  }
  return status;
}

}  // namespace nqkv
