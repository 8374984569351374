#include "client/child_process.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>

#include "absl/strings/str_cat.h"
#include "kernels/status_macros.h"

namespace nqkv::client {
namespace {

constexpr size_t kOutputBytesMax = 1 << 20;

struct Child {
  pid_t id = 0;
  int output = -1;  // Its stdout.
};

absl::StatusOr<Child> Start(const std::vector<std::string>& words) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return absl::ErrnoToStatus(errno, "pipe");
  std::string program = "/proc/self/exe";
  std::vector<char*> argv = {program.data()};
  std::vector<std::string> copies = words;
  for (std::string& word : copies) argv.push_back(word.data());
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
  Child child{.id = 0, .output = ends[0]};
  const int error = posix_spawn(&child.id, program.c_str(), &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  close(ends[1]);
  if (error == 0) return child;
  close(ends[0]);
  return absl::ErrnoToStatus(error, "posix_spawn");
}

// All of it, up to kOutputBytesMax and a bit.
std::string ReadOutput(int file) {
  std::string output;
  char buffer[4096];
  while (output.size() <= kOutputBytesMax) {
    const ssize_t count = read(file, buffer, sizeof(buffer));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) break;
    output.append(buffer, static_cast<size_t>(count));
  }
  return output;
}

}  // namespace

absl::StatusOr<std::string> RunSelf(const std::vector<std::string>& words) {
  NQKV_ASSIGN_OR_RETURN(const Child child, Start(words));
  std::string output = ReadOutput(child.output);
  close(child.output);
  const bool too_much = output.size() > kOutputBytesMax;
  if (too_much) kill(child.id, SIGTERM);
  int status = 0;
  while (waitpid(child.id, &status, 0) < 0 && errno == EINTR) continue;
  if (too_much) return absl::ResourceExhaustedError("the process wrote too much");
  if (WIFSIGNALED(status)) return absl::InternalError(absl::StrCat("the process ended by signal ", WTERMSIG(status)));
  if (WEXITSTATUS(status) != 0) {
    return absl::AbortedError(absl::StrCat("the process ended with exit code ", WEXITSTATUS(status)));
  }
  return output;
}

}  // namespace nqkv::client
