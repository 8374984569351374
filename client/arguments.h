// A command's line: what it may hold, and what it held.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace nqkv::client {

struct FlagSpec {
  std::string name;   // Without dashes.
  std::string value;  // What stands for the value in the help; empty for a switch.
  std::string help;
};

// How a command is called. Plain value.
struct CommandLine {
  std::string name;
  std::string positional;  // Names of what must stand there, parted by spaces: "CACHE".
  std::string summary;     // One line.
  std::vector<FlagSpec> flags;
  std::vector<std::string> examples;
};

// The whole help text of a command.
std::string HelpText(const CommandLine& command);

// INVALID_ARGUMENT that says the user called wrongly: exit code 2 in place of 1.
absl::Status UsageError(const std::string& message);
bool IsUsageError(const absl::Status& status);

// `status`, marked as one that the user has been told of: exit code 1 and no line.
absl::Status Reported(absl::Status status);
bool IsReported(const absl::Status& status);

// Parsed: `--flag value`, `--flag=value`, dashes and underscores inside a name alike, `--` ends flags.
class Arguments {
 public:
  // Errors: UsageError.
  static absl::StatusOr<Arguments> Parse(const CommandLine& command, std::span<const std::string> words);

  bool Has(const std::string& flag) const { return flags_.contains(flag); }
  // The last value, or `otherwise`.
  std::string Get(const std::string& flag, const std::string& otherwise = "") const;
  // Errors: UsageError when the value is not a whole number in [least, most].
  absl::StatusOr<uint64_t> GetNumber(const std::string& flag, uint64_t otherwise, uint64_t least, uint64_t most) const;
  const std::string& positional(size_t index) const { return positional_[index]; }

 private:
  std::map<std::string, std::string> flags_;
  std::vector<std::string> positional_;
};

}  // namespace nqkv::client
