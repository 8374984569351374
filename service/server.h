// The whole service: storage, calls, the gRPC servers, HTTP.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "service/options.h"

namespace nqkv {

// Start builds everything in order of dependency; the destructor takes it down in reverse. Thread-safe.
class Server {
 public:
  // Fills what `options` leaves to the machine, then starts. An error is one line that says what to do about it.
  //
  // Errors:
  //   INVALID_ARGUMENT    an option.
  //   ALREADY_EXISTS      a port, a socket or the arena's file is in use.
  //   RESOURCE_EXHAUSTED  too little memory.
  //   UNIMPLEMENTED       --backend=cuda.
  //   PERMISSION_DENIED, UNAVAILABLE  what the system says.
  static absl::StatusOr<std::unique_ptr<Server>> Start(Options options);
  virtual ~Server() = default;

  // Where it is reached: "127.0.0.1:6758".
  virtual std::string address() const = 0;
  virtual std::string http_address() const = 0;  // Empty: no HTTP.
  virtual std::string socket_path() const = 0;
  virtual std::string admin_socket_path() const = 0;
  // With what the machine decided filled in.
  virtual const Options& options() const = 0;

  // Health says NOT_SERVING, new calls get UNAVAILABLE, and calls in flight may take `grace` to end before they are
  // cancelled. Returns when none is left.
  virtual void Drain(absl::Duration grace) = 0;
};

}  // namespace nqkv
