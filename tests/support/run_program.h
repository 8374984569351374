// Runs a program and gathers what it wrote.
#pragma once

#include <string>
#include <vector>

namespace nqkv::testing {

struct ProgramResult {
  int exit_code = -1;  // 128 + the signal when it was killed.
  std::string out;
  std::string err;
};

// `environment` entries are "NAME=value", added to this process's own.
ProgramResult RunProgram(const std::vector<std::string>& words, const std::vector<std::string>& environment = {});

}  // namespace nqkv::testing
