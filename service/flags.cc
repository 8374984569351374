#include "service/flags.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <map>
#include <string>
#include <vector>

#include "absl/flags/commandlineflag.h"
#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/reflection.h"
#include "absl/flags/usage.h"
#include "absl/flags/usage_config.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "kernels/status_macros.h"
#include "service/byte_size.h"
#include "service/version.h"

ABSL_FLAG(std::string, listen, nqkv::Options().listen, "Address for workers: gRPC over TCP, not encrypted.");
ABSL_FLAG(std::string, http_listen, nqkv::Options().http_listen,
          "Address for /metrics, /healthz, /readyz and /api/status. Empty: no HTTP.");
ABSL_FLAG(
    std::string, socket_dir, "",
    "Directory of the Unix sockets nqkvd.sock and nqkvd-admin.sock. Empty: /run/nqkv where it can be written, else "
    "$XDG_RUNTIME_DIR/nqkv, else /tmp/nqkv-<uid>.");
ABSL_FLAG(nqkv::ByteSize, host_bytes, nqkv::ByteSize(),
          "Host memory for blocks, such as 40GiB. 0: half of what is available.");
ABSL_FLAG(std::string, arena_path, "",
          "File for the blocks, on tmpfs; created with mode 0600. Empty: anonymous memory.");
ABSL_FLAG(
    bool, warm_restart, nqkv::StorageOptions().warm_restart,
    "Keep the file at --arena_path when the service ends, and find its blocks again at the next start with the same "
    "options.");
ABSL_FLAG(bool, prefault, nqkv::StorageOptions().prefault, "Touch all memory for blocks at start.");
ABSL_FLAG(bool, huge_pages, nqkv::StorageOptions().huge_pages, "Ask for huge pages when the memory is anonymous.");
ABSL_FLAG(std::string, eviction_policy, nqkv::StorageOptions().eviction_policy,
          "Which blocks to forget first: slru (least recently used, except what was wanted again) or lru.");
ABSL_FLAG(std::string, backend, nqkv::Options().backend, "auto, cpu or cuda. cuda is not built yet.");
ABSL_FLAG(uint32_t, codec_threads, nqkv::Options().codec_threads, "Threads that encode and decode. 0: one a core.");
ABSL_FLAG(uint32_t, codec_queue_max, nqkv::Options().codec_queue_max, "Calls that may wait for such a thread.");
ABSL_FLAG(nqkv::ByteSize, in_flight_bytes, nqkv::ByteSize{nqkv::Options().in_flight_bytes},
          "Payload that all calls together may hold outside the memory for blocks. The calls of one connection hold at "
          "most what they leave free for others: a half when there are no others.");
ABSL_FLAG(
    nqkv::ByteSize, reserved_bytes_max, nqkv::ByteSize(),
    "Memory for blocks that may be reserved for blocks that have not come whole; what more is asked for is refused "
    "until some are. 0: a quarter of it.");
ABSL_FLAG(nqkv::ByteSize, max_message_bytes, nqkv::ByteSize{nqkv::ServiceLimits().message_bytes_max},
          "Largest message, either way.");
ABSL_FLAG(nqkv::ByteSize, max_request_bytes, nqkv::ByteSize{nqkv::ServiceLimits().request_bytes_max},
          "Largest request of any call but Put. Never more than --max_message_bytes.");
ABSL_FLAG(nqkv::ByteSize, max_block_raw_bytes, nqkv::ByteSize{nqkv::ServiceLimits().block_raw_bytes_max},
          "Largest block before encoding. Never more than the memory for blocks.");
ABSL_FLAG(uint32_t, lookup_keys_max, nqkv::ServiceLimits().lookup_keys_max, "Keys in one Lookup.");
ABSL_FLAG(uint32_t, get_keys_max, nqkv::ServiceLimits().get_keys_max, "Keys in one Get.");
ABSL_FLAG(uint32_t, delete_keys_max, nqkv::ServiceLimits().delete_keys_max, "Keys in one Delete.");
ABSL_FLAG(uint32_t, put_open_blocks_max, nqkv::ServiceLimits().put_open_blocks_max,
          "Blocks begun and not ended on one Put stream.");
ABSL_FLAG(uint32_t, caches_max, nqkv::ServiceLimits().caches_max, "Open caches.");
ABSL_FLAG(uint32_t, shards_max, nqkv::ServiceLimits().shards_max, "Shards of one cache.");
ABSL_FLAG(nqkv::ByteSize, caches_bytes_max, nqkv::ByteSize{nqkv::ServiceLimits().caches_bytes_max},
          "What the open caches may take beside their blocks. When it or --caches_max is reached, empty caches that "
          "nobody uses are forgotten.");
ABSL_FLAG(double, max_read_seconds, nqkv::ServiceLimits().read_seconds_max, "A Get that takes longer is cancelled.");
ABSL_FLAG(double, max_lookup_wait_seconds, nqkv::ServiceLimits().lookup_wait_seconds_max,
          "How long a Lookup may ask to wait for blocks to be stored.");
ABSL_FLAG(uint32_t, lookup_waiters_max, nqkv::ServiceLimits().lookup_waiters_max, "Lookups that may wait.");
ABSL_FLAG(double, heartbeat_seconds, nqkv::ServiceLimits().heartbeat_seconds,
          "How often a session is told to send a message.");
ABSL_FLAG(double, session_grace_seconds, nqkv::ServiceLimits().session_grace_seconds,
          "A session that sends nothing for longer ends, and its leases with it.");
ABSL_FLAG(double, lease_seconds, nqkv::ServiceLimits().lease_seconds_default,
          "How long a lease pins its blocks that does not say.");
ABSL_FLAG(double, max_lease_seconds, nqkv::ServiceLimits().lease_seconds_max, "How long a lease may ask for.");
ABSL_FLAG(uint32_t, sessions_max, nqkv::ServiceLimits().sessions_max, "Sessions that may be open.");
ABSL_FLAG(uint32_t, leases_max, nqkv::ServiceLimits().leases_max, "Leases that may be held.");
ABSL_FLAG(nqkv::ByteSize, leased_bytes_max, nqkv::ByteSize(),
          "Stored bytes that the leases of one tenant may pin. 0: half of the memory for blocks.");
ABSL_FLAG(
    double, max_put_idle_seconds, nqkv::ServiceLimits().put_idle_seconds_max,
    "A Put stream that makes no progress for longer is ended: no 64 KiB of payload, no block or answer that ends.");
ABSL_FLAG(uint32_t, calls_max, nqkv::ServiceLimits().calls_max,
          "Calls in flight, over all connections; more are refused with the time to come back.");
ABSL_FLAG(uint32_t, connection_calls_max, nqkv::ServiceLimits().connection_calls_max,
          "Calls in flight on one connection; more wait at the client.");
ABSL_FLAG(double, max_connection_idle_seconds, nqkv::ServiceLimits().connection_idle_seconds_max,
          "A connection with no call for longer is closed; clients connect again by themselves.");
ABSL_FLAG(
    double, keepalive_seconds, nqkv::ServiceLimits().keepalive_seconds,
    "A connection on which nothing came for so long is asked for a sign of life, and closed when none comes in 20 s.");
ABSL_FLAG(double, drain_seconds, nqkv::Options().drain_seconds,
          "What calls in flight may take to end after SIGTERM or SIGINT.");
ABSL_FLAG(std::string, log_level, nqkv::Options().log_level, "debug, info, warning or error.");

namespace nqkv {
namespace {

constexpr absl::string_view kUsage =
    "A shared cache tier for the key/value tensors of LLM inference.\n\n"
    "  nqkvd                                        on loopback, with half of the memory that is available\n"
    "  nqkvd --host_bytes=40GiB --listen=0.0.0.0:6758\n"
    "  nqkvd --flagfile=/etc/nqkv/nqkvd.flags\n\n"
    "Every flag can be given as an environment variable too: NQKV_HOST_BYTES=40GiB.";

bool IsOurs(absl::string_view filename) { return absl::EndsWith(filename, "service/flags.cc"); }

// Flags of the libraries that we link are not for containers to set.
absl::Status ApplyEnvironment() {
  for (const auto& [name, flag] : absl::GetAllFlags()) {
    if (!IsOurs(flag->Filename())) continue;
    const std::string variable = absl::StrCat("NQKV_", absl::AsciiStrToUpper(name));
    const char* value = std::getenv(variable.c_str());
    std::string error;
    if (value != nullptr && !flag->ParseFrom(value, &error)) {
      return absl::InvalidArgumentError(absl::StrCat(variable, ": ", error));
    }
  }
  return absl::OkStatus();
}

// The library's own --help ends with 1 and leaves out half.
void PrintHelp() {
  std::map<std::string, const absl::CommandLineFlag*> flags;
  for (const auto& [name, flag] : absl::GetAllFlags()) {
    if (IsOurs(flag->Filename())) flags.emplace(name, flag);
  }
  std::cout << kUsage << "\n";
  for (const auto& [name, flag] : flags) {
    std::cout << "\n  --" << name << "=" << flag->DefaultValue() << "\n      " << flag->Help() << "\n";
  }
}

bool WantsHelp(int argc, char** argv) {
  return std::any_of(argv + 1, argv + argc,
                     [](absl::string_view word) { return word == "--help" || word == "-help" || word == "-h"; });
}

Options FromFlags() {
  Options options;
  options.listen = absl::GetFlag(FLAGS_listen);
  options.http_listen = absl::GetFlag(FLAGS_http_listen);
  options.socket_dir = absl::GetFlag(FLAGS_socket_dir);
  options.storage.host_bytes = absl::GetFlag(FLAGS_host_bytes).bytes;
  options.storage.arena_path = absl::GetFlag(FLAGS_arena_path);
  options.storage.warm_restart = absl::GetFlag(FLAGS_warm_restart);
  options.storage.prefault = absl::GetFlag(FLAGS_prefault);
  options.storage.huge_pages = absl::GetFlag(FLAGS_huge_pages);
  options.storage.eviction_policy = absl::GetFlag(FLAGS_eviction_policy);
  options.backend = absl::GetFlag(FLAGS_backend);
  options.codec_threads = absl::GetFlag(FLAGS_codec_threads);
  options.codec_queue_max = absl::GetFlag(FLAGS_codec_queue_max);
  options.in_flight_bytes = absl::GetFlag(FLAGS_in_flight_bytes).bytes;
  options.reserved_bytes_max = absl::GetFlag(FLAGS_reserved_bytes_max).bytes;
  options.limits.message_bytes_max = absl::GetFlag(FLAGS_max_message_bytes).bytes;
  options.limits.request_bytes_max = absl::GetFlag(FLAGS_max_request_bytes).bytes;
  options.limits.block_raw_bytes_max = absl::GetFlag(FLAGS_max_block_raw_bytes).bytes;
  options.limits.lookup_keys_max = absl::GetFlag(FLAGS_lookup_keys_max);
  options.limits.get_keys_max = absl::GetFlag(FLAGS_get_keys_max);
  options.limits.delete_keys_max = absl::GetFlag(FLAGS_delete_keys_max);
  options.limits.put_open_blocks_max = absl::GetFlag(FLAGS_put_open_blocks_max);
  options.limits.caches_max = absl::GetFlag(FLAGS_caches_max);
  options.limits.shards_max = absl::GetFlag(FLAGS_shards_max);
  options.limits.caches_bytes_max = absl::GetFlag(FLAGS_caches_bytes_max).bytes;
  options.limits.read_seconds_max = absl::GetFlag(FLAGS_max_read_seconds);
  options.limits.lookup_wait_seconds_max = absl::GetFlag(FLAGS_max_lookup_wait_seconds);
  options.limits.lookup_waiters_max = absl::GetFlag(FLAGS_lookup_waiters_max);
  options.limits.heartbeat_seconds = absl::GetFlag(FLAGS_heartbeat_seconds);
  options.limits.session_grace_seconds = absl::GetFlag(FLAGS_session_grace_seconds);
  options.limits.lease_seconds_default = absl::GetFlag(FLAGS_lease_seconds);
  options.limits.lease_seconds_max = absl::GetFlag(FLAGS_max_lease_seconds);
  options.limits.sessions_max = absl::GetFlag(FLAGS_sessions_max);
  options.limits.leases_max = absl::GetFlag(FLAGS_leases_max);
  options.limits.leased_bytes_max = absl::GetFlag(FLAGS_leased_bytes_max).bytes;
  options.limits.put_idle_seconds_max = absl::GetFlag(FLAGS_max_put_idle_seconds);
  options.limits.calls_max = absl::GetFlag(FLAGS_calls_max);
  options.limits.connection_calls_max = absl::GetFlag(FLAGS_connection_calls_max);
  options.limits.connection_idle_seconds_max = absl::GetFlag(FLAGS_max_connection_idle_seconds);
  options.limits.keepalive_seconds = absl::GetFlag(FLAGS_keepalive_seconds);
  options.drain_seconds = absl::GetFlag(FLAGS_drain_seconds);
  options.log_level = absl::GetFlag(FLAGS_log_level);
  return options;
}

}  // namespace

absl::StatusOr<Options> OptionsFromCommandLine(int argc, char** argv) {
  absl::SetProgramUsageMessage(kUsage);
  if (WantsHelp(argc, argv)) {
    PrintHelp();
    std::exit(0);
  }
  absl::FlagsUsageConfig config;
  config.contains_help_flags = &IsOurs;
  config.contains_helpshort_flags = &IsOurs;
  config.version_string = [] { return absl::StrCat("nqkvd ", Version(), "\n"); };
  config.normalize_filename = [](absl::string_view) { return std::string("service/flags.cc"); };
  absl::SetFlagsUsageConfig(config);
  // Before the command line, which wins.
  NQKV_RETURN_IF_ERROR(ApplyEnvironment());
  const std::vector<char*> words = absl::ParseCommandLine(argc, argv);
  if (words.size() > 1) return absl::InvalidArgumentError(absl::StrCat("'", words[1], "' is no flag; see --help"));
  return FromFlags();
}

}  // namespace nqkv
