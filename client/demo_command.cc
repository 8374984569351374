// nqkv demo, and the process that it starts to store the blocks.
#include <cmath>
#include <cstdio>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cache_arguments.h"
#include "client/child_process.h"
#include "client/command.h"
#include "client/demo.h"
#include "client/server_address.h"
#include "client/table.h"
#include "kernels/status_macros.h"
#include "nlohmann/json.hpp"

namespace nqkv::client {
namespace {

using Json = nlohmann::ordered_json;

constexpr char kWorkerName[] = "demo-worker";

std::vector<FlagSpec> DemoFlags() {
  std::vector<FlagSpec> flags = ServerFlags();
  flags.push_back({"capture", "FILE", "a captured KV cache (default: $NQKV_CAPTURE, else the one that comes along)"});
  flags.push_back(
      {"codec", "CODEC", "auto (default), raw, nqkv4-g64, nqkv4h-g64 (both also -g128, -g256), nqkv4-row or q8"});
  flags.push_back({"block_tokens", "N", "tokens a block (default 64)"});
  flags.push_back({"repeats", "N", "speeds are medians of so many (default 5)"});
  flags.push_back({"timeout", "SECONDS", "for each call (default 60)"});
  flags.push_back({"json", "", "print one JSON object"});
  return flags;
}

absl::StatusOr<DemoOptions> OptionsOf(const Arguments& arguments) {
  DemoOptions options;
  options.server = ServerOf(arguments);
  options.capture_path = arguments.Get("capture");
  if (options.capture_path.empty()) {
    NQKV_ASSIGN_OR_RETURN(options.capture_path, Capture::DefaultPath());
  }
  NQKV_ASSIGN_OR_RETURN(options.policy, ParseCodec(arguments.Get("codec", "auto")));
  NQKV_ASSIGN_OR_RETURN(const uint64_t block_tokens, arguments.GetNumber("block_tokens", 64, 1, 1024));
  NQKV_ASSIGN_OR_RETURN(const uint64_t repeats, arguments.GetNumber("repeats", 5, 1, 1000));
  NQKV_ASSIGN_OR_RETURN(const uint64_t seconds, arguments.GetNumber("timeout", 60, 1, 86'400));
  options.block_tokens = static_cast<uint32_t>(block_tokens);
  options.repeats = static_cast<int>(repeats);
  options.client.timeout = std::chrono::seconds(seconds);
  return options;
}

double GigabytesASecond(uint64_t bytes, double seconds) {
  return seconds > 0 ? static_cast<double>(bytes) / seconds / 1e9 : 0;
}

RoleTotals Whole(const DemoReport& report) {
  RoleTotals whole;
  for (const auto& [role, totals] : report.roles) whole.Add(totals);
  return whole;
}

double Factor(const RoleTotals& totals) { return static_cast<double>(totals.raw_bytes) / totals.stored_bytes; }

std::string Speed(const DemoReport& report, double seconds) {
  return absl::StrFormat("%.2f", GigabytesASecond(report.raw_bytes, seconds));
}

std::vector<std::string> Row(const std::string& name, const DemoReport& report, const RoleTotals& totals) {
  return {name,
          absl::StrCat(report.blocks),
          FormatBytes(totals.raw_bytes),
          FormatBytes(static_cast<uint64_t>(std::llround(totals.stored_bytes))),
          absl::StrFormat("%.2f", totals.bits_an_element()),
          FormatNumber(totals.nmse(), 3),
          FormatNumber(totals.floor_error, 3),
          absl::StrFormat("%.5f", totals.cosine)};
}

// A block holds both roles and travels whole, so its speed belongs to both.
std::string RoleTable(const DemoReport& report) {
  Table table(
      {"role", "blocks", "raw", "stored", "bits/elem", "NMSE", "floor error", "cosine", "put GB/s", "get GB/s"});
  for (const auto& [role, totals] : report.roles) {
    table.AddRow(Row(role == PlaneRole::kKey ? "key" : "value", report, totals));
  }
  std::vector<std::string> both = Row("both", report, Whole(report));
  both.push_back(Speed(report, report.put_seconds));
  both.push_back(Speed(report, report.get_seconds));
  table.AddRow(std::move(both));
  return table.ToString();
}

std::string Codecs(const RoleTotals& totals) {
  std::string text;
  for (const auto& [codec, count] : totals.codecs) {
    absl::StrAppend(&text, text.empty() ? "" : ", ", count, " ", codec);
  }
  return text;
}

std::string ToText(const DemoOptions& options, const DemoReport& report) {
  const RoleTotals whole = Whole(report);
  std::string text = Wrap(absl::StrCat(report.model, ": ", report.tokens, " tokens, ", report.layers, " layers, ",
                                       report.heads, " KV heads of ", report.channels, " channels"));
  if (!report.text_source.empty()) absl::StrAppend(&text, Wrap(absl::StrCat("over ", report.text_source)));
  absl::StrAppend(
      &text, "\n",
      Wrap(absl::StrCat("One process put ", report.blocks, " blocks into ", options.server, " (nqkvd ",
                        report.server_version, ", codec ", CodecName(report.policy), "), another looked them up:")),
      "  the same tokens                found ", report.matched_tokens, " of ", report.tokens, " tokens\n");
  absl::StrAppendFormat(&text, "  others from token %-12d found %d\n\n", report.diverging_tokens,
                        report.diverging_matched_tokens);
  absl::StrAppend(&text, RoleTable(report),
                  " Stored bytes hold headers and tables; floor error and cosine are the worst; ",
                  "speeds are of\n raw bytes, medians of ", options.repeats, ".\n\n");
  absl::StrAppendFormat(&text, "Planes   %s\nMemory   holds %.2f times the blocks that it would hold raw\n",
                        Codecs(whole), Factor(whole));
  absl::StrAppendFormat(&text, "Checked  all %d bytes, %d checksums and errors equal the reference codec's\n",
                        report.raw_bytes, whole.planes);
  return text;
}

Json ToJson(const RoleTotals& totals) {
  return {{"planes", totals.planes},
          {"raw_bytes", totals.raw_bytes},
          {"stored_bytes", std::llround(totals.stored_bytes)},
          {"bits_per_element", totals.bits_an_element()},
          {"nmse", totals.nmse()},
          {"floor_error_max", totals.floor_error},
          {"token_norm_error_max", totals.token_norm_error},
          {"cosine_min", totals.cosine},
          {"codecs", totals.codecs}};
}

Json ToJson(const DemoOptions& options, const DemoReport& report) {
  Json roles = Json::object();
  for (const auto& [role, totals] : report.roles) roles[role == PlaneRole::kKey ? "key" : "value"] = ToJson(totals);
  roles["both"] = ToJson(Whole(report));
  return {{"server", options.server},
          {"server_version", report.server_version},
          {"cache", report.cache},
          {"codec", CodecName(report.policy)},
          {"capture", options.capture_path},
          {"model", report.model},
          {"tokens", report.tokens},
          {"blocks", report.blocks},
          {"raw_bytes", report.raw_bytes},
          {"matched_tokens", report.matched_tokens},
          {"diverging_tokens", report.diverging_tokens},
          {"diverging_matched_tokens", report.diverging_matched_tokens},
          {"roles", roles},
          {"capacity_factor", Factor(Whole(report))},
          {"put_gb_per_second", GigabytesASecond(report.raw_bytes, report.put_seconds)},
          {"get_gb_per_second", GigabytesASecond(report.raw_bytes, report.get_seconds)},
          {"repeats", options.repeats},
          {"equal_to_reference", true}};
}

absl::StatusOr<double> StoreInOtherProcess(const Arguments& arguments, const DemoOptions& options) {
  absl::StatusOr<std::string> output = RunSelf(
      {kWorkerName, "--server", options.server, "--capture", options.capture_path, "--codec",
       arguments.Get("codec", "auto"), "--block_tokens", absl::StrCat(options.block_tokens), "--repeats",
       absl::StrCat(options.repeats), "--timeout", absl::StrCat(options.client.timeout / std::chrono::seconds(1))});
  // It has told the user why.
  if (absl::IsAborted(output.status())) return Reported(output.status());
  if (!output.ok()) {
    return absl::Status(output.status().code(), absl::StrCat("storing the blocks: ", output.status().message()));
  }
  double seconds = 0;
  if (!absl::SimpleAtod(*output, &seconds)) return absl::InternalError("the storing process printed no time");
  return seconds;
}

absl::Status Run(const Arguments& arguments) {
  NQKV_ASSIGN_OR_RETURN(const DemoOptions options, OptionsOf(arguments));
  NQKV_ASSIGN_OR_RETURN(const double put_seconds, StoreInOtherProcess(arguments, options));
  NQKV_ASSIGN_OR_RETURN(DemoReport report, RunDemoReader(options));
  report.put_seconds = put_seconds;
  const std::string text = arguments.Has("json") ? ToJson(options, report).dump() + "\n" : ToText(options, report);
  std::fputs(text.c_str(), stdout);
  return absl::OkStatus();
}

absl::Status RunWorker(const Arguments& arguments) {
  NQKV_ASSIGN_OR_RETURN(const DemoOptions options, OptionsOf(arguments));
  NQKV_ASSIGN_OR_RETURN(const DemoPut put, RunDemoWorker(options));
  std::printf("%.9f\n", put.seconds);
  return absl::OkStatus();
}

}  // namespace

Command DemoCommand() {
  return {.line = {.name = "demo",
                   .positional = "",
                   .summary = "Store a real model's KV cache, fetch it from another process, check every byte.",
                   .flags = DemoFlags(),
                   .examples = {"nqkv demo", "nqkv demo --server 127.0.0.1:6758 --codec nqkv4-g128 --json",
                                "nqkv demo --capture my_kv.safetensors"}},
          .run = Run};
}

Command DemoWorkerCommand() {
  return {.line = {.name = kWorkerName,
                   .positional = "",
                   .summary = "The storing process of nqkv demo.",
                   .flags = DemoFlags(),
                   .examples = {}},
          .run = RunWorker,
          .hidden = true};
}

}  // namespace nqkv::client
