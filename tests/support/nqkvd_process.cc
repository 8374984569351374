#include "tests/support/nqkvd_process.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <utility>

#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"

namespace nqkv::testing {
namespace {

constexpr std::chrono::seconds kStartTime{60};
constexpr std::chrono::milliseconds kStep{100};

}  // namespace

NqkvdProcess::NqkvdProcess(std::string program, std::vector<std::string> flags)
    : program_(std::move(program)), flags_(std::move(flags)) {
  Start();
}

NqkvdProcess::~NqkvdProcess() { Kill(); }

std::string NqkvdProcess::log() const {
  std::ifstream file(dir_.File("log"));
  return std::string(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
}

void NqkvdProcess::Start() {
  std::vector<std::string> words = {program_, "--listen=127.0.0.1:0", "--http_listen=", "--socket_dir=" + dir_.path()};
  words.insert(words.end(), flags_.begin(), flags_.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, dir_.File("log").c_str(), O_WRONLY | O_CREAT | O_APPEND,
                                   0600);
  posix_spawn_file_actions_adddup2(&actions, STDERR_FILENO, STDOUT_FILENO);
  const int error = posix_spawn(&id_, program_.c_str(), &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) id_ = 0;
  WaitUntilReady();
}

void NqkvdProcess::WaitUntilReady() {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 20);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 100);
  const auto channel = grpc::CreateCustomChannel(address(), grpc::InsecureChannelCredentials(), arguments);
  const auto deadline = std::chrono::system_clock::now() + kStartTime;
  while (id_ != 0 && std::chrono::system_clock::now() < deadline) {
    if (channel->WaitForConnected(std::chrono::system_clock::now() + kStep)) return;
    if (waitpid(id_, nullptr, WNOHANG) == id_) id_ = 0;
  }
  std::fprintf(stderr, "%s did not start; its log:\n%s", program_.c_str(), log().c_str());
  Kill();
  std::abort();
}

int NqkvdProcess::Stop() {
  if (id_ == 0) return -1;
  kill(id_, SIGTERM);
  int status = 0;
  waitpid(std::exchange(id_, 0), &status, 0);
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

void NqkvdProcess::Kill() {
  if (id_ == 0) return;
  kill(id_, SIGKILL);
  waitpid(std::exchange(id_, 0), nullptr, 0);
}

void NqkvdProcess::Freeze() {
  kill(id_, SIGSTOP);
  waitpid(id_, nullptr, WUNTRACED);
}

void NqkvdProcess::Thaw() { kill(id_, SIGCONT); }

}  // namespace nqkv::testing
