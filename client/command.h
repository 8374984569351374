// The commands of the CLI.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "client/arguments.h"

namespace nqkv::client {

struct Command {
  CommandLine line;
  // Prints its result to stdout. What it returns becomes the exit code.
  std::function<absl::Status(const Arguments&)> run;
  bool hidden = false;  // Not in the help: the demo starts itself with it.
};

Command OpenCommand();
Command LookupCommand();
Command PutCommand();
Command GetCommand();
Command StatCommand();
Command DemoCommand();
Command DemoWorkerCommand();

std::vector<Command> AllCommands();

// Runs `words`, the command line without the program's name: 0 done, 1 failed, 2 called wrongly. Errors are one line on
// stderr.
int RunCommandLine(const std::vector<std::string>& words);

}  // namespace nqkv::client
