#include "client/demo.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "client/cache_arguments.h"
#include "client/capture.h"
#include "client/convert.h"
#include "client/progress.h"
#include "kernels/status_macros.h"
#include "proto/spec_fingerprint.h"

namespace nqkv::client {
namespace {

using SteadyClock = std::chrono::steady_clock;

double SecondsSince(SteadyClock::time_point begin) {
  return std::chrono::duration<double>(SteadyClock::now() - begin).count();
}

double Median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// The same for the same capture and codec, so that running the demo again needs no further cache.
std::string CacheName(const Capture& capture, const CodecPolicy& policy) {
  const std::string& model = capture.spec().model;
  std::string name = model.substr(model.rfind('/') + 1).substr(0, 60);
  for (char& c : name) {
    if (!absl::ascii_isalnum(static_cast<unsigned char>(c)) && c != '.' && c != '-') c = '_';
  }
  const std::string fingerprint = absl::BytesToHexString(SpecFingerprint16(ToProto(capture.spec()))).substr(0, 8);
  return absl::StrCat("demo/", name, "/", CodecName(policy), "/", fingerprint);
}

absl::StatusOr<std::unique_ptr<Cache>> Open(const DemoOptions& options, const Capture& capture) {
  NQKV_ASSIGN_OR_RETURN(std::unique_ptr<Client> client, Client::Connect(options.server, options.client));
  absl::StatusOr<std::unique_ptr<Cache>> cache = client->OpenCache({.name = CacheName(capture, options.policy),
                                                                    .spec = capture.spec(),
                                                                    .policy = options.policy,
                                                                    .shard = {},
                                                                    .engine = "nqkv demo"});
  if (!absl::IsUnavailable(cache.status())) return cache;
  return absl::UnavailableError(absl::StrCat("no answer from ", options.server, ": ", cache.status().message()));
}

std::vector<std::string> KeysOf(const Capture& capture, std::span<const uint32_t> tokens) {
  return ChainKeys(tokens, capture.group().block_tokens);
}

absl::StatusOr<uint64_t> MatchedTokens(Cache* cache, std::vector<std::string> keys) {
  NQKV_ASSIGN_OR_RETURN(
      const LookupResult result,
      cache->Lookup({.chains = {{.layer_group = 0, .first_block_index = 0, .keys = std::move(keys)}}}));
  return result.matched_tokens;
}

// Both lookups, and what they must find.
absl::Status LookUp(Cache* cache, const Capture& capture, DemoReport* report) {
  NQKV_ASSIGN_OR_RETURN(report->matched_tokens, MatchedTokens(cache, KeysOf(capture, capture.tokens())));
  if (report->matched_tokens != report->tokens) {
    return absl::DataLossError(absl::StrCat("the lookup found ", report->matched_tokens, " of ", report->tokens,
                                            " tokens that were just put"));
  }
  std::vector<uint32_t> diverging(capture.tokens().begin(), capture.tokens().end());
  report->diverging_tokens = report->tokens / 2;
  for (size_t i = report->diverging_tokens; i < diverging.size(); ++i) diverging[i] ^= 1;
  NQKV_ASSIGN_OR_RETURN(report->diverging_matched_tokens, MatchedTokens(cache, KeysOf(capture, diverging)));
  const uint32_t block_tokens = capture.group().block_tokens;
  if (report->diverging_matched_tokens != report->diverging_tokens / block_tokens * block_tokens) {
    return absl::DataLossError(absl::StrCat("a chain that parts at token ", report->diverging_tokens, " matched ",
                                            report->diverging_matched_tokens, " tokens"));
  }
  return absl::OkStatus();
}

// The capture's blocks as the server gives them.
class Fetcher {
 public:
  Fetcher(Cache* cache, const Capture* capture)
      : cache_(cache), capture_(capture), bytes_(capture->block_bytes() * capture->block_count()) {
    const std::vector<std::string> keys = KeysOf(*capture, capture->tokens());
    for (size_t i = 0; i < keys.size(); ++i) {
      targets_.push_back(
          {.key = keys[i], .data = bytes_.data() + i * capture->block_bytes(), .bytes = capture->block_bytes()});
    }
  }

  // One Get of all blocks; its seconds.
  absl::StatusOr<double> Fetch(bool include_planes) {
    const auto begin = SteadyClock::now();
    results_ = cache_->Get(targets_, {.include_planes = include_planes});
    const double seconds = SecondsSince(begin);
    for (size_t i = 0; i < results_.size(); ++i) {
      const absl::Status& status = results_[i].status;
      if (!status.ok()) return absl::Status(status.code(), absl::StrCat("get of block ", i, ": ", status.message()));
    }
    return seconds;
  }

  absl::Status Check(BlockCheck* check) const {
    Progress progress("check", results_.size());
    for (size_t i = 0; i < results_.size(); ++i) {
      const std::span<const std::byte> block(bytes_.data() + i * capture_->block_bytes(), results_[i].payload_bytes);
      NQKV_RETURN_IF_ERROR(check->Check(i, block, results_[i]));
      progress.Update(i + 1);
    }
    return absl::OkStatus();
  }

  std::span<const std::byte> bytes() const { return bytes_; }
  void Wipe() { std::fill(bytes_.begin(), bytes_.end(), std::byte{0xa5}); }

 private:
  Cache* cache_;
  const Capture* capture_;
  std::vector<std::byte> bytes_;
  std::vector<GetTarget> targets_;
  std::vector<GetResult> results_;
};

absl::Status GetAndCheck(Cache* cache, const Capture& capture, int repeats, DemoReport* report) {
  Fetcher fetcher(cache, &capture);
  NQKV_ASSIGN_OR_RETURN([[maybe_unused]] const double first_seconds, fetcher.Fetch(/*include_planes=*/true));
  BlockCheck check(&capture);
  NQKV_RETURN_IF_ERROR(fetcher.Check(&check));
  report->roles = check.totals();

  const std::vector<std::byte> checked(fetcher.bytes().begin(), fetcher.bytes().end());
  std::vector<double> seconds;
  Progress progress("get", static_cast<uint64_t>(repeats));
  for (int i = 0; i < repeats; ++i) {
    fetcher.Wipe();
    NQKV_ASSIGN_OR_RETURN(const double taken, fetcher.Fetch(/*include_planes=*/false));
    if (!std::equal(checked.begin(), checked.end(), fetcher.bytes().begin())) {
      return absl::DataLossError("two gets of the same blocks gave different bytes");
    }
    seconds.push_back(taken);
    progress.Update(static_cast<uint64_t>(i) + 1);
  }
  report->get_seconds = Median(std::move(seconds));
  return absl::OkStatus();
}

absl::StatusOr<double> PutOnce(Cache* cache, std::span<const PutBlock> blocks) {
  absl::StatusOr<Removed> cleared = cache->Clear();
  if (!cleared.ok()) return cleared.status();
  const auto begin = SteadyClock::now();
  const std::vector<PutResult> results = cache->Put(blocks);
  const double seconds = SecondsSince(begin);
  for (size_t i = 0; i < results.size(); ++i) {
    const absl::Status& status = results[i].status;
    if (!status.ok()) return absl::Status(status.code(), absl::StrCat("put of block ", i, ": ", status.message()));
  }
  return seconds;
}

}  // namespace

absl::StatusOr<DemoPut> RunDemoWorker(const DemoOptions& options) {
  NQKV_ASSIGN_OR_RETURN(const Capture capture, Capture::Load(options.capture_path, options.block_tokens));
  NQKV_ASSIGN_OR_RETURN(const std::unique_ptr<Cache> cache, Open(options, capture));
  const std::vector<std::string> keys = KeysOf(capture, capture.tokens());
  std::vector<PutBlock> blocks;
  for (size_t i = 0; i < keys.size(); ++i) blocks.push_back(capture.Block(i, keys[i]));
  // The first is not counted: it connects and warms up.
  std::vector<double> seconds;
  Progress progress("put", static_cast<uint64_t>(options.repeats) + 1);
  for (int i = 0; i <= options.repeats; ++i) {
    NQKV_ASSIGN_OR_RETURN(const double taken, PutOnce(cache.get(), blocks));
    if (i > 0) seconds.push_back(taken);
    progress.Update(static_cast<uint64_t>(i) + 1);
  }
  return DemoPut{.seconds = Median(std::move(seconds))};
}

absl::StatusOr<DemoReport> RunDemoReader(const DemoOptions& options) {
  NQKV_ASSIGN_OR_RETURN(const Capture capture, Capture::Load(options.capture_path, options.block_tokens));
  NQKV_ASSIGN_OR_RETURN(const std::unique_ptr<Cache> cache, Open(options, capture));
  DemoReport report;
  report.cache = cache->name();
  report.server_version = cache->info().server_version;
  report.policy = cache->info().policy;
  report.model = capture.spec().model;
  report.text_source = capture.Metadata("text_source");
  report.layers = capture.group().planes.back().layer + 1;
  report.heads = capture.group().planes.front().heads;
  report.channels = capture.group().planes.front().channels;
  report.blocks = capture.block_count();
  report.tokens = capture.block_count() * capture.group().block_tokens;
  report.raw_bytes = capture.block_count() * capture.block_bytes();
  NQKV_RETURN_IF_ERROR(LookUp(cache.get(), capture, &report));
  NQKV_RETURN_IF_ERROR(GetAndCheck(cache.get(), capture, options.repeats, &report));
  return report;
}

}  // namespace nqkv::client
