#include "service/cache_registry.h"

#include <algorithm>
#include <random>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/status_macros.h"
#include "proto/rpc_status.h"
#include "proto/spec_fingerprint.h"

namespace nqkv {
namespace {

constexpr uint32_t kPlacementRun = 16;
constexpr size_t kEngineBytesMax = 256;

uint64_t RandomNonce() {
  std::random_device device;
  uint32_t nonce = 0;
  while (nonce == 0) nonce = device();
  return uint64_t{nonce} << 32;
}

absl::Status CheckOpen(const v1::OpenCacheRequest& request) {
  NQKV_RETURN_IF_ERROR(CheckCacheName(request.name()));
  if (request.placement_run() != 0 && request.placement_run() != kPlacementRun) {
    return FieldError("placement_run",
                      absl::StrCat(request.placement_run(), ", ", kPlacementRun, " is the only value so far"));
  }
  if (request.engine().size() > kEngineBytesMax) {
    return FieldError("engine", absl::StrCat(request.engine().size(), " bytes, at most ", kEngineBytesMax));
  }
  return absl::OkStatus();
}

// "a, b and 3 more": a status has room for a few fields, not for all of a large spec.
std::string NamedFields(const std::vector<std::string>& fields) {
  constexpr size_t kFieldsShown = 8;
  const size_t shown = std::min(fields.size(), kFieldsShown);
  std::string text = absl::StrJoin(fields.begin(), fields.begin() + static_cast<ptrdiff_t>(shown), ", ");
  if (fields.size() > shown) absl::StrAppend(&text, " and ", fields.size() - shown, " more");
  return text;
}

// A name stands for one spec and one policy. The request's own spec and policy are known to be valid.
absl::Status CheckJoin(const Cache& cache, const v1::OpenCacheRequest& request) {
  std::vector<std::string> differing;
  if (SpecFingerprint16(request.spec()) != cache.fingerprint()) {
    for (const std::string& field : DifferingFields(cache.spec(), request.spec())) {
      differing.push_back(absl::StrCat("spec.", field));
    }
  }
  if (request.has_policy()) {
    NQKV_ASSIGN_OR_RETURN(const CodecPolicy asked, PolicyFromProto(request.policy()));
    const std::vector<std::string> policy = DifferingFields(cache.policy(), asked);
    differing.insert(differing.end(), policy.begin(), policy.end());
  }
  if (differing.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("cache '", cache.name(), "' is open with other fields: ", NamedFields(differing)));
}

std::vector<GroupLayout> Layouts(const Cache& cache) {
  std::vector<GroupLayout> layouts;
  for (const CacheGroup& group : cache.groups()) layouts.push_back(group.layout);
  return layouts;
}

}  // namespace

Cache::Cache(Tenant tenant, std::string name, uint64_t wire_id, CacheId id, const v1::CacheSpec& spec,
             const CodecPolicy& policy, std::vector<GroupLayout> groups, CacheMetrics* metrics)
    : tenant_(std::move(tenant)),
      name_(std::move(name)),
      wire_id_(wire_id),
      id_(id),
      spec_(spec),
      fingerprint_(SpecFingerprint16(spec)),
      policy_(policy),
      metrics_(metrics) {
  for (GroupLayout& layout : groups) {
    const PartRange whole = WholeRange(layout);
    auto plan = std::make_unique<CodecPlan>(policy, layout);
    groups_.push_back({std::move(layout), whole, std::move(plan)});
    whole_.parts.push_back(whole);
  }
}

absl::StatusOr<const CacheGroup*> Cache::FindGroup(uint32_t layer_group, absl::string_view path) const {
  for (const CacheGroup& group : groups_) {
    if (group.layout.id == layer_group) return &group;
  }
  return FieldError(path, absl::StrCat("the cache has no layer group ", layer_group));
}

absl::StatusOr<uint32_t> Cache::Join(const std::vector<PartRange>& parts, uint32_t shards_max) {
  MutexLock lock(&mutex_);
  const auto same =
      std::find_if(shards_.begin(), shards_.end(), [&](const Shard& shard) { return shard.parts == parts; });
  if (same == shards_.end()) {
    if (shards_.size() >= shards_max) {
      return absl::ResourceExhaustedError(
          absl::StrCat("cache '", name_, "' has ", shards_max, " shards, no more are allowed"));
    }
    shards_.push_back({parts});
    return static_cast<uint32_t>(shards_.size());
  }
  return static_cast<uint32_t>(same - shards_.begin() + 1);
}

absl::StatusOr<const Shard*> Cache::FindShard(uint32_t shard_id) const {
  if (shard_id == 0) return &whole_;
  MutexLock lock(&mutex_);
  if (shard_id <= shards_.size()) return &shards_[shard_id - 1];
  return absl::NotFoundError(absl::StrCat("unknown shard ", shard_id, " of cache '", name_, "': open it again"));
}

size_t Cache::shard_count() const {
  MutexLock lock(&mutex_);
  return shards_.size();
}

CacheRegistry::CacheRegistry(const Bounds& bounds, Metrics* metrics)
    : bounds_(bounds), metrics_(metrics), start_nonce_(RandomNonce()) {}

absl::StatusOr<CacheRegistry::Opened> CacheRegistry::Open(const Tenant& tenant, const v1::OpenCacheRequest& request) {
  NQKV_RETURN_IF_ERROR(CheckOpen(request));
  const std::shared_ptr<Cache> present = FindByName(tenant, request.name());
  return present != nullptr ? Join(present, request) : Create(tenant, request);
}

std::shared_ptr<Cache> CacheRegistry::FindByName(const Tenant& tenant, const std::string& name) const {
  MutexLock lock(&mutex_);
  const auto found = by_name_.find({tenant.id, name});
  return found == by_name_.end() ? nullptr : found->second;
}

absl::StatusOr<CacheRegistry::Opened> CacheRegistry::Join(const std::shared_ptr<Cache>& cache,
                                                          const v1::OpenCacheRequest& request) const {
  NQKV_RETURN_IF_ERROR(GroupsFromSpec(request.spec(), bounds_.spec).status());
  NQKV_RETURN_IF_ERROR(CheckJoin(*cache, request));
  const std::vector<GroupLayout> layouts = Layouts(*cache);
  NQKV_ASSIGN_OR_RETURN(const std::vector<PartRange> parts, ShardFromProto(request.shard(), layouts));
  NQKV_ASSIGN_OR_RETURN(const uint32_t shard_id, cache->Join(parts, bounds_.shards_max));
  return Opened{cache, shard_id, false};
}

absl::StatusOr<CacheRegistry::Opened> CacheRegistry::Create(const Tenant& tenant, const v1::OpenCacheRequest& request) {
  NQKV_ASSIGN_OR_RETURN(std::vector<GroupLayout> groups, GroupsFromSpec(request.spec(), bounds_.spec));
  NQKV_ASSIGN_OR_RETURN(const CodecPolicy policy, PolicyFromProto(request.policy()));
  NQKV_ASSIGN_OR_RETURN(const std::vector<PartRange> parts, ShardFromProto(request.shard(), groups));
  std::shared_ptr<Cache> cache;
  {
    MutexLock lock(&mutex_);
    const auto present = by_name_.find({tenant.id, request.name()});
    if (present != by_name_.end()) {
      cache = present->second;  // Another call was faster.
    } else if (by_name_.size() >= bounds_.caches_max) {
      return absl::ResourceExhaustedError(
          absl::StrCat(bounds_.caches_max, " caches are open, no more are allowed (--caches_max)"));
    } else {
      const CacheId id = next_id_++;
      cache = std::make_shared<Cache>(tenant, request.name(), start_nonce_ | id, id, request.spec(), policy,
                                      std::move(groups), metrics_->ForCache(request.name()));
      NQKV_ASSIGN_OR_RETURN(const uint32_t shard_id, cache->Join(parts, bounds_.shards_max));
      by_name_.emplace(Name(tenant.id, request.name()), cache);
      by_id_.emplace(cache->wire_id(), cache);
      return Opened{cache, shard_id, true};
    }
  }
  return Join(cache, request);
}

absl::StatusOr<std::shared_ptr<Cache>> CacheRegistry::Find(const Tenant& tenant, uint64_t wire_id) const {
  MutexLock lock(&mutex_);
  const auto found = by_id_.find(wire_id);
  if (found == by_id_.end() || found->second->tenant().id != tenant.id) {
    return absl::NotFoundError(absl::StrCat("unknown cache ", wire_id, ": open it again"));
  }
  return found->second;
}

std::vector<std::shared_ptr<Cache>> CacheRegistry::List() const {
  MutexLock lock(&mutex_);
  std::vector<std::shared_ptr<Cache>> caches;
  for (const auto& [name, cache] : by_name_) caches.push_back(cache);
  return caches;
}

}  // namespace nqkv
