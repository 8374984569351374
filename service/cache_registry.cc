#include "service/cache_registry.h"

#include <algorithm>
#include <random>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "kernels/status_macros.h"
#include "proto/key_chain.h"
#include "proto/rpc_status.h"
#include "proto/spec_fingerprint.h"
#include "spdlog/spdlog.h"

namespace nqkv {
namespace {

constexpr uint32_t kPlacementRun = 16;
constexpr size_t kEngineBytesMax = 256;
constexpr uint64_t kAllocationBytes = 16;  // What malloc adds.
constexpr absl::Duration kBusyRetry = absl::Milliseconds(100);

uint64_t RandomNonce() {
  std::random_device device;
  uint32_t nonce = 0;
  while (nonce == 0) nonce = device();
  return uint64_t{nonce} << 32;
}

Digest DigestOf(absl::string_view text) {
  const std::string sum = Sha256(text);
  Digest digest = {};
  std::copy_n(sum.begin(), digest.size(), digest.begin());
  return digest;
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

// A name stands for one spec and one policy.
absl::Status CheckJoin(const Cache& cache, const v1::OpenCacheRequest& request, const std::string& fingerprint,
                       const CodecPolicy& policy) {
  std::vector<std::string> differing;
  if (fingerprint != cache.fingerprint()) {
    for (const std::string& field : DifferingFields(cache.spec(), request.spec())) {
      differing.push_back(absl::StrCat("spec.", field));
    }
  }
  if (request.has_policy()) {
    const std::vector<std::string> fields = DifferingFields(cache.policy(), policy);
    differing.insert(differing.end(), fields.begin(), fields.end());
  }
  if (differing.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("cache '", cache.name(), "' is open with other fields: ", NamedFields(differing)));
}

absl::Status TooManyShards(const Cache& cache, uint32_t shards_max) {
  return absl::ResourceExhaustedError(
      absl::StrCat("cache '", cache.name(), "' has ", shards_max, " shards, no more are allowed (--shards_max)"));
}

}  // namespace

Cache::Cache(Tenant tenant, std::string name, uint64_t wire_id, const v1::CacheSpec& spec, std::string fingerprint,
             const CodecPolicy& policy, std::vector<GroupLayout> groups, uint64_t base_bytes, CacheMetrics* metrics)
    : tenant_(std::move(tenant)),
      name_(std::move(name)),
      wire_id_(wire_id),
      spec_(spec),
      fingerprint_(std::move(fingerprint)),
      policy_(policy),
      base_bytes_(base_bytes),
      metrics_(metrics) {
  for (GroupLayout& layout : groups) {
    const PartRange whole = WholeRange(layout);
    auto plan = std::make_unique<CodecPlan>(policy, layout);
    groups_.push_back({std::move(layout), whole, std::move(plan)});
    whole_.parts.push_back(whole);
  }
}

uint64_t Cache::BaseBytes(const std::string& name, const v1::CacheSpec& spec, std::span<const GroupLayout> groups) {
  // A layout stands in the group and in its plan, and a vector may have twice the room that it needs.
  const uint64_t plane_bytes = 3 * sizeof(PlaneSpec) + CodecPlan::PlaneBytes();
  constexpr uint64_t kGroupBytes = 2 * sizeof(CacheGroup) + sizeof(CodecPlan) + 2 * sizeof(PartRange);
  constexpr uint64_t kIndexBytes = 256;  // The entries in the registry's two maps.
  uint64_t planes = 0;
  for (const GroupLayout& group : groups) planes += group.planes.size();
  return sizeof(Cache) + 2 * name.size() + kIndexBytes + spec.SpaceUsedLong() + groups.size() * kGroupBytes +
         planes * (plane_bytes + kAllocationBytes);  // A plane of the spec is an allocation.
}

uint64_t Cache::ShardBytes(size_t groups) { return sizeof(Shard) + kAllocationBytes + groups * sizeof(PartRange); }

absl::StatusOr<const CacheGroup*> Cache::FindGroup(uint32_t layer_group, absl::string_view path) const {
  for (const CacheGroup& group : groups_) {
    if (group.layout.id == layer_group) return &group;
  }
  return FieldError(path, absl::StrCat("the cache has no layer group ", layer_group));
}

std::optional<uint32_t> Cache::ShardOf(const std::vector<PartRange>& parts) const {
  MutexLock lock(&mutex_);
  const auto same =
      std::find_if(shards_.begin(), shards_.end(), [&](const Shard& shard) { return shard.parts == parts; });
  if (same == shards_.end()) return std::nullopt;
  return static_cast<uint32_t>(same - shards_.begin() + 1);
}

uint32_t Cache::AddShard(std::vector<PartRange> parts) {
  MutexLock lock(&mutex_);
  shards_.push_back({std::move(parts)});
  return static_cast<uint32_t>(shards_.size());
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

CacheRegistry::CacheRegistry(const Bounds& bounds, BlockStore* store, Metrics* metrics)
    : bounds_(bounds), store_(store), metrics_(metrics), start_nonce_(RandomNonce()) {}

absl::StatusOr<CacheRegistry::Opened> CacheRegistry::Open(const Tenant& tenant, const v1::OpenCacheRequest& request) {
  NQKV_ASSIGN_OR_RETURN(const Checked checked, Check(request));
  while (true) {
    // A cache that is held here is used, so that it is not forgotten before the shard has joined.
    const std::shared_ptr<Cache> present = FindByName(tenant, request.name());
    if (present != nullptr) return Join(present, checked);
    NQKV_ASSIGN_OR_RETURN(const std::shared_ptr<Cache> created, Create(tenant, checked));
    if (created != nullptr) return Opened{created, 1, true};
  }
}

// Before anything is compared with it or made of it.
absl::StatusOr<CacheRegistry::Checked> CacheRegistry::Check(const v1::OpenCacheRequest& request) const {
  NQKV_RETURN_IF_ERROR(CheckOpen(request));
  Checked checked = {.request = &request};
  NQKV_ASSIGN_OR_RETURN(checked.groups, GroupsFromSpec(request.spec(), bounds_.spec));
  NQKV_ASSIGN_OR_RETURN(checked.policy, PolicyFromProto(request.policy()));
  NQKV_ASSIGN_OR_RETURN(checked.parts, ShardFromProto(request.shard(), checked.groups));
  checked.fingerprint = SpecFingerprint16(request.spec());
  return checked;
}

std::shared_ptr<Cache> CacheRegistry::FindByName(const Tenant& tenant, const std::string& name) {
  MutexLock lock(&mutex_);
  const auto found = by_name_.find({tenant.id, name});
  if (found == by_name_.end()) return nullptr;
  Entry& entry = by_id_.at(found->second);
  entry.last_use = ++uses_;
  return entry.cache;
}

absl::StatusOr<CacheRegistry::Opened> CacheRegistry::Join(const std::shared_ptr<Cache>& cache, const Checked& checked) {
  NQKV_RETURN_IF_ERROR(CheckJoin(*cache, *checked.request, checked.fingerprint, checked.policy));
  MutexLock lock(&mutex_);
  const std::optional<uint32_t> present = cache->ShardOf(checked.parts);
  if (present.has_value()) return Opened{cache, *present, false};
  if (cache->shard_count() >= bounds_.shards_max) return TooManyShards(*cache, bounds_.shards_max);
  const uint64_t bytes = Cache::ShardBytes(cache->groups().size());
  NQKV_RETURN_IF_ERROR(MakeRoom(bytes, 0));
  bytes_ += bytes;
  return Opened{cache, cache->AddShard(checked.parts), false};
}

absl::StatusOr<std::shared_ptr<Cache>> CacheRegistry::Create(const Tenant& tenant, const Checked& checked) {
  const v1::OpenCacheRequest& request = *checked.request;
  const uint64_t base_bytes = Cache::BaseBytes(request.name(), request.spec(), checked.groups);
  std::optional<CacheId> given_up;
  const absl::Cleanup forget_given_up = [&] {  // Without the lock, which comes after: there may be many blocks.
    if (given_up.has_value()) store_->Clear(tenant.id, *given_up);
  };
  MutexLock lock(&mutex_);
  if (by_name_.contains({tenant.id, request.name()})) return std::shared_ptr<Cache>();
  NQKV_RETURN_IF_ERROR(MakeRoom(base_bytes + Cache::ShardBytes(checked.groups.size()), 1));
  const auto named =
      store_->NameCache(DigestOf(absl::StrCat(tenant.name, "/", request.name())), DigestOf(checked.fingerprint));
  if (named.has_value()) given_up = named->given_up;
  if (named.has_value() && named->spec_changed) {
    spdlog::warn("cache '{}' had another spec before the restart: its blocks are forgotten", request.name());
  }
  const uint64_t wire_id = start_nonce_ | (named.has_value() ? named->id : NewId());
  auto cache = std::make_shared<Cache>(tenant, request.name(), wire_id, request.spec(), checked.fingerprint,
                                       checked.policy, checked.groups, base_bytes, metrics_->ForCache(request.name()));
  cache->AddShard(checked.parts);
  bytes_ += cache->memory_bytes();
  by_name_.emplace(Name(tenant.id, request.name()), wire_id);
  by_id_.emplace(wire_id, Entry{cache, ++uses_});
  return cache;
}

bool CacheRegistry::Fits(uint64_t bytes, uint32_t caches) const {
  return by_id_.size() + caches <= bounds_.caches_max && bytes_ + bytes <= bounds_.bytes_max;
}

absl::Status CacheRegistry::MakeRoom(uint64_t bytes, uint32_t caches) {
  if (Fits(bytes, caches)) return absl::OkStatus();
  std::vector<std::pair<uint64_t, const Cache*>> unused;  // None of them helps what can never fit.
  for (const auto& [wire_id, entry] : by_id_) {
    // Only the registry gives out references, and it is locked: a cache whose one reference is ours stays unused.
    if (bytes <= bounds_.bytes_max && entry.cache.use_count() == 1)
      unused.emplace_back(entry.last_use, entry.cache.get());
  }
  const bool busy = unused.size() < by_id_.size();
  std::sort(unused.begin(), unused.end());
  for (const auto& [last_use, cache] : unused) {
    if (store_->StatsOf(cache->tenant().id, cache->id()).blocks > 0) continue;
    Forget(cache->wire_id());
    if (Fits(bytes, caches)) return absl::OkStatus();
  }
  metrics_->RecordRejection(Rejection::kCachesFull);
  return busy ? WithRetry(Full(bytes), kBusyRetry) : Full(bytes);
}

absl::Status CacheRegistry::Full(uint64_t bytes) const {
  if (bytes_ + bytes <= bounds_.bytes_max) {
    return absl::ResourceExhaustedError(absl::StrCat(
        bounds_.caches_max, " caches are open and none is empty and unused, no more are allowed (--caches_max)"));
  }
  return absl::ResourceExhaustedError(absl::StrCat("the open caches take ", bytes_,
                                                   " bytes beside their blocks and none is empty and unused, ", bytes,
                                                   " more are over ", bounds_.bytes_max, " (--caches_bytes_max)"));
}

void CacheRegistry::Forget(uint64_t wire_id) {
  const auto found = by_id_.find(wire_id);
  const Cache& cache = *found->second.cache;
  bytes_ -= cache.memory_bytes();
  ++reclaimed_;
  by_name_.erase({cache.tenant().id, cache.name()});
  by_id_.erase(found);
}

// Never that of an open cache, whatever many were opened before.
CacheId CacheRegistry::NewId() {
  while (next_id_ == 0 || by_id_.contains(start_nonce_ | next_id_)) ++next_id_;
  return next_id_++;
}

absl::StatusOr<std::shared_ptr<Cache>> CacheRegistry::Find(const Tenant& tenant, uint64_t wire_id) {
  MutexLock lock(&mutex_);
  const auto found = by_id_.find(wire_id);
  if (found == by_id_.end() || found->second.cache->tenant().id != tenant.id) {
    return absl::NotFoundError(absl::StrCat("unknown cache ", wire_id, ": open it again"));
  }
  found->second.last_use = ++uses_;
  return found->second.cache;
}

std::vector<std::shared_ptr<Cache>> CacheRegistry::List() const {
  MutexLock lock(&mutex_);
  std::vector<std::shared_ptr<Cache>> caches;
  for (const auto& [name, wire_id] : by_name_) caches.push_back(by_id_.at(wire_id).cache);
  return caches;
}

CacheRegistry::Usage CacheRegistry::usage() const {
  MutexLock lock(&mutex_);
  return {
      .caches = by_id_.size(), .bytes = bytes_, .bytes_max = bounds_.bytes_max, .reclaimed_caches_total = reclaimed_};
}

}  // namespace nqkv
