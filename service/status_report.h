// What the service tells about itself: to the admin server, to the status page, to Prometheus.
#pragma once

#include <atomic>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "nqkv/v1/admin.pb.h"
#include "prometheus/collectable.h"
#include "prometheus/metric_family.h"
#include "service/call_environment.h"
#include "service/watchdog.h"

namespace nqkv {

// Thread-safe. Reads what the parts of the service know; keeps only whether the service is draining.
class StatusReport final : public prometheus::Collectable {
 public:
  // Both must outlive the report.
  StatusReport(const CallEnvironment* environment, const Watchdog* watchdog);

  // Serving, and no part is stalled. `reason`, when given, says why not.
  bool IsReady(std::string* reason = nullptr) const;
  void SetServing(bool serving) { serving_ = serving; }

  v1::GetStatsResponse Stats() const;
  v1::ListCachesResponse Caches() const;
  v1::ListSessionsResponse Sessions() const;
  v1::ListLeasesResponse Leases(const v1::ListLeasesRequest& request) const;

  // What is measured when asked for, beside what Metrics counts.
  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  const CallEnvironment* const environment_;
  const Watchdog* const watchdog_;
  const absl::Time start_;
  std::atomic<bool> serving_ = false;
};

}  // namespace nqkv
