#include "service/metrics.h"

#include <chrono>
#include <set>
#include <sstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "prometheus/text_serializer.h"
#include "service/status_report.h"
#include "service/watchdog.h"
#include "tests/service/call_fixture.h"
#include "tests/service/model_blocks.h"

namespace nqkv {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

std::string Text(const std::vector<prometheus::MetricFamily>& families) {
  std::ostringstream text;
  prometheus::TextSerializer().Serialize(text, families);
  return text.str();
}

TEST(MetricsTest, CountsCallsByRpcAndOutcome) {
  Metrics metrics;
  metrics.RecordRpc(Rpc::kGet, absl::StatusCode::kNotFound, absl::Milliseconds(3));
  metrics.RecordRpc(Rpc::kGet, absl::StatusCode::kOk, absl::Milliseconds(3));
  const std::string text = Text(metrics.registry().Collect());
  EXPECT_THAT(text, HasSubstr("nqkv_requests_total{outcome=\"NOT_FOUND\",rpc=\"Get\"} 1"));
  EXPECT_THAT(text, HasSubstr("nqkv_request_duration_seconds_bucket{outcome=\"error\",rpc=\"Get\",le=\"0.0025\"} 0"));
  EXPECT_THAT(text, HasSubstr("nqkv_request_duration_seconds_bucket{outcome=\"error\",rpc=\"Get\",le=\"0.005\"} 1"));
}

TEST(MetricsTest, NamesAtMost64CachesAndTheRestOther) {
  Metrics metrics;
  std::set<CacheMetrics*> distinct;
  for (int i = 0; i < 100; ++i) {
    CacheMetrics* cache = metrics.ForCache(absl::StrCat("cache", i));
    cache->lookups->Increment();
    distinct.insert(cache);
  }
  EXPECT_EQ(distinct.size(), Metrics::kCacheLabelsMax + 1);
  EXPECT_EQ(metrics.ForCache("cache3"), metrics.ForCache("cache3"));
  const std::string text = Text(metrics.registry().Collect());
  EXPECT_THAT(text, HasSubstr("nqkv_lookups_total{cache=\"other\"} 36"));
  EXPECT_THAT(text, HasSubstr("nqkv_lookups_total{cache=\"cache63\"} 1"));
  EXPECT_THAT(text, Not(HasSubstr("cache64")));
  EXPECT_EQ(metrics.Sum().lookups, 100u);
}

TEST(StatusReportTest, ShowsWhatIsStoredAndWhatWasDone) {
  ServiceParts parts;
  Watchdog watchdog;
  StatusReport report(&parts.environment(), &watchdog);
  report.SetServing(true);
  const v1::OpenCacheResponse cache = parts.Open("my-cache");
  PutAll(&parts, cache, {{KeyOf(0), RawBlock(ModelLayout(), 0), 0}, {KeyOf(1), RawBlock(ModelLayout(), 1), 0}});
  GetAll(&parts, GetRequestOf(cache, {KeyOf(0), "missing"}));
  ASSERT_TRUE(parts.CheckIdle().ok());

  const v1::GetStatsResponse stats = report.Stats();
  EXPECT_TRUE(stats.ready());
  EXPECT_EQ(stats.caches(), 1u);
  EXPECT_EQ(stats.blocks(), 2u);
  EXPECT_EQ(stats.raw_bytes(), 2 * 131'072u);
  EXPECT_LT(stats.stored_bytes(), stats.raw_bytes() / 3);
  EXPECT_GE(stats.used_bytes(), stats.stored_bytes());
  EXPECT_EQ(stats.put_blocks_total(), 2u);
  EXPECT_EQ(stats.get_blocks_total(), 1u);
  EXPECT_EQ(stats.in_flight_bytes(), 0u);
  ASSERT_EQ(report.Caches().caches_size(), 1);
  EXPECT_EQ(report.Caches().caches(0).name(), "my-cache");
  EXPECT_EQ(report.Caches().caches(0).tenant(), "default");
  EXPECT_EQ(report.Caches().caches(0).codec(), "nqkv4-g64");
  EXPECT_EQ(report.Caches().caches(0).blocks(), 2u);

  const std::string text = Text(report.Collect()) + Text(parts.metrics().registry().Collect());
  EXPECT_THAT(text, HasSubstr("nqkv_blocks{tier=\"host\"} 2"));
  EXPECT_THAT(text, HasSubstr("nqkv_cache_blocks{cache=\"my-cache\"} 2"));
  EXPECT_THAT(text, HasSubstr("nqkv_get_blocks_total{cache=\"my-cache\",outcome=\"miss\",tier=\"host\"} 1"));
  EXPECT_THAT(text, HasSubstr("nqkv_encoded_planes_total{codec=\"nqkv4-g64\",role=\"key\"} 8"));
  EXPECT_THAT(text, HasSubstr("nqkv_build_info{version="));
}

// The value after `{cache="` of each of the family's series.
std::set<std::string> LabelsOf(const std::string& text, const std::string& family) {
  const std::string head = absl::StrCat("\n", family, "{cache=\"");
  std::set<std::string> labels;
  for (size_t at = text.find(head); at != std::string::npos; at = text.find(head, at + 1)) {
    const size_t begin = at + head.size();
    labels.insert(text.substr(begin, text.find('"', begin) - begin));
  }
  return labels;
}

// The counters name caches in the order in which they came, the gauges list them by name: one must not undo the other.
TEST(StatusReportTest, GaugesAndCountersOfACacheHaveTheSameLabelBeyondTheFirst64) {
  ServiceParts parts;
  Watchdog watchdog;
  StatusReport report(&parts.environment(), &watchdog);
  for (int i = 100; i < 200; ++i) {
    const v1::OpenCacheResponse cache = parts.Open(absl::StrCat("cache", 299 - i));
    if (i == 100 || i >= 198) PutAll(&parts, cache, {{KeyOf(0), RawBlock(ModelLayout(), 0), 0}});
  }
  const std::string gauges = Text(report.Collect());
  const std::set<std::string> labels = LabelsOf(gauges, "nqkv_cache_blocks");
  EXPECT_EQ(labels.size(), Metrics::kCacheLabelsMax + 1);
  for (const char* family : {"nqkv_cache_stored_bytes", "nqkv_cache_raw_bytes"}) {
    EXPECT_EQ(LabelsOf(gauges, family), labels) << family;
  }
  EXPECT_EQ(LabelsOf(Text(parts.metrics().registry().Collect()), "nqkv_lookups_total"), labels);
  EXPECT_THAT(gauges, HasSubstr("nqkv_cache_blocks{cache=\"cache199\"} 1\n"));
  EXPECT_THAT(gauges, HasSubstr("nqkv_cache_blocks{cache=\"other\"} 2\n"));
}

TEST(StatusReportTest, TellsOfWhatIsBeingWrittenAndOfPartsThatAreRead) {
  ServiceParts parts;
  Watchdog watchdog;
  StatusReport report(&parts.environment(), &watchdog);
  const v1::OpenCacheResponse cache = parts.Open("cache");
  PutAll(&parts, cache, {{KeyOf(0), RawBlock(ModelLayout(), 0), 0}});
  const TenantId tenant = parts.tenant().id;
  const PartRange whole = WholeRange(ModelLayout());
  const auto id = static_cast<CacheId>(cache.cache_id());
  const absl::StatusOr<BlockHandle> read = parts.store().Get(*BlockKey::Create(tenant, id, 0, KeyOf(0)), whole);
  ASSERT_TRUE(read.ok());
  const absl::StatusOr<Reservation> written =
      parts.store().Reserve(*BlockKey::Create(tenant, id, 0, KeyOf(1)), whole, 1'000);
  ASSERT_TRUE(written.ok());
  const v1::GetStatsResponse stats = report.Stats();
  EXPECT_EQ(stats.pinned_parts(), 1u);
  EXPECT_GE(stats.pinned_bytes(), stats.stored_bytes());
  EXPECT_GE(stats.reserved_bytes(), 1'000u);
  EXPECT_EQ(stats.reserved_bytes(), parts.store().Stats().reserved_bytes);
}

TEST(StatusReportTest, ListsAndGaugesOfLeasesAgree) {
  ServiceParts parts;
  Watchdog watchdog;
  StatusReport report(&parts.environment(), &watchdog);
  const v1::OpenCacheResponse cache = parts.Open("my-cache");
  PutAll(&parts, cache, {{KeyOf(0), RawBlock(ModelLayout(), 0), 0}});
  const auto session = parts.leases().OpenSession(0, "worker");
  for (int i = 0; i < 25; ++i) {
    v1::LookupRequest request;
    request.set_cache_id(cache.cache_id());
    v1::LookupQuery* query = request.add_queries();
    query->add_chains()->add_keys(KeyOf(0));
    query->set_request_id(absl::StrCat("request-", i));
    query->mutable_lease()->set_session_id(session->session_id);
    v1::LookupResponse response;
    ASSERT_TRUE(parts.calls().Lookup(parts.tenant(), request, &response).ok());
  }
  EXPECT_EQ(report.Stats().sessions(), 1u);
  EXPECT_EQ(report.Stats().leases(), 25u);
  EXPECT_EQ(report.Stats().leased_bytes(), report.Stats().stored_bytes());
  EXPECT_EQ(report.Sessions().sessions(0).leases(), 25u);
  v1::ListLeasesRequest page;
  page.set_count_max(10);
  int listed = 0;
  do {
    const v1::ListLeasesResponse leases = report.Leases(page);
    for (const v1::LeaseInfo& lease : leases.leases()) {
      EXPECT_EQ(lease.request_id(), absl::StrCat("request-", listed++));
      EXPECT_EQ(lease.cache(), "my-cache");
      EXPECT_EQ(lease.tenant(), "default");
      EXPECT_DOUBLE_EQ(lease.seconds_left(), 30);
    }
    page.set_after(leases.next());
  } while (page.after() != 0);
  EXPECT_EQ(listed, 25);
  const std::string text = Text(report.Collect());
  EXPECT_THAT(text, HasSubstr("nqkv_leases 25"));
  EXPECT_THAT(text, HasSubstr("nqkv_leased_parts 25"));
  EXPECT_THAT(text, HasSubstr("nqkv_sessions 1"));
  EXPECT_THAT(text, HasSubstr("nqkv_leases_ended_total{reason=\"orphaned\"} 0"));
  parts.clock().Turn(std::chrono::seconds(15));
  while (parts.leases().Sweep()) {
  }
  EXPECT_THAT(Text(report.Collect()), HasSubstr("nqkv_leases_ended_total{reason=\"orphaned\"} 25"));
  EXPECT_EQ(report.Leases({}).leases_size(), 0);
}

// A scrape is refused as a whole when one family comes twice.
TEST(StatusReportTest, NoFamilyComesTwiceAndEachHasTheProjectsPrefix) {
  ServiceParts parts;
  Watchdog watchdog;
  watchdog.Watch("a", absl::Seconds(1), [] { return absl::ZeroDuration(); });
  watchdog.Watch("b", absl::Seconds(1), [] { return absl::ZeroDuration(); });
  StatusReport report(&parts.environment(), &watchdog);
  for (int i = 0; i < 3; ++i) {
    const v1::OpenCacheResponse cache = parts.Open(absl::StrCat("cache", i), {.block_tokens = 8u << i});
    PutAll(&parts, cache, {{KeyOf(0), RawBlock(ModelLayout({.block_tokens = 8u << i}), 0), 0}});
  }
  std::set<std::string> names;
  std::vector<prometheus::MetricFamily> families = parts.metrics().registry().Collect();
  for (prometheus::MetricFamily& family : report.Collect()) families.push_back(family);
  for (const prometheus::MetricFamily& family : families) {
    EXPECT_TRUE(names.insert(family.name).second) << family.name;
    EXPECT_EQ(family.name.rfind("nqkv_", 0), 0u) << family.name;
    EXPECT_FALSE(family.help.empty()) << family.name;
    const bool total = family.name.size() > 6 && family.name.substr(family.name.size() - 6) == "_total";
    EXPECT_EQ(total, family.type == prometheus::MetricType::Counter) << family.name;
  }
  EXPECT_GT(names.size(), 40u);
}

TEST(StatusReportTest, IsNotReadyBeforeItServesWhileItDrainsOrWhenAPartStalls) {
  ServiceParts parts;
  Watchdog watchdog;
  absl::Duration age;
  watchdog.Watch("workers", absl::Seconds(10), [&age] { return age; });
  StatusReport report(&parts.environment(), &watchdog);
  std::string reason;
  EXPECT_FALSE(report.IsReady(&reason));
  report.SetServing(true);
  EXPECT_TRUE(report.IsReady(&reason));
  age = absl::Seconds(11);
  EXPECT_FALSE(report.IsReady(&reason));
  EXPECT_EQ(reason, "workers has not moved for 11s");
  age = absl::ZeroDuration();
  report.SetServing(false);
  EXPECT_FALSE(report.IsReady(&reason));
  EXPECT_EQ(reason, "draining");
}

}  // namespace
}  // namespace nqkv
