// A TCP address to listen on: "127.0.0.1:6758", "[::1]:6758", "localhost:0".
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace nqkv {

struct ListenAddress {
  std::string host;   // Without brackets.
  uint16_t port = 0;  // 0: any free one.

  // INVALID_ARGUMENT saying what is wrong.
  static absl::StatusOr<ListenAddress> Parse(absl::string_view text);

  // With brackets around an IPv6 host.
  std::string ToString() const;
  bool is_loopback() const;

  // Binds and releases the address, to find out why it cannot be used before a library hides the reason.
  //
  // Errors:
  //   ALREADY_EXISTS    another process listens there.
  //   INVALID_ARGUMENT  the host is unknown.
  //   PERMISSION_DENIED, UNAVAILABLE  what the system says.
  absl::Status Probe() const;
};

}  // namespace nqkv
