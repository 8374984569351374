// Where the CLI finds a server.
#pragma once

#include <string>

#include "client/arguments.h"

namespace nqkv::client {

// --server and --socket_dir.
std::vector<FlagSpec> ServerFlags();

// --server, else $NQKV_SERVER, else nqkvd.sock in the socket directory if it is there, else 127.0.0.1:6758. The socket
// directory is --socket_dir, else the first of /run/nqkv and $XDG_RUNTIME_DIR/nqkv that holds the socket.
std::string ServerOf(const Arguments& arguments);

// --admin, else nqkvd-admin.sock beside the workers' socket. Errors: NOT_FOUND when there is none.
absl::StatusOr<std::string> AdminServerOf(const Arguments& arguments);

}  // namespace nqkv::client
