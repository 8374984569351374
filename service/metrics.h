// What the service counts as it works. Names and labels are a promise to dashboards.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "kernels/block_format.h"
#include "prometheus/counter.h"
#include "prometheus/histogram.h"
#include "prometheus/registry.h"
#include "storage/mutex.h"

namespace nqkv {

enum class Rpc : uint8_t { kOpenCache, kLookup, kPut, kGet, kDelete, kClear, kSession, kRelease, kTouch };
inline constexpr size_t kRpcCount = 9;
absl::string_view RpcName(Rpc rpc);

// Why a call or a block was turned away though it was well formed.
enum class Rejection : uint8_t {
  kBytesInFlight,
  kQueueFull,
  kStoreFull,
  kReadTooLong,
  kPutIdle,
  kBytesReserved,
  kCalls,
  kCachesFull,
  kLeases,
  kSessions,
  kWaiters
};
inline constexpr size_t kRejectionCount = 11;

// "OK", "NOT_FOUND": the label `outcome`.
std::string OutcomeName(absl::StatusCode code);

// One cache's counters; caches beyond the first 64 share the label "other".
struct CacheMetrics {
  std::string label;  // The value of `cache` in every series of the cache, those that are not counted here included.
  prometheus::Counter* lookups = nullptr;
  prometheus::Counter* lookup_keys = nullptr;
  prometheus::Counter* lookup_hit_keys = nullptr;
  prometheus::Counter* lookup_matched_tokens = nullptr;
  prometheus::Counter* put_blocks_stored = nullptr;
  prometheus::Counter* put_blocks_present = nullptr;
  prometheus::Counter* put_blocks_refused = nullptr;
  prometheus::Counter* put_raw_bytes = nullptr;     // Of stored blocks.
  prometheus::Counter* put_stored_bytes = nullptr;  // What they became.
  prometheus::Counter* get_blocks_hit = nullptr;
  prometheus::Counter* get_blocks_missed = nullptr;
  prometheus::Counter* get_blocks_failed = nullptr;
  prometheus::Counter* get_bytes = nullptr;  // Decoded.
  prometheus::Counter* get_stored_bytes = nullptr;
};

// Thread-safe.
class Metrics {
 public:
  static constexpr size_t kCacheLabelsMax = 64;

  Metrics();

  prometheus::Registry& registry() { return registry_; }

  // Valid as long as this object.
  CacheMetrics* ForCache(const std::string& name) ABSL_LOCKS_EXCLUDED(mutex_);

  void RecordRpc(Rpc rpc, absl::StatusCode code, absl::Duration duration);
  void RecordRejection(Rejection reason);
  void RecordLookup(uint64_t matched_tokens);
  void RecordEncodedPlane(const PlaneEntry& plane);
  void RecordFallbackPlanes(uint32_t planes);
  void RecordEncode(uint64_t raw_bytes, absl::Duration duration);
  void RecordDecode(uint64_t raw_bytes, absl::Duration duration);
  void RecordChecksumFailure();

  // Sums over all caches, for the admin server.
  struct Totals {
    uint64_t lookups = 0;
    uint64_t lookup_keys = 0;
    uint64_t hit_keys = 0;
    uint64_t put_blocks = 0;
    uint64_t get_blocks = 0;
    uint64_t fallback_planes = 0;
    uint64_t checksum_failures = 0;
    uint64_t rejections = 0;
  };
  Totals Sum() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct RpcMetrics {
    prometheus::Counter* requests = nullptr;
    prometheus::Histogram* seconds = nullptr;
  };
  std::unique_ptr<CacheMetrics> MakeCacheMetrics(const std::string& label);

  prometheus::Registry registry_;
  static constexpr size_t kCodeCount = 17;  // absl::StatusCode, OK to UNAUTHENTICATED.
  std::array<std::array<RpcMetrics, kCodeCount>, kRpcCount> rpcs_;
  std::array<prometheus::Counter*, kRejectionCount> rejections_ = {};
  std::array<std::array<prometheus::Counter*, kPlaneCodecs.size()>, 5> planes_ =
      {};  // By PlaneRole and codec; a plane is too often to look up.
  prometheus::Counter* fallback_planes_ = nullptr;
  prometheus::Counter* checksum_failures_ = nullptr;
  prometheus::Counter* encode_bytes_ = nullptr;
  prometheus::Counter* encode_seconds_ = nullptr;
  prometheus::Counter* decode_bytes_ = nullptr;
  prometheus::Counter* decode_seconds_ = nullptr;
  prometheus::Histogram* matched_tokens_ = nullptr;
  std::array<prometheus::Histogram*, 5> floor_error_ = {};  // By PlaneRole; [0] is unused.

  prometheus::Family<prometheus::Counter>* lookups_ = nullptr;
  prometheus::Family<prometheus::Counter>* lookup_keys_ = nullptr;
  prometheus::Family<prometheus::Counter>* lookup_hit_keys_ = nullptr;
  prometheus::Family<prometheus::Counter>* lookup_matched_tokens_ = nullptr;
  prometheus::Family<prometheus::Counter>* put_blocks_ = nullptr;
  prometheus::Family<prometheus::Counter>* put_raw_bytes_ = nullptr;
  prometheus::Family<prometheus::Counter>* put_stored_bytes_ = nullptr;
  prometheus::Family<prometheus::Counter>* get_blocks_ = nullptr;
  prometheus::Family<prometheus::Counter>* get_bytes_ = nullptr;
  prometheus::Family<prometheus::Counter>* get_stored_bytes_ = nullptr;

  mutable Mutex mutex_;
  std::map<std::string, std::unique_ptr<CacheMetrics>> caches_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace nqkv
