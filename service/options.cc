#include "service/options.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "kernels/status_macros.h"
#include "service/listen_address.h"

namespace nqkv {
namespace {

absl::Status FlagError(absl::string_view flag, absl::string_view description) {
  return absl::InvalidArgumentError(absl::StrCat("--", flag, ": ", description));
}

template <typename Number>
absl::Status CheckRange(absl::string_view flag, Number value, Number min, Number max) {
  if (value >= min && value <= max) return absl::OkStatus();
  return FlagError(flag, absl::StrCat(value, " is not within ", min, " to ", max));
}

absl::Status CheckAddress(absl::string_view flag, const std::string& text) {
  const absl::StatusOr<ListenAddress> address = ListenAddress::Parse(text);
  return address.ok() ? absl::OkStatus() : FlagError(flag, address.status().message());
}

bool IsOneOf(absl::string_view value, std::initializer_list<absl::string_view> choices) {
  return std::find(choices.begin(), choices.end(), value) != choices.end();
}

absl::Status CheckLimits(const Options& options) {
  const ServiceLimits& limits = options.limits;
  constexpr uint64_t kMiB = uint64_t{1} << 20;
  NQKV_RETURN_IF_ERROR(CheckRange("max_message_bytes", limits.message_bytes_max, kMiB, 1024 * kMiB));
  NQKV_RETURN_IF_ERROR(
      CheckRange("message_bytes_best", limits.message_bytes_best, kMiB / 16, limits.message_bytes_max));
  NQKV_RETURN_IF_ERROR(CheckRange("max_request_bytes", limits.request_bytes_max, kMiB / 16, 1024 * kMiB));
  NQKV_RETURN_IF_ERROR(
      CheckRange("in_flight_bytes", options.in_flight_bytes, 2 * limits.message_bytes_max, uint64_t{1} << 50));
  NQKV_RETURN_IF_ERROR(CheckRange<uint64_t>("reserved_bytes_max", options.reserved_bytes_max, 0, uint64_t{1} << 50));
  NQKV_RETURN_IF_ERROR(CheckRange<uint32_t>("lookup_keys_max", limits.lookup_keys_max, 1, 1u << 20));
  NQKV_RETURN_IF_ERROR(CheckRange<uint32_t>("get_keys_max", limits.get_keys_max, 1, 1u << 20));
  NQKV_RETURN_IF_ERROR(CheckRange<uint32_t>("delete_keys_max", limits.delete_keys_max, 1, 1u << 20));
  NQKV_RETURN_IF_ERROR(CheckRange<uint32_t>("put_open_blocks_max", limits.put_open_blocks_max, 1, 4'096));
  NQKV_RETURN_IF_ERROR(
      CheckRange<uint64_t>("max_block_raw_bytes", limits.block_raw_bytes_max, 4'096, uint64_t{1} << 31));
  NQKV_RETURN_IF_ERROR(CheckRange<uint32_t>("caches_max", limits.caches_max, 1, 1u << 20));
  NQKV_RETURN_IF_ERROR(CheckRange<uint32_t>("shards_max", limits.shards_max, 1, 1u << 20));
  NQKV_RETURN_IF_ERROR(
      CheckRange<uint64_t>("caches_bytes_max", limits.caches_bytes_max, uint64_t{1} << 20, uint64_t{1} << 40));
  NQKV_RETURN_IF_ERROR(CheckRange("max_read_seconds", limits.read_seconds_max, 0.1, 3600.0));
  NQKV_RETURN_IF_ERROR(CheckRange<uint32_t>("calls_max", limits.calls_max, 1, 1u << 20));
  NQKV_RETURN_IF_ERROR(CheckRange<uint32_t>("connection_calls_max", limits.connection_calls_max, 1, 1u << 20));
  NQKV_RETURN_IF_ERROR(
      CheckRange("max_connection_idle_seconds", limits.connection_idle_seconds_max, 0.1, 86'400.0 * 7));
  NQKV_RETURN_IF_ERROR(CheckRange("keepalive_seconds", limits.keepalive_seconds, 1.0, 86'400.0));
  NQKV_RETURN_IF_ERROR(CheckRange("heartbeat_seconds", limits.heartbeat_seconds, 0.01, 3600.0));
  NQKV_RETURN_IF_ERROR(
      CheckRange("session_grace_seconds", limits.session_grace_seconds, 2 * limits.heartbeat_seconds, 36000.0));
  NQKV_RETURN_IF_ERROR(CheckRange("max_lease_seconds", limits.lease_seconds_max, 0.01, 36000.0));
  NQKV_RETURN_IF_ERROR(CheckRange("lease_seconds", limits.lease_seconds_default, 0.01, limits.lease_seconds_max));
  NQKV_RETURN_IF_ERROR(CheckRange<uint32_t>("sessions_max", limits.sessions_max, 1, 1u << 20));
  NQKV_RETURN_IF_ERROR(CheckRange<uint32_t>("leases_max", limits.leases_max, 1, 1u << 20));
  NQKV_RETURN_IF_ERROR(CheckRange("max_lookup_wait_seconds", limits.lookup_wait_seconds_max, 0.0, 3600.0));
  NQKV_RETURN_IF_ERROR(CheckRange<uint32_t>("lookup_waiters_max", limits.lookup_waiters_max, 1, 1u << 20));
  return CheckRange("max_put_idle_seconds", limits.put_idle_seconds_max, 0.1, 3600.0);
}

}  // namespace

absl::Status Options::Validate() const {
  NQKV_RETURN_IF_ERROR(CheckAddress("listen", listen));
  if (!http_listen.empty()) NQKV_RETURN_IF_ERROR(CheckAddress("http_listen", http_listen));
  if (backend == "cuda") {
    return absl::UnimplementedError("--backend: cuda is not built yet; use --backend=cpu or leave the flag out");
  }
  if (!IsOneOf(backend, {"auto", "cpu"})) {
    return FlagError("backend", absl::StrCat("'", backend, "' is none of auto, cpu, cuda"));
  }
  if (!IsOneOf(log_level, {"debug", "info", "warning", "error"})) {
    return FlagError("log_level", absl::StrCat("'", log_level, "' is none of debug, info, warning, error"));
  }
  NQKV_RETURN_IF_ERROR(CheckRange<uint32_t>("codec_threads", codec_threads, 0, 1'024));
  NQKV_RETURN_IF_ERROR(CheckRange<uint32_t>("codec_queue_max", codec_queue_max, 1, 1u << 20));
  NQKV_RETURN_IF_ERROR(CheckRange("drain_seconds", drain_seconds, 0.0, 3600.0));
  return CheckLimits(*this);
}

}  // namespace nqkv
