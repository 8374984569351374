// nqkv lookup: says how much of a chain is present.
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "client/cache_arguments.h"
#include "client/command.h"
#include "client/table.h"
#include "kernels/status_macros.h"
#include "nlohmann/json.hpp"

namespace nqkv::client {
namespace {

absl::Status Run(const Arguments& arguments) {
  NQKV_ASSIGN_OR_RETURN(const CacheArguments cache, CacheArguments::Parse(arguments));
  NQKV_ASSIGN_OR_RETURN(std::vector<std::string> keys, KeysOf(arguments, cache));
  NQKV_ASSIGN_OR_RETURN(const uint64_t layer_group, arguments.GetNumber("layer_group", 0, 0, UINT32_MAX));
  NQKV_ASSIGN_OR_RETURN(const std::unique_ptr<Cache> opened, OpenCacheOf(arguments, cache));
  const size_t key_count = keys.size();
  const bool set = arguments.Has("set");
  NQKV_ASSIGN_OR_RETURN(const LookupResult result,
                        opened->Lookup({.chains = {{.layer_group = static_cast<uint32_t>(layer_group),
                                                    .first_block_index = 0,
                                                    .keys = std::move(keys)}},
                                        .mode = set ? LookupMode::kSet : LookupMode::kPrefix}));
  const GroupMatch& match = result.groups.front();
  if (arguments.Has("json")) {
    nlohmann::ordered_json json = {{"keys", key_count},
                                   {"matched_blocks", match.matched_blocks},
                                   {"matched_tokens", result.matched_tokens},
                                   {"raw_bytes", match.raw_bytes},
                                   {"stored_bytes", match.stored_bytes}};
    if (set) json["present"] = match.present;
    std::puts(json.dump().c_str());
    return absl::OkStatus();
  }
  std::string text = absl::StrCat(match.matched_blocks, " of ", key_count, " blocks");
  if (!set) absl::StrAppend(&text, ", ", result.matched_tokens, " tokens from the first on");
  absl::StrAppend(&text, "; ", FormatBytes(match.raw_bytes), " raw, ", FormatBytes(match.stored_bytes), " stored\n");
  std::fputs(text.c_str(), stdout);
  return absl::OkStatus();
}

}  // namespace

Command LookupCommand() {
  CommandLine line{.name = "lookup",
                   .positional = "CACHE",
                   .summary = "Say how much of a chain of keys is present.",
                   .flags = CacheFlags(),
                   .examples = {"nqkv lookup novel --capture tests/data/smollm2_135m_kv.safetensors",
                                "nqkv lookup chat --model my/model --layers 32 --kv_heads 8 --head_dim 128 "
                                "--tokens @prompt.ids",
                                "nqkv lookup chat --spec chat.json --key 00ff,01ff --set --json"}};
  for (FlagSpec& flag : KeyFlags()) line.flags.push_back(std::move(flag));
  line.flags.push_back({"set", "", "each key for itself, not the longest prefix"});
  return {.line = std::move(line), .run = Run};
}

}  // namespace nqkv::client
