// What the commands that work on a cache share: which server, which cache, which keys.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "client/arguments.h"
#include "client/capture.h"
#include "client/nqkv.h"

namespace nqkv::client {

std::vector<FlagSpec> CacheFlags();
std::vector<FlagSpec> KeyFlags();

// "auto", "raw", "nqkv4" or "nqkv4-g64" to "nqkv4-g256", "nqkv4-row". Errors: UsageError.
absl::StatusOr<CodecPolicy> ParseCodec(const std::string& text);
std::string CodecName(const CodecPolicy& policy);

// The cache that the command line names, as it describes it: --spec, --capture, or --model with --layers, --kv_heads
// and
// --head_dim.
struct CacheArguments {
  CacheOptions options;
  std::optional<Capture> capture;  // With --capture.

  static absl::StatusOr<CacheArguments> Parse(const Arguments& arguments);
};

// The keys that the command line gives, in order: --key, --tokens or --capture.
absl::StatusOr<std::vector<std::string>> KeysOf(const Arguments& arguments, const CacheArguments& cache);

absl::StatusOr<std::unique_ptr<Client>> ConnectTo(const Arguments& arguments);
absl::StatusOr<std::unique_ptr<Cache>> OpenCacheOf(const Arguments& arguments, const CacheArguments& cache);

}  // namespace nqkv::client
