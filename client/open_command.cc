// nqkv open: creates a cache or joins it.
#include <cstdio>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "client/cache_arguments.h"
#include "client/command.h"
#include "client/table.h"
#include "kernels/status_macros.h"
#include "nlohmann/json.hpp"

namespace nqkv::client {
namespace {

nlohmann::ordered_json ToJson(const std::string& name, const CacheInfo& info) {
  nlohmann::ordered_json sizes = nlohmann::ordered_json::array();
  for (const GroupSizes& group : info.sizes) {
    sizes.push_back({{"layer_group", group.layer_group},
                     {"layers", {group.layers.begin, group.layers.end}},
                     {"heads", {group.heads.begin, group.heads.end}},
                     {"raw_bytes", group.raw_bytes},
                     {"encoded_bytes_min", group.encoded_bytes_min},
                     {"encoded_bytes_typical", group.encoded_bytes_typical},
                     {"encoded_bytes_max", group.encoded_bytes_max}});
  }
  return {{"cache", name},
          {"created", info.created},
          {"codec", CodecName(info.policy)},
          {"spec_fingerprint", absl::BytesToHexString(info.spec_fingerprint)},
          {"server_version", info.server_version},
          {"groups", sizes}};
}

std::string ToText(const std::string& name, const CacheInfo& info) {
  Table table({"group", "layers", "heads", "raw a block", "stored (typical)", "least", "most"});
  for (const GroupSizes& group : info.sizes) {
    table.AddRow({absl::StrCat(group.layer_group), absl::StrCat(group.layers.begin, "-", group.layers.end),
                  absl::StrCat(group.heads.begin, "-", group.heads.end), FormatBytes(group.raw_bytes),
                  FormatBytes(group.encoded_bytes_typical), FormatBytes(group.encoded_bytes_min),
                  FormatBytes(group.encoded_bytes_max)});
  }
  return absl::StrCat(info.created ? "Created " : "Joined ", name, ", codec ", CodecName(info.policy), ", fingerprint ",
                      absl::BytesToHexString(info.spec_fingerprint), ", nqkvd ", info.server_version, "\n\n",
                      table.ToString());
}

absl::Status Run(const Arguments& arguments) {
  NQKV_ASSIGN_OR_RETURN(const CacheArguments cache, CacheArguments::Parse(arguments));
  NQKV_ASSIGN_OR_RETURN(const std::unique_ptr<Cache> opened, OpenCacheOf(arguments, cache));
  const std::string text = arguments.Has("json") ? ToJson(opened->name(), opened->info()).dump() + "\n"
                                                 : ToText(opened->name(), opened->info());
  std::fputs(text.c_str(), stdout);
  return absl::OkStatus();
}

}  // namespace

Command OpenCommand() {
  return {.line = {.name = "open",
                   .positional = "CACHE",
                   .summary = "Create a cache, or join the one of this name.",
                   .flags = CacheFlags(),
                   .examples = {"nqkv open chat --model my/model --layers 32 --kv_heads 8 --head_dim 128",
                                "nqkv open novel --capture tests/data/smollm2_135m_kv.safetensors --codec nqkv4-g128"}},
          .run = Run};
}

}  // namespace nqkv::client
