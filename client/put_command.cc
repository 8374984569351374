// nqkv put: stores blocks from a capture or a raw file.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>

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

constexpr size_t kBlocksACall = 32;  // So that progress moves.

struct Totals {
  uint64_t stored = 0;
  uint64_t present = 0;
  uint64_t failed = 0;
  uint64_t raw_bytes = 0;
  uint64_t stored_bytes = 0;
  uint64_t raw_planes = 0;
  float floor_error = 0;
  double seconds = 0;
  absl::Status first_failure;

  void Add(const PutResult& result) {
    if (!result.status.ok()) {
      ++failed;
      if (first_failure.ok()) first_failure = result.status;
      return;
    }
    ++(result.outcome == PutOutcome::kAlreadyPresent ? present : stored);
    raw_bytes += result.raw_bytes;
    stored_bytes += result.stored_bytes;
    raw_planes += result.raw_planes;
    floor_error = std::max(floor_error, result.floor_error);
  }
};

absl::StatusOr<std::string> ReadRaw(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be opened"));
  std::string bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (file.bad()) return absl::DataLossError(absl::StrCat(path, ": cannot be read"));
  return bytes;
}

// The blocks that the command line names; `file` keeps the bytes of --file.
absl::StatusOr<std::vector<PutBlock>> BlocksOf(const Arguments& arguments, const CacheArguments& cache,
                                               std::string* file) {
  NQKV_ASSIGN_OR_RETURN(const std::vector<std::string> keys, KeysOf(arguments, cache));
  std::vector<PutBlock> blocks;
  if (!arguments.Has("file")) {
    if (!cache.capture) return UsageError("no blocks: give --capture, or --file with --key or --tokens");
    if (keys.size() > cache.capture->block_count()) return UsageError("more keys than the capture has blocks");
    for (size_t i = 0; i < keys.size(); ++i) blocks.push_back(cache.capture->Block(i, keys[i]));
    return blocks;
  }
  NQKV_ASSIGN_OR_RETURN(const uint64_t layer_group, arguments.GetNumber("layer_group", 0, 0, UINT32_MAX));
  NQKV_ASSIGN_OR_RETURN(*file, ReadRaw(arguments.Get("file")));
  if (keys.empty() || file->size() % keys.size() != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--file: ", file->size(), " bytes do not divide into ", keys.size(), " blocks"));
  }
  const size_t block_bytes = file->size() / keys.size();
  for (size_t i = 0; i < keys.size(); ++i) {
    PutBlock block;
    block.key = keys[i];
    block.layer_group = static_cast<uint32_t>(layer_group);
    block.data = file->data() + i * block_bytes;
    block.bytes = block_bytes;
    blocks.push_back(std::move(block));
  }
  return blocks;
}

Totals PutAll(Cache* cache, std::span<const PutBlock> blocks) {
  Totals totals;
  Progress progress("put", blocks.size());
  const auto begin = std::chrono::steady_clock::now();
  for (size_t done = 0; done < blocks.size();) {
    const auto batch = blocks.subspan(done, std::min(kBlocksACall, blocks.size() - done));
    for (const PutResult& result : cache->Put(batch)) totals.Add(result);
    done += batch.size();
    progress.Update(done);
  }
  totals.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return totals;
}

std::string ToText(const Totals& totals) {
  std::string text = absl::StrCat("Stored ", totals.stored, " blocks");
  if (totals.present > 0) absl::StrAppend(&text, ", ", totals.present, " were there already");
  if (totals.failed > 0) absl::StrAppend(&text, ", ", totals.failed, " failed");
  absl::StrAppend(&text, "; ", FormatBytes(totals.raw_bytes), " raw, ", FormatBytes(totals.stored_bytes), " stored");
  if (totals.raw_planes > 0) absl::StrAppend(&text, ", ", totals.raw_planes, " planes raw");
  if (totals.stored > 0) absl::StrAppendFormat(&text, ", worst floor error %.4f", totals.floor_error);
  return text + "\n";
}

nlohmann::ordered_json ToJson(const Totals& totals) {
  return {{"stored_blocks", totals.stored},      {"present_blocks", totals.present},
          {"failed_blocks", totals.failed},      {"raw_bytes", totals.raw_bytes},
          {"stored_bytes", totals.stored_bytes}, {"raw_planes", totals.raw_planes},
          {"floor_error", totals.floor_error},   {"seconds", totals.seconds}};
}

absl::Status Run(const Arguments& arguments) {
  NQKV_ASSIGN_OR_RETURN(const CacheArguments cache, CacheArguments::Parse(arguments));
  std::string file;
  NQKV_ASSIGN_OR_RETURN(const std::vector<PutBlock> blocks, BlocksOf(arguments, cache, &file));
  NQKV_ASSIGN_OR_RETURN(const std::unique_ptr<Cache> opened, OpenCacheOf(arguments, cache));
  const Totals totals = PutAll(opened.get(), blocks);
  std::fputs(arguments.Has("json") ? (ToJson(totals).dump() + "\n").c_str() : ToText(totals).c_str(), stdout);
  return totals.first_failure;
}

}  // namespace

Command PutCommand() {
  CommandLine line{.name = "put",
                   .positional = "CACHE",
                   .summary = "Store blocks from a capture or a raw file.",
                   .flags = CacheFlags(),
                   .examples = {"nqkv put novel --capture tests/data/smollm2_135m_kv.safetensors",
                                "nqkv put chat --spec chat.json --key 00ff --file block.raw"}};
  for (FlagSpec& flag : KeyFlags()) line.flags.push_back(std::move(flag));
  line.flags.push_back({"file", "FILE", "raw blocks one after another, one a key"});
  return {.line = std::move(line), .run = Run};
}

}  // namespace nqkv::client
