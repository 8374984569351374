// A real nqkvd of its own process, with sockets and a log in a temporary directory.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "tests/support/temp_dir.h"

namespace nqkv::testing {

// Not thread-safe. Ends the server when it goes.
class NqkvdProcess {
 public:
  // Starts `program` with `flags` on free ports and waits until it takes calls. Aborts the test program with the log
  // when it does not.
  explicit NqkvdProcess(std::string program, std::vector<std::string> flags = {});
  ~NqkvdProcess();
  NqkvdProcess(const NqkvdProcess&) = delete;
  NqkvdProcess& operator=(const NqkvdProcess&) = delete;

  const std::string& socket_dir() const { return dir_.path(); }
  std::string address() const { return "unix:" + dir_.File("nqkvd.sock"); }
  std::string log() const;

  // Starts it again after Stop or Kill.
  void Start();
  // As an operator ends it: SIGTERM. Returns the exit code.
  int Stop();
  void Kill();
  // SIGSTOP and SIGCONT.
  void Freeze();
  void Thaw();

 private:
  void WaitUntilReady();

  TempDir dir_;
  std::string program_;
  std::vector<std::string> flags_;
  pid_t id_ = 0;  // 0: not running.
};

}  // namespace nqkv::testing
