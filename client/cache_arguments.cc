#include "client/cache_arguments.h"

#include <algorithm>
#include <array>
#include <fstream>
#include <iterator>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "client/convert.h"
#include "client/server_address.h"
#include "google/protobuf/util/json_util.h"
#include "kernels/status_macros.h"

namespace nqkv::client {
namespace {

constexpr size_t kSpecBytesMax = 64 << 20;

absl::StatusOr<std::string> ReadFile(const std::string& path, size_t bytes_max) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be opened"));
  std::string text;
  char buffer[65536];
  while (file.read(buffer, sizeof(buffer)) || file.gcount() > 0) {
    text.append(buffer, static_cast<size_t>(file.gcount()));
    if (text.size() > bytes_max) return absl::InvalidArgumentError(absl::StrCat(path, ": over ", bytes_max, " bytes"));
  }
  return text;
}

absl::StatusOr<CacheSpec> ReadSpec(const std::string& path) {
  NQKV_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kSpecBytesMax));
  v1::CacheSpec spec;
  const auto parsed = google::protobuf::util::JsonStringToMessage(text, &spec);
  if (!parsed.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": no CacheSpec as JSON: ", std::string(parsed.message())));
  }
  absl::StatusOr<CacheSpec> own = FromProto(spec);
  if (!own.ok()) return absl::InvalidArgumentError(absl::StrCat(path, ": ", own.status().message()));
  return own;
}

absl::StatusOr<Dtype> ParseDtype(const std::string& text) {
  if (text == "float16") return Dtype::kFloat16;
  if (text == "bfloat16") return Dtype::kBfloat16;
  if (text == "float32") return Dtype::kFloat32;
  return UsageError(absl::StrCat("--dtype: '", text, "' is not float16, bfloat16 or float32"));
}

absl::StatusOr<CacheSpec> SpecFromDimensions(const Arguments& arguments, uint32_t block_tokens) {
  for (const char* flag : {"model", "layers", "kv_heads", "head_dim"}) {
    if (!arguments.Has(flag)) {
      return UsageError(absl::StrCat("--", flag,
                                     " is missing: describe the cache with --capture, --spec, or --model, "
                                     "--layers, --kv_heads and --head_dim"));
    }
  }
  NQKV_ASSIGN_OR_RETURN(const uint64_t layers, arguments.GetNumber("layers", 0, 1, 4096));
  NQKV_ASSIGN_OR_RETURN(const uint64_t heads, arguments.GetNumber("kv_heads", 0, 1, 1024));
  NQKV_ASSIGN_OR_RETURN(const uint64_t channels, arguments.GetNumber("head_dim", 0, 8, 8192));
  NQKV_ASSIGN_OR_RETURN(const Dtype dtype, ParseDtype(arguments.Get("dtype", "float16")));
  return UniformSpec(arguments.Get("model"), static_cast<uint32_t>(layers), static_cast<uint32_t>(heads),
                     static_cast<uint32_t>(channels), dtype, block_tokens);
}

absl::StatusOr<std::vector<std::string>> ParseKeys(const std::string& text) {
  std::vector<std::string> keys;
  for (const absl::string_view hex : absl::StrSplit(text, ',', absl::SkipEmpty())) {
    const bool digits = std::all_of(hex.begin(), hex.end(), [](unsigned char c) { return absl::ascii_isxdigit(c); });
    if (!digits || hex.size() % 2 != 0) {
      return UsageError(absl::StrCat("--key: '", hex, "' is not an even number of hexadecimal digits"));
    }
    keys.push_back(absl::HexStringToBytes(hex));
  }
  return keys;
}

absl::StatusOr<std::vector<uint32_t>> ParseTokens(const std::string& text) {
  std::string list = text;
  if (!text.empty() && text[0] == '@') {
    NQKV_ASSIGN_OR_RETURN(list, ReadFile(text.substr(1), kSpecBytesMax));
  }
  std::vector<uint32_t> tokens;
  for (const absl::string_view word : absl::StrSplit(list, absl::ByAnyChar(", \n\r\t"), absl::SkipEmpty())) {
    uint32_t token = 0;
    if (!absl::SimpleAtoi(word, &token)) return UsageError(absl::StrCat("--tokens: '", word, "' is not a token id"));
    tokens.push_back(token);
  }
  return tokens;
}

}  // namespace

std::vector<FlagSpec> CacheFlags() {
  std::vector<FlagSpec> flags = ServerFlags();
  const std::vector<FlagSpec> own = {
      {"capture", "FILE", "take spec, keys and blocks from a captured KV cache (safetensors)"},
      {"spec", "FILE", "the CacheSpec as protobuf JSON"},
      {"model", "NAME", "the model's name, with --layers, --kv_heads and --head_dim"},
      {"layers", "N", "layers, all alike with full attention"},
      {"kv_heads", "N", "KV heads a layer"},
      {"head_dim", "N", "channels a head"},
      {"dtype", "DTYPE", "float16 (default), bfloat16 or float32"},
      {"block_tokens", "N", "tokens a block (default 64)"},
      {"codec", "CODEC",
       "auto, raw, nqkv4-g64, nqkv4h-g64 (both also -g128, -g256), nqkv4-row or q8 (default: the cache's)"},
      {"timeout", "SECONDS", "for each call (default 30)"},
      {"json", "", "print one JSON object"}};
  flags.insert(flags.end(), own.begin(), own.end());
  return flags;
}

std::vector<FlagSpec> KeyFlags() {
  return {{"key", "HEX[,HEX]", "keys in hexadecimal"},
          {"tokens", "IDS|@FILE", "token ids, parted by commas or blanks: keys by nqkv-sha256-v1"},
          {"salt", "TEXT", "the keys' salt, with --tokens or --capture"},
          {"layer_group", "N", "the layer group (default 0)"}};
}

absl::StatusOr<CodecPolicy> ParseCodec(const std::string& text) {
  static constexpr auto kPolicies = std::to_array<std::pair<absl::string_view, CodecPolicy>>({
      {"auto", {}},
      {"raw", {.codec = Codec::kRaw}},
      {"nqkv4", {.codec = Codec::kNqkv4, .scale_group = 64}},
      {"nqkv4-g64", {.codec = Codec::kNqkv4, .scale_group = 64}},
      {"nqkv4-g128", {.codec = Codec::kNqkv4, .scale_group = 128}},
      {"nqkv4-g256", {.codec = Codec::kNqkv4, .scale_group = 256}},
      {"nqkv4-row", {.codec = Codec::kNqkv4, .scale_group = 256, .layout = PlaneLayout::kRow}},
      {"nqkv4-row-g256", {.codec = Codec::kNqkv4, .scale_group = 256, .layout = PlaneLayout::kRow}},
      {"nqkv4h", {.codec = Codec::kNqkv4h, .scale_group = 64}},
      {"nqkv4h-g64", {.codec = Codec::kNqkv4h, .scale_group = 64}},
      {"nqkv4h-g128", {.codec = Codec::kNqkv4h, .scale_group = 128}},
      {"nqkv4h-g256", {.codec = Codec::kNqkv4h, .scale_group = 256}},
      {"q8", {.codec = Codec::kQ8}},
  });
  for (const auto& [name, policy] : kPolicies) {
    if (text == name) return policy;
  }
  return UsageError(absl::StrCat("--codec: '", text,
                                 "' is not auto, raw, nqkv4-g64, nqkv4-g128, nqkv4-g256, nqkv4-row, nqkv4h-g64, "
                                 "nqkv4h-g128, nqkv4h-g256 or q8"));
}

std::string CodecName(const CodecPolicy& policy) {
  switch (policy.codec) {
    case Codec::kAuto:
      return "auto";
    case Codec::kRaw:
      return "raw";
    case Codec::kQ8:
      return "q8";
    default:
      return absl::StrCat(policy.codec == Codec::kNqkv4h ? "nqkv4h" : "nqkv4",
                          policy.layout == PlaneLayout::kRow ? "-row" : "", "-g", policy.scale_group);
  }
}

absl::StatusOr<CacheArguments> CacheArguments::Parse(const Arguments& arguments) {
  CacheArguments cache;
  cache.options.name = arguments.positional(0);
  cache.options.engine = "nqkv";
  NQKV_ASSIGN_OR_RETURN(const uint64_t block_tokens, arguments.GetNumber("block_tokens", 64, 1, 1024));
  if (arguments.Has("codec")) {
    NQKV_ASSIGN_OR_RETURN(cache.options.policy, ParseCodec(arguments.Get("codec")));
  }
  if (arguments.Has("capture")) {
    NQKV_ASSIGN_OR_RETURN(Capture capture,
                          Capture::Load(arguments.Get("capture"), static_cast<uint32_t>(block_tokens)));
    cache.options.spec = capture.spec();
    cache.capture = std::move(capture);
  } else if (arguments.Has("spec")) {
    NQKV_ASSIGN_OR_RETURN(cache.options.spec, ReadSpec(arguments.Get("spec")));
  } else {
    NQKV_ASSIGN_OR_RETURN(cache.options.spec, SpecFromDimensions(arguments, static_cast<uint32_t>(block_tokens)));
  }
  return cache;
}

absl::StatusOr<std::vector<std::string>> KeysOf(const Arguments& arguments, const CacheArguments& cache) {
  if (arguments.Has("key")) return ParseKeys(arguments.Get("key"));
  NQKV_ASSIGN_OR_RETURN(const uint64_t layer_group, arguments.GetNumber("layer_group", 0, 0, UINT32_MAX));
  const KeyInputs inputs{.adapter_digest = {}, .salt = arguments.Get("salt"), .items = {}};
  for (const LayerGroup& group : cache.options.spec.layer_groups) {
    if (group.id != layer_group || group.block_tokens == 0) continue;
    if (arguments.Has("tokens")) {
      NQKV_ASSIGN_OR_RETURN(const std::vector<uint32_t> tokens, ParseTokens(arguments.Get("tokens")));
      if (tokens.size() < group.block_tokens) {
        return UsageError(absl::StrCat("--tokens: ", tokens.size(), " do not fill a block of ", group.block_tokens));
      }
      return ChainKeys(tokens, group.block_tokens, inputs);
    }
    if (cache.capture) return ChainKeys(cache.capture->tokens(), group.block_tokens, inputs);
    return UsageError("no keys: give --key, --tokens or --capture");
  }
  return UsageError(absl::StrCat("--layer_group: the spec has no group ", layer_group));
}

absl::StatusOr<std::unique_ptr<Client>> ConnectTo(const Arguments& arguments) {
  NQKV_ASSIGN_OR_RETURN(const uint64_t seconds, arguments.GetNumber("timeout", 30, 1, 86'400));
  ClientOptions options;
  options.timeout = std::chrono::seconds(seconds);
  const std::string server = ServerOf(arguments);
  absl::StatusOr<std::unique_ptr<Client>> client = Client::Connect(server, options);
  if (!client.ok()) return UsageError(std::string(client.status().message()));
  return client;
}

absl::StatusOr<std::unique_ptr<Cache>> OpenCacheOf(const Arguments& arguments, const CacheArguments& cache) {
  NQKV_ASSIGN_OR_RETURN(std::unique_ptr<Client> client, ConnectTo(arguments));
  absl::StatusOr<std::unique_ptr<Cache>> opened = client->OpenCache(cache.options);
  if (absl::IsUnavailable(opened.status())) {
    return absl::UnavailableError(
        absl::StrCat("no answer from ", ServerOf(arguments), ": ", opened.status().message()));
  }
  return opened;
}

}  // namespace nqkv::client
