#include "service/metrics.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "kernels/codec.h"

namespace nqkv {
namespace {

using prometheus::BuildCounter;
using prometheus::BuildHistogram;
using prometheus::Counter;
using prometheus::Family;
using prometheus::Histogram;
using prometheus::Registry;

constexpr std::array<absl::string_view, kRpcCount> kRpcNames = {"OpenCache", "Lookup",  "Put",     "Get",  "Delete",
                                                                "Clear",     "Session", "Release", "Touch"};
constexpr std::array<const char*, kRejectionCount> kRejectionNames = {
    "bytes_in_flight", "queue_full",  "store_full", "read_too_long", "put_idle", "bytes_reserved",
    "calls",           "caches_full", "leases",     "sessions",      "waiters"};
constexpr std::array<const char*, 5> kRoleNames = {"", "key", "value", "latent", "rope"};

const Histogram::BucketBoundaries& SecondsBuckets() {
  static const Histogram::BucketBoundaries buckets = {0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05,
                                                      0.1,    0.25,    0.5,    1,     2.5,    5,     10,   30};
  return buckets;
}
const Histogram::BucketBoundaries& FloorErrorBuckets() {
  static const Histogram::BucketBoundaries buckets = {0.0001, 0.001, 0.002, 0.004, 0.006, 0.008, 0.01,
                                                      0.012,  0.015, 0.02,  0.03,  0.05,  0.1,   1};
  return buckets;
}
const Histogram::BucketBoundaries& TokensBuckets() {
  static const Histogram::BucketBoundaries buckets = {0,    64,   256,   512,   1024,  2048,
                                                      4096, 8192, 16384, 32768, 65536, 131072};
  return buckets;
}

Family<Counter>* CounterFamily(Registry& registry, const char* name, const char* help) {
  return &BuildCounter().Name(name).Help(help).Register(registry);
}

uint64_t ValueOf(const Counter* counter) { return static_cast<uint64_t>(counter->Value()); }

}  // namespace

absl::string_view RpcName(Rpc rpc) { return kRpcNames[static_cast<size_t>(rpc)]; }

std::string OutcomeName(absl::StatusCode code) { return absl::StatusCodeToString(code); }

Metrics::Metrics() {
  auto* requests = CounterFamily(registry_, "nqkv_requests_total", "Calls that ended, by rpc and outcome.");
  auto& seconds = BuildHistogram()
                      .Name("nqkv_request_duration_seconds")
                      .Help("From a call's start to its end, by rpc and whether it worked.")
                      .Register(registry_);
  // Every pair that can occur from the start: a rate over a series that appears late misses its first event.
  for (size_t rpc = 0; rpc < kRpcCount; ++rpc) {
    const std::string name(kRpcNames[rpc]);
    for (size_t code = 0; code < kCodeCount; ++code) {
      // Latency is kept for calls that worked and, together, for those that did not: a histogram is 18 series.
      rpcs_[rpc][code] = {
          .requests = &requests->Add({{"rpc", name}, {"outcome", OutcomeName(static_cast<absl::StatusCode>(code))}}),
          .seconds = &seconds.Add({{"rpc", name}, {"outcome", code == 0 ? "OK" : "error"}}, SecondsBuckets())};
    }
  }
  auto* rejections =
      CounterFamily(registry_, "nqkv_rejections_total", "Calls and blocks turned away for want of room.");
  for (size_t i = 0; i < kRejectionCount; ++i) rejections_[i] = &rejections->Add({{"reason", kRejectionNames[i]}});

  auto* planes = CounterFamily(registry_, "nqkv_encoded_planes_total", "Planes encoded, by role and codec.");
  for (size_t role = 1; role < planes_.size(); ++role) {
    for (size_t codec = 0; codec < kPlaneCodecs.size(); ++codec) {
      planes_[role][codec] =
          &planes->Add({{"role", kRoleNames[role]}, {"codec", std::string(PlaneCodecName(kPlaneCodecs[codec]))}});
    }
  }
  fallback_planes_ = &CounterFamily(registry_, "nqkv_fallback_planes_total",
                                    "Planes that the policy auto stored raw since every other codec broke the bound.")
                          ->Add({});
  checksum_failures_ =
      &CounterFamily(registry_, "nqkv_checksum_failures_total", "Stored blocks that were found damaged and dropped.")
           ->Add({});
  auto* codec_bytes = CounterFamily(registry_, "nqkv_codec_raw_bytes_total", "Raw bytes encoded and decoded.");
  auto* codec_seconds = CounterFamily(registry_, "nqkv_codec_seconds_total", "Time that encoding and decoding took.");
  encode_bytes_ = &codec_bytes->Add({{"direction", "encode"}});
  decode_bytes_ = &codec_bytes->Add({{"direction", "decode"}});
  encode_seconds_ = &codec_seconds->Add({{"direction", "encode"}});
  decode_seconds_ = &codec_seconds->Add({{"direction", "decode"}});
  matched_tokens_ = &BuildHistogram()
                         .Name("nqkv_lookup_matched_prefix_tokens")
                         .Help("Tokens of the longest prefix found, a lookup.")
                         .Register(registry_)
                         .Add({}, TokensBuckets());
  auto& floor_error =
      BuildHistogram().Name("nqkv_plane_floor_error_ratio").Help("Floor error of stored planes.").Register(registry_);
  for (size_t role = 1; role < floor_error_.size(); ++role) {
    floor_error_[role] = &floor_error.Add({{"role", kRoleNames[role]}}, FloorErrorBuckets());
  }

  lookups_ = CounterFamily(registry_, "nqkv_lookups_total", "Lookup queries.");
  lookup_keys_ = CounterFamily(registry_, "nqkv_lookup_keys_total", "Keys looked up.");
  lookup_hit_keys_ = CounterFamily(registry_, "nqkv_lookup_hit_keys_total", "Keys found: for prefixes, those within.");
  lookup_matched_tokens_ =
      CounterFamily(registry_, "nqkv_lookup_matched_tokens_total", "Tokens that need no prefill after a lookup.");
  put_blocks_ = CounterFamily(registry_, "nqkv_put_blocks_total", "Blocks put, by outcome.");
  put_raw_bytes_ = CounterFamily(registry_, "nqkv_put_raw_bytes_total", "Raw bytes of the blocks stored.");
  put_stored_bytes_ = CounterFamily(registry_, "nqkv_put_stored_bytes_total", "Encoded bytes of the blocks stored.");
  get_blocks_ = CounterFamily(registry_, "nqkv_get_blocks_total", "Blocks asked for, by tier and outcome.");
  get_bytes_ = CounterFamily(registry_, "nqkv_get_bytes_total", "Decoded bytes served, by tier.");
  get_stored_bytes_ = CounterFamily(registry_, "nqkv_get_stored_bytes_total", "Encoded bytes that they were, by tier.");
}

CacheMetrics* Metrics::ForCache(const std::string& name) {
  MutexLock lock(&mutex_);
  const auto found = caches_.find(name);
  if (found != caches_.end()) return found->second.get();
  const std::string label = caches_.size() < kCacheLabelsMax ? name : "other";
  std::unique_ptr<CacheMetrics>& entry = caches_[label];
  if (entry == nullptr) entry = MakeCacheMetrics(label);
  return entry.get();
}

std::unique_ptr<CacheMetrics> Metrics::MakeCacheMetrics(const std::string& label) {
  const prometheus::Labels cache = {{"cache", label}};
  const auto with = [&](const char* outcome) { return prometheus::Labels{{"cache", label}, {"outcome", outcome}}; };
  const auto on_host = [&](const char* outcome) {
    return prometheus::Labels{{"cache", label}, {"outcome", outcome}, {"tier", "host"}};
  };
  const prometheus::Labels host = {{"cache", label}, {"tier", "host"}};
  auto metrics = std::make_unique<CacheMetrics>();
  metrics->label = label;
  metrics->lookups = &lookups_->Add(cache);
  metrics->lookup_keys = &lookup_keys_->Add(cache);
  metrics->lookup_hit_keys = &lookup_hit_keys_->Add(cache);
  metrics->lookup_matched_tokens = &lookup_matched_tokens_->Add(cache);
  metrics->put_blocks_stored = &put_blocks_->Add(with("stored"));
  metrics->put_blocks_present = &put_blocks_->Add(with("already_present"));
  metrics->put_blocks_refused = &put_blocks_->Add(with("refused"));
  metrics->put_raw_bytes = &put_raw_bytes_->Add(cache);
  metrics->put_stored_bytes = &put_stored_bytes_->Add(cache);
  metrics->get_blocks_hit = &get_blocks_->Add(on_host("hit"));
  metrics->get_blocks_missed = &get_blocks_->Add(on_host("miss"));
  metrics->get_blocks_failed = &get_blocks_->Add(on_host("failed"));
  metrics->get_bytes = &get_bytes_->Add(host);
  metrics->get_stored_bytes = &get_stored_bytes_->Add(host);
  return metrics;
}

void Metrics::RecordRpc(Rpc rpc, absl::StatusCode code, absl::Duration duration) {
  const size_t index = std::min(static_cast<size_t>(code), kCodeCount - 1);
  const RpcMetrics& metrics = rpcs_[static_cast<size_t>(rpc)][index];
  metrics.requests->Increment();
  metrics.seconds->Observe(absl::ToDoubleSeconds(duration));
}

void Metrics::RecordRejection(Rejection reason) { rejections_[static_cast<size_t>(reason)]->Increment(); }

void Metrics::RecordLookup(uint64_t matched_tokens) { matched_tokens_->Observe(static_cast<double>(matched_tokens)); }

void Metrics::RecordEncodedPlane(const PlaneEntry& plane) {
  const size_t role = static_cast<size_t>(plane.role);
  const size_t codec =
      static_cast<size_t>(std::find(kPlaneCodecs.begin(), kPlaneCodecs.end(), plane.codec) - kPlaneCodecs.begin());
  if (codec < kPlaneCodecs.size()) planes_[role][codec]->Increment();
  floor_error_[role]->Observe(plane.errors.floor_error);
}

void Metrics::RecordFallbackPlanes(uint32_t planes) { fallback_planes_->Increment(planes); }

void Metrics::RecordEncode(uint64_t raw_bytes, absl::Duration duration) {
  encode_bytes_->Increment(static_cast<double>(raw_bytes));
  encode_seconds_->Increment(absl::ToDoubleSeconds(duration));
}

void Metrics::RecordDecode(uint64_t raw_bytes, absl::Duration duration) {
  decode_bytes_->Increment(static_cast<double>(raw_bytes));
  decode_seconds_->Increment(absl::ToDoubleSeconds(duration));
}

void Metrics::RecordChecksumFailure() { checksum_failures_->Increment(); }

Metrics::Totals Metrics::Sum() const {
  Totals totals = {.fallback_planes = ValueOf(fallback_planes_), .checksum_failures = ValueOf(checksum_failures_)};
  for (const prometheus::Counter* rejection : rejections_) totals.rejections += ValueOf(rejection);
  MutexLock lock(&mutex_);
  for (const auto& [label, cache] : caches_) {
    totals.lookups += ValueOf(cache->lookups);
    totals.lookup_keys += ValueOf(cache->lookup_keys);
    totals.hit_keys += ValueOf(cache->lookup_hit_keys);
    totals.put_blocks += ValueOf(cache->put_blocks_stored);
    totals.get_blocks += ValueOf(cache->get_blocks_hit);
  }
  return totals;
}

}  // namespace nqkv
