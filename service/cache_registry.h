// The open caches: what each is made of, how it is encoded, and which shards have joined.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "kernels/block_format.h"
#include "kernels/codec_plan.h"
#include "nqkv/v1/kv_cache.pb.h"
#include "service/convert.h"
#include "service/metrics.h"
#include "service/tenants.h"
#include "storage/block_key.h"
#include "storage/mutex.h"

namespace nqkv {

// One layer group of a cache.
struct CacheGroup {
  GroupLayout layout;
  PartRange whole;
  std::unique_ptr<CodecPlan> plan;
};

// What a shard holds of each of the cache's groups, in their order.
struct Shard {
  std::vector<PartRange> parts;
};

// Thread-safe: all but the shards is fixed when it is created, and a shard that has joined stays.
class Cache {
 public:
  Cache(Tenant tenant, std::string name, uint64_t wire_id, CacheId id, const v1::CacheSpec& spec,
        const CodecPolicy& policy, std::vector<GroupLayout> groups, CacheMetrics* metrics);

  const Tenant& tenant() const { return tenant_; }
  const std::string& name() const { return name_; }
  uint64_t wire_id() const { return wire_id_; }
  CacheId id() const { return id_; }
  const v1::CacheSpec& spec() const { return spec_; }
  const std::string& fingerprint() const { return fingerprint_; }
  const CodecPolicy& policy() const { return policy_; }
  const std::vector<CacheGroup>& groups() const { return groups_; }
  CacheMetrics& metrics() const { return *metrics_; }

  // INVALID_ARGUMENT naming `path` when the spec has no such group.
  absl::StatusOr<const CacheGroup*> FindGroup(uint32_t layer_group, absl::string_view path) const;
  size_t IndexOf(const CacheGroup& group) const { return static_cast<size_t>(&group - groups_.data()); }

  // The number of the shard that holds these parts, which joins when it is new.
  //
  // Errors:
  //   RESOURCE_EXHAUSTED  `shards_max` are there already.
  absl::StatusOr<uint32_t> Join(const std::vector<PartRange>& parts, uint32_t shards_max) ABSL_LOCKS_EXCLUDED(mutex_);
  // 0 is the whole model. NOT_FOUND for a number that no shard has.
  absl::StatusOr<const Shard*> FindShard(uint32_t shard_id) const ABSL_LOCKS_EXCLUDED(mutex_);
  size_t shard_count() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  const Tenant tenant_;
  const std::string name_;
  const uint64_t wire_id_;
  const CacheId id_;
  const v1::CacheSpec spec_;
  const std::string fingerprint_;
  const CodecPolicy policy_;
  std::vector<CacheGroup> groups_;
  Shard whole_;
  CacheMetrics* const metrics_;
  mutable Mutex mutex_;
  std::deque<Shard> shards_ ABSL_GUARDED_BY(mutex_);  // Shard n is the one at n - 1.
};

// Thread-safe.
class CacheRegistry {
 public:
  struct Bounds {
    SpecBounds spec;
    uint32_t caches_max = 0;
    uint32_t shards_max = 0;
  };
  // `metrics` must outlive the registry.
  CacheRegistry(const Bounds& bounds, Metrics* metrics);

  struct Opened {
    std::shared_ptr<Cache> cache;
    uint32_t shard_id = 0;
    bool created = false;
  };
  // Creates the cache or joins the one of this name. Errors are those of the OpenCache rpc.
  absl::StatusOr<Opened> Open(const Tenant& tenant, const v1::OpenCacheRequest& request) ABSL_LOCKS_EXCLUDED(mutex_);

  // NOT_FOUND for an id that this server did not give to the tenant since it started.
  absl::StatusOr<std::shared_ptr<Cache>> Find(const Tenant& tenant, uint64_t wire_id) const ABSL_LOCKS_EXCLUDED(mutex_);

  // By tenant and name.
  std::vector<std::shared_ptr<Cache>> List() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  using Name = std::pair<TenantId, std::string>;

  std::shared_ptr<Cache> FindByName(const Tenant& tenant, const std::string& name) const ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<Opened> Join(const std::shared_ptr<Cache>& cache, const v1::OpenCacheRequest& request) const;
  absl::StatusOr<Opened> Create(const Tenant& tenant, const v1::OpenCacheRequest& request) ABSL_LOCKS_EXCLUDED(mutex_);

  const Bounds bounds_;
  Metrics* const metrics_;
  const uint64_t start_nonce_;  // In each id's upper half: an id of an earlier start is unknown, not another cache.
  mutable Mutex mutex_;
  std::map<Name, std::shared_ptr<Cache>> by_name_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<uint64_t, std::shared_ptr<Cache>> by_id_ ABSL_GUARDED_BY(mutex_);
  CacheId next_id_ ABSL_GUARDED_BY(mutex_) = 1;
};

}  // namespace nqkv
