// nqkvd: flags in, a running service until SIGTERM or SIGINT.
#include <malloc.h>
#include <signal.h>

#include <climits>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "google/protobuf/stubs/logging.h"
#include "service/byte_size.h"
#include "service/flags.h"
#include "service/server.h"
#include "service/version.h"
#include "spdlog/sinks/stdout_color_sinks.h"
#include "spdlog/spdlog.h"

namespace {

// Messages of a megabyte would be mapped and unmapped one by one: with one growing heap gRPC carries about twice the
// bytes. Freed memory is kept, so the process stays at its peak.
void SetMallocPolicy() {
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, INT_MAX);
  mallopt(M_TOP_PAD, 16 << 20);
  mallopt(M_ARENA_MAX, 1);
}

void SetUpLog(const std::string& level) {
  spdlog::set_default_logger(spdlog::stderr_color_mt("nqkvd"));
  spdlog::set_pattern("%Y-%m-%dT%H:%M:%S.%e%z %^%l%$ %v");
  spdlog::set_level(spdlog::level::from_str(level));
  spdlog::flush_on(spdlog::level::info);
}

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "nqkvd: %s\n", std::string(status.message()).c_str());
  return 1;
}

// Blocked in every thread, so that only WaitForStop sees them.
sigset_t BlockStopSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  return signals;
}

std::string WaitForStop(const sigset_t& signals) {
  int signal = 0;
  sigwait(&signals, &signal);
  return signal == SIGTERM ? "SIGTERM" : "SIGINT";
}

}  // namespace

int main(int argc, char** argv) {
  // A malformed message is answered with its status; a line of the library for each would let clients fill the log.
  google::protobuf::SetLogHandler(nullptr);
  SetMallocPolicy();
  signal(SIGPIPE, SIG_IGN);
  const sigset_t signals = BlockStopSignals();
  absl::StatusOr<nqkv::Options> options = nqkv::OptionsFromCommandLine(argc, argv);
  if (!options.ok()) return Fail(options.status());
  if (const absl::Status valid = options->Validate(); !valid.ok()) return Fail(valid);
  SetUpLog(options->log_level);
  absl::StatusOr<std::unique_ptr<nqkv::Server>> server = nqkv::Server::Start(*std::move(options));
  if (!server.ok()) return Fail(server.status());

  const nqkv::Options& used = (*server)->options();
  spdlog::info("nqkvd {} ready: grpc {}, unix {}, admin {}, http {}, {} for blocks, {} codec threads",
               std::string(nqkv::Version()), (*server)->address(), (*server)->socket_path(),
               (*server)->admin_socket_path(), used.http_listen.empty() ? "off" : (*server)->http_address(),
               nqkv::ShowBytes(used.storage.host_bytes), used.codec_threads);
  spdlog::info("{}: draining", WaitForStop(signals));
  (*server)->Drain(absl::Seconds(used.drain_seconds));
  server->reset();
  spdlog::info("stopped");
  return 0;
}
