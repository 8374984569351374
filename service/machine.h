// What the machine offers: memory, cores, a place for sockets, a GPU.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace nqkv {

// Memory that this process may still take: the least of what the system has available and what each control group
// above it leaves.
uint64_t AvailableMemoryBytes();

// Half of AvailableMemoryBytes(), at least 64 MiB, in whole MiB.
uint64_t DefaultHostBytes();

// Cores this process may run on; at least 1.
uint32_t AvailableCores();

// The first that can be written: /run/nqkv, $XDG_RUNTIME_DIR/nqkv, /tmp/nqkv-<uid>. Not created yet.
std::string DefaultSocketDirectory();

// Creates the directory (mode 0700) when it is missing.
//
// Errors:
//   PERMISSION_DENIED   it belongs to another user or cannot be written; whoever owns it could replace the sockets.
//   UNAVAILABLE         it cannot be created.
absl::Status PrepareSocketDirectory(const std::string& path);

// What shows that a GPU is there, such as "/dev/nvidia0"; empty when none is seen.
std::string VisibleGpu();

}  // namespace nqkv
