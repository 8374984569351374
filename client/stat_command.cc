// nqkv stat: what the server holds and did, from its admin socket.
#include <chrono>
#include <cstdio>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/channel.h"
#include "client/command.h"
#include "client/connection.h"
#include "client/server_address.h"
#include "client/table.h"
#include "kernels/status_macros.h"
#include "nlohmann/json.hpp"
#include "nqkv/v1/admin.grpc.pb.h"
#include "proto/rpc_status.h"

namespace nqkv::client {
namespace {

using Json = nlohmann::ordered_json;

struct State {
  std::string server;
  v1::GetStatsResponse stats;
  v1::ListCachesResponse caches;
};

absl::StatusOr<State> Ask(const Arguments& arguments) {
  State state;
  NQKV_ASSIGN_OR_RETURN(state.server, AdminServerOf(arguments));
  if (absl::Status valid = ValidateServer(state.server); !valid.ok()) return UsageError(std::string(valid.message()));
  NQKV_ASSIGN_OR_RETURN(const uint64_t seconds, arguments.GetNumber("timeout", 10, 1, 86'400));
  const auto stub = v1::Admin::NewStub(MakeGrpcChannel(state.server));
  const auto deadline = std::chrono::system_clock::now() + std::chrono::seconds(seconds);
  grpc::ClientContext stats_context;
  stats_context.set_deadline(deadline);
  NQKV_RETURN_IF_ERROR(FromGrpc(stub->GetStats(&stats_context, {}, &state.stats)));
  grpc::ClientContext caches_context;
  caches_context.set_deadline(deadline);
  NQKV_RETURN_IF_ERROR(FromGrpc(stub->ListCaches(&caches_context, {}, &state.caches)));
  return state;
}

// Blocks of the capacity, were they all encoded as those that are there; 0 when there is nothing yet.
double Factor(uint64_t raw_bytes, uint64_t stored_bytes) {
  return stored_bytes == 0 ? 0 : static_cast<double>(raw_bytes) / static_cast<double>(stored_bytes);
}

std::string FactorText(uint64_t raw_bytes, uint64_t stored_bytes) {
  return stored_bytes == 0 ? "-" : absl::StrFormat("%.2f", Factor(raw_bytes, stored_bytes));
}

Json ToJson(const State& state) {
  const v1::GetStatsResponse& stats = state.stats;
  Json caches = Json::array();
  for (const v1::CacheInfo& cache : state.caches.caches()) {
    caches.push_back({{"tenant", cache.tenant()},
                      {"name", cache.name()},
                      {"model", cache.model()},
                      {"spec_fingerprint", absl::BytesToHexString(cache.spec_fingerprint())},
                      {"codec", cache.codec()},
                      {"blocks", cache.blocks()},
                      {"raw_bytes", cache.raw_bytes()},
                      {"stored_bytes", cache.stored_bytes()},
                      {"used_bytes", cache.used_bytes()},
                      {"capacity_factor", Factor(cache.raw_bytes(), cache.stored_bytes())},
                      {"shards", cache.shards()}});
  }
  return {{"server", state.server},
          {"version", stats.version()},
          {"backend", stats.backend()},
          {"uptime_seconds", stats.uptime_seconds()},
          {"ready", stats.ready()},
          {"capacity_bytes", stats.capacity_bytes()},
          {"used_bytes", stats.used_bytes()},
          {"reserved_bytes", stats.reserved_bytes()},
          {"stored_bytes", stats.stored_bytes()},
          {"raw_bytes", stats.raw_bytes()},
          {"capacity_factor", Factor(stats.raw_bytes(), stats.stored_bytes())},
          {"blocks", stats.blocks()},
          {"pinned_parts", stats.pinned_parts()},
          {"pinned_bytes", stats.pinned_bytes()},
          {"lookups_total", stats.lookups_total()},
          {"lookup_keys_total", stats.lookup_keys_total()},
          {"hit_keys_total", stats.hit_keys_total()},
          {"put_blocks_total", stats.put_blocks_total()},
          {"get_blocks_total", stats.get_blocks_total()},
          {"evicted_blocks_total", stats.evicted_blocks_total()},
          {"fallback_planes_total", stats.fallback_planes_total()},
          {"checksum_failures_total", stats.checksum_failures_total()},
          {"in_flight_bytes", stats.in_flight_bytes()},
          {"rejected_total", stats.rejected_total()},
          {"caches", caches}};
}

std::string Uptime(double seconds) {
  const auto whole = static_cast<uint64_t>(seconds);
  if (whole < 60) return absl::StrCat(whole, " s");
  if (whole < 3600) return absl::StrCat(whole / 60, " min");
  if (whole < 86'400) return absl::StrFormat("%d h %02d min", whole / 3600, whole / 60 % 60);
  return absl::StrFormat("%d d %d h", whole / 86'400, whole / 3600 % 24);
}

std::string Percent(uint64_t part, uint64_t whole) {
  if (whole == 0) return "-";
  return absl::StrFormat("%.1f %%", 100.0 * static_cast<double>(part) / static_cast<double>(whole));
}

std::string CacheTable(const v1::ListCachesResponse& caches) {
  if (caches.caches().empty()) return "No cache is open.\n";
  Table table({"cache", "codec", "blocks", "raw", "stored", "factor"});
  for (const v1::CacheInfo& cache : caches.caches()) {
    table.AddRow({cache.tenant() == "default" || cache.tenant().empty()
                      ? cache.name()
                      : absl::StrCat(cache.tenant(), "/", cache.name()),
                  cache.codec(), absl::StrCat(cache.blocks()), FormatBytes(cache.raw_bytes()),
                  FormatBytes(cache.stored_bytes()), FactorText(cache.raw_bytes(), cache.stored_bytes())});
  }
  return table.ToString();
}

std::string ToText(const State& state) {
  const v1::GetStatsResponse& stats = state.stats;
  std::string text =
      absl::StrCat("nqkvd ", stats.version(), " on ", state.server, ": ", stats.backend(), " backend, up ",
                   Uptime(stats.uptime_seconds()), ", ", stats.ready() ? "ready" : "not ready", "\n\n");
  const auto line = [&text](absl::string_view name, const std::string& value) {
    absl::StrAppendFormat(&text, "  %-11s %s\n", name, value);
  };
  line("capacity", absl::StrCat(FormatBytes(stats.capacity_bytes()), ", ", FormatBytes(stats.used_bytes()), " used (",
                                Percent(stats.used_bytes(), stats.capacity_bytes()), ")"));
  line("blocks", absl::StrCat(stats.blocks(), " in ", stats.caches(), stats.caches() == 1 ? " cache, " : " caches, ",
                              FormatBytes(stats.reserved_bytes()), " being written, ", stats.pinned_parts(),
                              stats.pinned_parts() == 1 ? " part pinned" : " parts pinned"));
  line("factor", absl::StrCat(FactorText(stats.raw_bytes(), stats.stored_bytes()), " (", FormatBytes(stats.raw_bytes()),
                              " raw in ", FormatBytes(stats.stored_bytes()), ")"));
  line("fallbacks", absl::StrCat(stats.fallback_planes_total(), " planes that auto stored raw"));
  line("lookups", absl::StrCat(stats.lookups_total(), ", ", stats.hit_keys_total(), " of ", stats.lookup_keys_total(),
                               " keys hit (", Percent(stats.hit_keys_total(), stats.lookup_keys_total()), ")"));
  line("traffic", absl::StrCat(stats.put_blocks_total(), " blocks put, ", stats.get_blocks_total(), " got, ",
                               stats.evicted_blocks_total(), " evicted"));
  line("trouble", absl::StrCat(stats.checksum_failures_total(), " checksum failures, ", stats.rejected_total(),
                               " calls rejected, ", FormatBytes(stats.in_flight_bytes()), " in flight"));
  return absl::StrCat(text, "\n", CacheTable(state.caches));
}

absl::Status Run(const Arguments& arguments) {
  NQKV_ASSIGN_OR_RETURN(const State state, Ask(arguments));
  std::fputs(arguments.Has("json") ? (ToJson(state).dump() + "\n").c_str() : ToText(state).c_str(), stdout);
  return absl::OkStatus();
}

}  // namespace

Command StatCommand() {
  CommandLine line{.name = "stat",
                   .positional = "",
                   .summary = "Show what the server holds and did.",
                   .flags = ServerFlags(),
                   .examples = {"nqkv stat", "nqkv stat --socket_dir /run/nqkv --json"}};
  line.flags.push_back({"admin", "ADDRESS", "the admin socket, unix:/path (default: beside the workers' socket)"});
  line.flags.push_back({"timeout", "SECONDS", "for the answer (default 10)"});
  line.flags.push_back({"json", "", "print one JSON object"});
  return {.line = std::move(line), .run = Run};
}

}  // namespace nqkv::client
