// Runs this program once more and reads what it prints.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace nqkv::client {

// Starts /proc/self/exe with `words` and waits for its end; its stderr is ours. Returns what it wrote to stdout.
//
// Errors:
//   ABORTED             it ended with another exit code than 0, which is said.
//   INTERNAL            it ended by a signal, which is said.
//   RESOURCE_EXHAUSTED  it wrote over 1 MiB, and was stopped.
absl::StatusOr<std::string> RunSelf(const std::vector<std::string>& words);

}  // namespace nqkv::client
