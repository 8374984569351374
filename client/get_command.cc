// nqkv get: fetches blocks, into a file or to see how they fared.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cache_arguments.h"
#include "client/command.h"
#include "client/progress.h"
#include "client/table.h"
#include "kernels/status_macros.h"
#include "nlohmann/json.hpp"

namespace nqkv::client {
namespace {

constexpr uint64_t kBytesACall = 64 << 20;  // Held at once.

struct Totals {
  uint64_t got = 0;
  uint64_t missing = 0;
  uint64_t failed = 0;
  uint64_t raw_bytes = 0;
  uint64_t stored_bytes = 0;
  float floor_error = 0;
  double seconds = 0;
  absl::Status first_failure;
  nlohmann::ordered_json blocks = nlohmann::ordered_json::array();

  void Add(const std::string& key, const GetResult& result) {
    blocks.push_back({{"key", absl::BytesToHexString(key)},
                      {"status", absl::StatusCodeToString(result.status.code())},
                      {"raw_bytes", result.payload_bytes},
                      {"stored_bytes", result.stored_bytes},
                      {"floor_error", result.floor_error}});
    if (!result.status.ok()) {
      ++(absl::IsNotFound(result.status) ? missing : failed);
      if (first_failure.ok()) {
        first_failure = absl::Status(
            result.status.code(), absl::StrCat("block ", absl::BytesToHexString(key), ": ", result.status.message()));
      }
      return;
    }
    ++got;
    raw_bytes += result.payload_bytes;
    stored_bytes += result.stored_bytes;
    floor_error = std::max(floor_error, result.floor_error);
  }
};

// Fetches all keys, some at a time; appends the blocks to `output` where it is open.
absl::StatusOr<Totals> GetAll(Cache* cache, std::span<const std::string> keys, const GetOptions& get,
                              std::ofstream* output) {
  NQKV_ASSIGN_OR_RETURN(const uint64_t block_bytes, cache->BlockBytes(get));
  const size_t batch_max = std::max<uint64_t>(kBytesACall / std::max<uint64_t>(block_bytes, 1), 1);
  std::vector<char> buffer(std::min(batch_max, keys.size()) * block_bytes);
  Totals totals;
  Progress progress("get", keys.size());
  for (size_t done = 0; done < keys.size();) {
    const auto batch = keys.subspan(done, std::min(batch_max, keys.size() - done));
    std::vector<GetTarget> targets;
    for (size_t i = 0; i < batch.size(); ++i) {
      targets.push_back({.key = batch[i], .data = buffer.data() + i * block_bytes, .bytes = block_bytes});
    }
    const auto begin = std::chrono::steady_clock::now();
    const std::vector<GetResult> results = cache->Get(targets, get);
    totals.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    for (size_t i = 0; i < batch.size(); ++i) {
      totals.Add(batch[i], results[i]);
      if (output->is_open() && results[i].status.ok()) {
        output->write(static_cast<const char*>(targets[i].data), static_cast<std::streamsize>(block_bytes));
      }
    }
    done += batch.size();
    progress.Update(done);
  }
  return totals;
}

std::string ToText(const Totals& totals) {
  std::string text = absl::StrCat("Got ", totals.got, " blocks");
  if (totals.missing > 0) absl::StrAppend(&text, ", ", totals.missing, " were not there");
  if (totals.failed > 0) absl::StrAppend(&text, ", ", totals.failed, " failed");
  absl::StrAppend(&text, "; ", FormatBytes(totals.raw_bytes), " raw, ", FormatBytes(totals.stored_bytes), " stored");
  if (totals.got > 0) absl::StrAppendFormat(&text, ", worst floor error %.4f", totals.floor_error);
  return text + "\n";
}

nlohmann::ordered_json ToJson(const Totals& totals) {
  return {{"got_blocks", totals.got},
          {"missing_blocks", totals.missing},
          {"failed_blocks", totals.failed},
          {"raw_bytes", totals.raw_bytes},
          {"stored_bytes", totals.stored_bytes},
          {"floor_error", totals.floor_error},
          {"seconds", totals.seconds},
          {"blocks", totals.blocks}};
}

absl::Status Run(const Arguments& arguments) {
  NQKV_ASSIGN_OR_RETURN(const CacheArguments cache, CacheArguments::Parse(arguments));
  NQKV_ASSIGN_OR_RETURN(const std::vector<std::string> keys, KeysOf(arguments, cache));
  NQKV_ASSIGN_OR_RETURN(const uint64_t layer_group, arguments.GetNumber("layer_group", 0, 0, UINT32_MAX));
  NQKV_ASSIGN_OR_RETURN(const std::unique_ptr<Cache> opened, OpenCacheOf(arguments, cache));
  const std::string path = arguments.Get("output");
  std::ofstream output;
  if (!path.empty()) {
    output.open(path, std::ios::binary | std::ios::trunc);
    if (!output) return absl::PermissionDeniedError(absl::StrCat(path, ": cannot be written"));
  }
  const GetOptions get{.layer_group = static_cast<uint32_t>(layer_group)};
  NQKV_ASSIGN_OR_RETURN(const Totals totals, GetAll(opened.get(), keys, get, &output));
  if (output.is_open() && !output.flush()) return absl::DataLossError(absl::StrCat(path, ": cannot be written whole"));
  std::fputs(arguments.Has("json") ? (ToJson(totals).dump() + "\n").c_str() : ToText(totals).c_str(), stdout);
  return totals.first_failure;
}

}  // namespace

Command GetCommand() {
  CommandLine line{.name = "get",
                   .positional = "CACHE",
                   .summary = "Fetch blocks; those that are missing make it fail.",
                   .flags = CacheFlags(),
                   .examples = {"nqkv get novel --capture tests/data/smollm2_135m_kv.safetensors --output blocks.raw",
                                "nqkv get chat --spec chat.json --key 00ff,01ff --json"}};
  for (FlagSpec& flag : KeyFlags()) line.flags.push_back(std::move(flag));
  line.flags.push_back({"output", "FILE", "write the blocks' raw bytes there, one after another"});
  return {.line = std::move(line), .run = Run};
}

}  // namespace nqkv::client
