// The open caches: what each is made of, how it is encoded, and which shards have joined.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <span>
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
#include "storage/block_store.h"
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
  // `base_bytes` is BaseBytes of the rest.
  Cache(Tenant tenant, std::string name, uint64_t wire_id, const v1::CacheSpec& spec, std::string fingerprint,
        const CodecPolicy& policy, std::vector<GroupLayout> groups, uint64_t base_bytes, CacheMetrics* metrics);

  // About what such a cache takes beside its blocks, before a shard has joined, and what a shard adds to it.
  static uint64_t BaseBytes(const std::string& name, const v1::CacheSpec& spec, std::span<const GroupLayout> groups);
  static uint64_t ShardBytes(size_t groups);

  const Tenant& tenant() const { return tenant_; }
  const std::string& name() const { return name_; }
  uint64_t wire_id() const { return wire_id_; }
  CacheId id() const { return static_cast<CacheId>(wire_id_); }
  const v1::CacheSpec& spec() const { return spec_; }
  const std::string& fingerprint() const { return fingerprint_; }
  const CodecPolicy& policy() const { return policy_; }
  const std::vector<CacheGroup>& groups() const { return groups_; }
  CacheMetrics& metrics() const { return *metrics_; }

  // INVALID_ARGUMENT naming `path` when the spec has no such group.
  absl::StatusOr<const CacheGroup*> FindGroup(uint32_t layer_group, absl::string_view path) const;
  size_t IndexOf(const CacheGroup& group) const { return static_cast<size_t>(&group - groups_.data()); }

  // The number of the shard that holds these parts; none when there is no such shard.
  std::optional<uint32_t> ShardOf(const std::vector<PartRange>& parts) const ABSL_LOCKS_EXCLUDED(mutex_);
  // Adds a shard and returns its number.
  uint32_t AddShard(std::vector<PartRange> parts) ABSL_LOCKS_EXCLUDED(mutex_);
  // 0 is the whole model. NOT_FOUND for a number that no shard has.
  absl::StatusOr<const Shard*> FindShard(uint32_t shard_id) const ABSL_LOCKS_EXCLUDED(mutex_);
  size_t shard_count() const ABSL_LOCKS_EXCLUDED(mutex_);

  uint64_t memory_bytes() const { return base_bytes_ + shard_count() * ShardBytes(groups_.size()); }

 private:
  const Tenant tenant_;
  const std::string name_;
  const uint64_t wire_id_;
  const v1::CacheSpec spec_;
  const std::string fingerprint_;
  const CodecPolicy policy_;
  std::vector<CacheGroup> groups_;
  Shard whole_;
  const uint64_t base_bytes_;
  CacheMetrics* const metrics_;
  mutable Mutex mutex_;
  std::deque<Shard> shards_ ABSL_GUARDED_BY(mutex_);  // Shard n is the one at n - 1.
};

// Bounded: when another cache or shard does not fit, the caches that hold no block and that no call uses are forgotten,
// the longest unused first. Who had one open gets NOT_FOUND and opens it again. Thread-safe.
class CacheRegistry {
 public:
  struct Bounds {
    SpecBounds spec;
    uint32_t caches_max = 0;
    uint32_t shards_max = 0;
    uint64_t bytes_max = 0;  // Of memory_bytes() of all caches.
  };
  // `metrics` and `store` must outlive the registry.
  CacheRegistry(const Bounds& bounds, BlockStore* store, Metrics* metrics);

  struct Opened {
    std::shared_ptr<Cache> cache;
    uint32_t shard_id = 0;
    bool created = false;
  };
  // Creates the cache or joins the one of this name. Errors are those of the OpenCache rpc.
  absl::StatusOr<Opened> Open(const Tenant& tenant, const v1::OpenCacheRequest& request) ABSL_LOCKS_EXCLUDED(mutex_);

  // NOT_FOUND for an id that this server did not give to the tenant since it started, or has forgotten.
  absl::StatusOr<std::shared_ptr<Cache>> Find(const Tenant& tenant, uint64_t wire_id) ABSL_LOCKS_EXCLUDED(mutex_);

  // By tenant and name.
  std::vector<std::shared_ptr<Cache>> List() const ABSL_LOCKS_EXCLUDED(mutex_);

  struct Usage {
    uint64_t caches = 0;
    uint64_t bytes = 0;
    uint64_t bytes_max = 0;
    uint64_t reclaimed_caches_total = 0;
  };
  Usage usage() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  using Name = std::pair<TenantId, std::string>;
  struct Entry {
    std::shared_ptr<Cache> cache;
    uint64_t last_use = 0;
  };
  // A request that is well formed, and what was made of it.
  struct Checked {
    const v1::OpenCacheRequest* request = nullptr;
    std::string fingerprint;
    std::vector<GroupLayout> groups;
    CodecPolicy policy;
    std::vector<PartRange> parts;
  };

  absl::StatusOr<Checked> Check(const v1::OpenCacheRequest& request) const;
  std::shared_ptr<Cache> FindByName(const Tenant& tenant, const std::string& name) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<Opened> Join(const std::shared_ptr<Cache>& cache, const Checked& checked) ABSL_LOCKS_EXCLUDED(mutex_);
  // Null when another call has created a cache of the name.
  absl::StatusOr<std::shared_ptr<Cache>> Create(const Tenant& tenant, const Checked& checked)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // Makes `bytes` and `caches` fit.
  absl::Status MakeRoom(uint64_t bytes, uint32_t caches) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Full(uint64_t bytes) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool Fits(uint64_t bytes, uint32_t caches) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Forget(uint64_t wire_id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  CacheId NewId() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Bounds bounds_;
  BlockStore* const store_;
  Metrics* const metrics_;
  const uint64_t start_nonce_;  // In each id's upper half: an id of an earlier start is unknown, not another cache.
  mutable Mutex mutex_;
  std::map<Name, uint64_t> by_name_ ABSL_GUARDED_BY(mutex_);  // Wire ids.
  absl::flat_hash_map<uint64_t, Entry> by_id_ ABSL_GUARDED_BY(mutex_);
  CacheId next_id_ ABSL_GUARDED_BY(mutex_) = 1;
  uint64_t bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t uses_ ABSL_GUARDED_BY(mutex_) = 0;  // The registry's clock.
  uint64_t reclaimed_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace nqkv
