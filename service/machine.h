// What the machine offers: memory, cores, a place for sockets, a GPU.
//
// `root` stands before the paths of the system's files; tests lay out a machine of their own there.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace nqkv {

// Memory that this process may still take: the least of what the system has available and what each control group
// above it leaves.
uint64_t AvailableMemoryBytes(const std::string& root = "");

// Half of AvailableMemoryBytes(root), at least 64 MiB, in whole MiB.
uint64_t DefaultHostBytes(const std::string& root = "");

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
std::string VisibleGpu(const std::string& root = "");

// The line of the log that says what encodes, and that a GPU which is seen is not used.
std::string DescribeBackend(const std::string& gpu);

}  // namespace nqkv
