#include "service/status_report.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <limits>
#include <map>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/codec.h"
#include "service/version.h"

namespace nqkv {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;
using Labels = std::vector<ClientMetric::Label>;

// One family after the other, in Prometheus' own structs.
class FamilyList {
 public:
  void Gauge(const char* name, const char* help, double value, Labels labels = {}) {
    ClientMetric metric;
    metric.gauge.value = value;
    Add(name, help, MetricType::Gauge, std::move(metric), std::move(labels));
  }
  void Counter(const char* name, const char* help, double value, Labels labels = {}) {
    ClientMetric metric;
    metric.counter.value = value;
    Add(name, help, MetricType::Counter, std::move(metric), std::move(labels));
  }
  void Histogram(const char* name, const char* help, const AgeStats& ages, Labels labels) {
    ClientMetric metric;
    for (size_t i = 0; i < ages.counts.size(); ++i) {
      metric.histogram.sample_count += ages.counts[i];
      const bool last = i == AgeStats::kBoundsSeconds.size();
      const double bound = last ? std::numeric_limits<double>::infinity() : AgeStats::kBoundsSeconds[i];
      metric.histogram.bucket.push_back({.cumulative_count = metric.histogram.sample_count, .upper_bound = bound});
    }
    metric.histogram.sample_sum = static_cast<double>(ages.sum_seconds);
    Add(name, help, MetricType::Histogram, std::move(metric), std::move(labels));
  }
  std::vector<MetricFamily> Take() { return std::move(families_); }

 private:
  // Samples of one family come one after the other.
  void Add(const char* name, const char* help, MetricType type, ClientMetric metric, Labels labels) {
    metric.label = std::move(labels);
    if (families_.empty() || families_.back().name != name) families_.push_back({name, help, type, {}});
    families_.back().metric.push_back(std::move(metric));
  }

  std::vector<MetricFamily> families_;
};

constexpr std::array<const char*, kLeaseEndCount> kLeaseEndNames = {"released", "expired", "replaced", "orphaned"};
constexpr uint32_t kLeasesListedMax = 1'000;

double ToDouble(uint64_t value) { return static_cast<double>(value); }

double ToSeconds(std::chrono::nanoseconds duration) { return std::chrono::duration<double>(duration).count(); }

void CollectStore(const StoreStats& stats, FamilyList* families) {
  const Labels host = {{"tier", "host"}};
  families->Gauge("nqkv_capacity_bytes", "Bytes that the tier can hold.", ToDouble(stats.capacity_bytes), host);
  families->Gauge("nqkv_used_bytes", "Bytes of slots that are taken, rounding included.", ToDouble(stats.used_bytes),
                  host);
  families->Gauge("nqkv_stored_bytes", "Encoded bytes of the blocks stored.", ToDouble(stats.stored_bytes), host);
  families->Gauge("nqkv_raw_bytes", "What the stored blocks were before encoding.", ToDouble(stats.raw_bytes), host);
  families->Gauge("nqkv_reserved_bytes", "Bytes of blocks that are being written.", ToDouble(stats.reserved_bytes),
                  host);
  families->Gauge("nqkv_pinned_bytes", "Bytes that readers hold.", ToDouble(stats.pinned_bytes), host);
  families->Gauge("nqkv_pinned_parts", "Parts of blocks that readers hold.", ToDouble(stats.pinned_parts), host);
  families->Gauge("nqkv_blocks", "Blocks stored.", ToDouble(stats.blocks), host);
  families->Gauge("nqkv_parts", "Parts of blocks stored, as shards put them.", ToDouble(stats.parts), host);
  families->Gauge("nqkv_free_pages_bytes", "Pages that belong to no size class.", ToDouble(stats.free_bytes), host);
  for (const SizeClassStats& size_class : stats.classes) {
    const std::string bytes = absl::StrCat(size_class.slot_bytes);
    families->Gauge("nqkv_slabs", "Slabs, by size of their slots.", ToDouble(size_class.slabs),
                    {{"tier", "host"}, {"slot_bytes", bytes}});
  }
  for (const SizeClassStats& size_class : stats.classes) {
    const std::string bytes = absl::StrCat(size_class.slot_bytes);
    const char* help = "Slots, by their size and whether they are taken.";
    families->Gauge("nqkv_slots", help, ToDouble(size_class.used_slots),
                    {{"tier", "host"}, {"slot_bytes", bytes}, {"state", "used"}});
    families->Gauge("nqkv_slots", help, ToDouble(size_class.slots - size_class.used_slots),
                    {{"tier", "host"}, {"slot_bytes", bytes}, {"state", "free"}});
  }
  families->Counter("nqkv_evicted_blocks_total", "Blocks forgotten to make room.", ToDouble(stats.evicted_blocks_total),
                    host);
  families->Counter("nqkv_evicted_bytes_total", "Encoded bytes forgotten to make room.",
                    ToDouble(stats.evicted_bytes_total), host);
  families->Histogram("nqkv_evicted_block_age_seconds", "How long evicted blocks had not been used.",
                      stats.evicted_ages, host);
  families->Counter("nqkv_refused_reservations_total", "Blocks for which no room could be made.",
                    ToDouble(stats.rejected_reservations_total), host);
}

void CollectCaches(const CallEnvironment& environment, FamilyList* families) {
  const std::vector<std::shared_ptr<Cache>> caches = environment.caches->List();
  std::map<std::string, CacheStats> by_label;
  for (const std::shared_ptr<Cache>& cache : caches) {
    CacheStats& sum = by_label[cache->metrics().label];
    const CacheStats stats = environment.store->StatsOf(cache->tenant().id, cache->id());
    sum.blocks += stats.blocks;
    sum.stored_bytes += stats.stored_bytes;
    sum.raw_bytes += stats.raw_bytes;
    sum.used_bytes += stats.used_bytes;
  }
  const CacheRegistry::Usage usage = environment.caches->usage();
  families->Gauge("nqkv_caches", "Open caches.", ToDouble(usage.caches));
  families->Gauge("nqkv_caches_limit", "Caches that may be open.", ToDouble(environment.limits.caches_max));
  families->Gauge("nqkv_caches_memory_bytes", "What the open caches take beside their blocks.", ToDouble(usage.bytes));
  families->Gauge("nqkv_caches_memory_limit_bytes", "What they may take.", ToDouble(usage.bytes_max));
  families->Counter("nqkv_reclaimed_caches_total",
                    "Empty and unused caches that were forgotten to make room for others.",
                    ToDouble(usage.reclaimed_caches_total));
  for (const auto& [label, stats] : by_label) {
    families->Gauge("nqkv_cache_blocks", "Blocks stored, by cache.", ToDouble(stats.blocks), {{"cache", label}});
  }
  for (const auto& [label, stats] : by_label) {
    families->Gauge("nqkv_cache_stored_bytes", "Encoded bytes stored, by cache.", ToDouble(stats.stored_bytes),
                    {{"cache", label}});
  }
  for (const auto& [label, stats] : by_label) {
    families->Gauge("nqkv_cache_raw_bytes", "What a cache's blocks were before encoding.", ToDouble(stats.raw_bytes),
                    {{"cache", label}});
  }
}

void CollectLeases(const LeaseStats& stats, FamilyList* families) {
  families->Gauge("nqkv_sessions", "Sessions that have not ended.", ToDouble(stats.sessions));
  families->Gauge("nqkv_leases", "Leases that have not ended.", ToDouble(stats.leases));
  families->Gauge("nqkv_leased_reads", "Reads that run under leases.", ToDouble(stats.reads));
  families->Gauge("nqkv_leased_parts", "Parts of blocks that leases pin, counted for each lease.",
                  ToDouble(stats.parts));
  families->Gauge("nqkv_leased_bytes", "Encoded bytes that leases pin, each block counted once.",
                  ToDouble(stats.bytes));
  families->Counter("nqkv_leases_granted_total", "Leases granted.", ToDouble(stats.granted_total));
  families->Counter("nqkv_leases_refused_total", "Leases refused for want of room.", ToDouble(stats.refused_total));
  for (size_t end = 0; end < kLeaseEndCount; ++end) {
    families->Counter("nqkv_leases_ended_total",
                      "Leases that ended: released, at their deadline, replaced by a repeat, or with their session.",
                      ToDouble(stats.ended_total[end]), {{"reason", kLeaseEndNames[end]}});
  }
  families->Counter("nqkv_sessions_opened_total", "Sessions opened.", ToDouble(stats.sessions_opened_total));
  const char* ended = "Sessions that ended: closed by their owner, or not heard of any more.";
  families->Counter("nqkv_sessions_ended_total", ended, ToDouble(stats.sessions_closed_total), {{"reason", "closed"}});
  families->Counter("nqkv_sessions_ended_total", ended, ToDouble(stats.sessions_lapsed_total), {{"reason", "lapsed"}});
}

void CollectFlow(const CallEnvironment& environment, FamilyList* families) {
  families->Gauge("nqkv_in_flight_bytes", "Payload that calls hold outside the store.",
                  ToDouble(environment.budget->used_bytes()));
  families->Gauge("nqkv_calls_in_flight", "Calls that have not ended.", ToDouble(environment.gate->calls()));
  families->Gauge("nqkv_in_flight_limit_bytes", "What they may hold.", ToDouble(environment.budget->limit_bytes()));
  families->Gauge("nqkv_lookup_waiters", "Lookups that wait for blocks to be stored.",
                  ToDouble(environment.waiters->count()));
  families->Gauge("nqkv_worker_queue_depth", "Calls that wait for a codec thread.",
                  ToDouble(environment.workers->queue_depth()));
  families->Gauge("nqkv_worker_queue_limit", "Calls that may wait for one.",
                  ToDouble(environment.workers->queue_max()));
  families->Gauge("nqkv_worker_threads", "Codec threads.", ToDouble(environment.workers->thread_count()));
}

}  // namespace

StatusReport::StatusReport(const CallEnvironment* environment, const Watchdog* watchdog)
    : environment_(environment), watchdog_(watchdog), start_(absl::Now()) {}

bool StatusReport::IsReady(std::string* reason) const {
  std::string found = serving_ ? "" : "draining";
  for (const Watchdog::Heartbeat& heartbeat : watchdog_->Check()) {
    if (!heartbeat.stalled()) continue;
    found = absl::StrCat(heartbeat.part, " has not moved for ", absl::FormatDuration(heartbeat.age));
  }
  if (reason != nullptr) *reason = found;
  return found.empty();
}

v1::GetStatsResponse StatusReport::Stats() const {
  const StoreStats store = environment_->store->Stats();
  const Metrics::Totals totals = environment_->metrics->Sum();
  v1::GetStatsResponse stats;
  stats.set_version(std::string(Version()));
  stats.set_backend("cpu");
  stats.set_uptime_seconds(absl::ToDoubleSeconds(absl::Now() - start_));
  stats.set_ready(IsReady());
  stats.set_caches(environment_->caches->List().size());
  stats.set_blocks(store.blocks);
  stats.set_pinned_parts(store.pinned_parts);
  stats.set_pinned_bytes(store.pinned_bytes);
  stats.set_reserved_bytes(store.reserved_bytes);
  stats.set_capacity_bytes(store.capacity_bytes);
  stats.set_used_bytes(store.used_bytes);
  stats.set_stored_bytes(store.stored_bytes);
  stats.set_raw_bytes(store.raw_bytes);
  stats.set_lookups_total(totals.lookups);
  stats.set_lookup_keys_total(totals.lookup_keys);
  stats.set_hit_keys_total(totals.hit_keys);
  stats.set_put_blocks_total(totals.put_blocks);
  stats.set_get_blocks_total(totals.get_blocks);
  stats.set_evicted_blocks_total(store.evicted_blocks_total);
  stats.set_fallback_planes_total(totals.fallback_planes);
  stats.set_checksum_failures_total(totals.checksum_failures);
  stats.set_in_flight_bytes(environment_->budget->used_bytes());
  stats.set_rejected_total(totals.rejections);
  const LeaseStats leases = environment_->leases->Stats();
  stats.set_sessions(leases.sessions);
  stats.set_leases(leases.leases);
  stats.set_leased_bytes(leases.bytes);
  return stats;
}

v1::ListCachesResponse StatusReport::Caches() const {
  v1::ListCachesResponse response;
  for (const std::shared_ptr<Cache>& cache : environment_->caches->List()) {
    const CacheStats stats = environment_->store->StatsOf(cache->tenant().id, cache->id());
    v1::CacheInfo* info = response.add_caches();
    info->set_tenant(cache->tenant().name);
    info->set_name(cache->name());
    info->set_model(cache->spec().model());
    info->set_spec_fingerprint(cache->fingerprint());
    info->set_codec(cache->policy().Name());
    info->set_blocks(stats.blocks);
    info->set_stored_bytes(stats.stored_bytes);
    info->set_raw_bytes(stats.raw_bytes);
    info->set_used_bytes(stats.used_bytes);
    info->set_shards(static_cast<uint32_t>(cache->shard_count()));
  }
  return response;
}

v1::ListSessionsResponse StatusReport::Sessions() const {
  v1::ListSessionsResponse response;
  for (const SessionInfo& session : environment_->leases->ListSessions()) {
    v1::SessionInfo* info = response.add_sessions();
    info->set_session_id(session.id);
    info->set_tenant(TenantName(session.tenant));
    info->set_owner(session.owner);
    info->set_age_seconds(ToSeconds(session.age));
    info->set_silence_seconds(ToSeconds(session.silence));
    info->set_leases(session.leases);
  }
  return response;
}

v1::ListLeasesResponse StatusReport::Leases(const v1::ListLeasesRequest& request) const {
  const uint32_t count_max =
      request.count_max() == 0 ? kLeasesListedMax : std::min(request.count_max(), kLeasesListedMax);
  std::map<std::pair<TenantId, CacheId>, std::string> names;
  for (const std::shared_ptr<Cache>& cache : environment_->caches->List()) {
    names[{cache->tenant().id, cache->id()}] = cache->name();
  }
  const std::vector<LeaseInfo> leases = environment_->leases->ListLeases(request.after(), count_max);
  v1::ListLeasesResponse response;
  for (const LeaseInfo& lease : leases) {
    v1::LeaseInfo* info = response.add_leases();
    const auto cache = names.find({lease.tenant, lease.cache});
    info->set_number(lease.number);
    info->set_tenant(TenantName(lease.tenant));
    if (cache != names.end()) info->set_cache(cache->second);
    info->set_session_id(lease.session_id);
    info->set_request_id(lease.request_id);
    info->set_seconds_left(ToSeconds(lease.left));
    info->set_reads(lease.reads);
    info->set_parts(lease.parts);
    info->set_stored_bytes(lease.stored_bytes);
  }
  if (leases.size() == count_max) response.set_next(leases.back().number);
  return response;
}

std::vector<MetricFamily> StatusReport::Collect() const {
  FamilyList families;
  CollectStore(environment_->store->Stats(), &families);
  CollectCaches(*environment_, &families);
  CollectLeases(environment_->leases->Stats(), &families);
  CollectFlow(*environment_, &families);
  for (const Watchdog::Heartbeat& heartbeat : watchdog_->Check()) {
    families.Gauge("nqkv_heartbeat_age_seconds", "How long ago a part of the service last moved.",
                   absl::ToDoubleSeconds(heartbeat.age), {{"part", heartbeat.part}});
  }
  families.Gauge("nqkv_ready", "1 when the service takes calls.", IsReady() ? 1 : 0);
  families.Gauge("nqkv_start_time_seconds", "When the service started, since the epoch.",
                 absl::ToDoubleSeconds(start_ - absl::UnixEpoch()));
  families.Gauge("nqkv_build_info", "Always 1; the labels say what is running.", 1,
                 {{"version", std::string(Version())},
                  {"backend", "cpu"},
                  {"codec_path", std::string(CodecPathName())},
                  {"compiler", __VERSION__}});
  return families.Take();
}

}  // namespace nqkv
