// The command line `nqkv`.
#include <csignal>
#include <string>
#include <vector>

#include "client/command.h"
#include "client/nqkv.h"

int main(int argc, char** argv) {
  nqkv::client::TuneMalloc();
  // A closed pipe ends a write with an error, not the process with a signal.
  std::signal(SIGPIPE, SIG_IGN);
  return nqkv::client::RunCommandLine(std::vector<std::string>(argv + (argc > 0 ? 1 : 0), argv + argc));
}
