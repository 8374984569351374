#include "service/cache_calls.h"

#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "kernels/status_macros.h"
#include "proto/rpc_status.h"
#include "service/convert.h"
#include "service/lookup.h"
#include "service/request_check.h"
#include "service/version.h"
#include "spdlog/spdlog.h"

namespace nqkv {
namespace {

constexpr int kReleaseTokensMax = 65'536;

void FillLimits(const ServiceLimits& limits, v1::Limits* out) {
  out->set_message_bytes_max(limits.message_bytes_max);
  out->set_lookup_keys_max(limits.lookup_keys_max);
  out->set_get_keys_max(limits.get_keys_max);
  out->set_delete_keys_max(limits.delete_keys_max);
  out->set_put_open_blocks_max(limits.put_open_blocks_max);
  out->set_key_bytes_max(BlockKey::kBytesMax);
  out->set_message_bytes_best(limits.message_bytes_best);
  out->set_request_bytes_max(limits.request_bytes_max);
  out->set_max_read_seconds(limits.read_seconds_max);
  out->set_heartbeat_seconds(limits.heartbeat_seconds);
  out->set_session_grace_seconds(limits.session_grace_seconds);
  out->set_lookup_wait_seconds_max(limits.lookup_wait_seconds_max);
  out->set_lease_seconds_default(limits.lease_seconds_default);
  out->set_lease_seconds_max(limits.lease_seconds_max);
  out->set_request_id_bytes_max(PreparedLookup::kRequestIdBytesMax);
  out->set_release_tokens_max(kReleaseTokensMax);
}

void FillSizes(const CacheGroup& group, const PartRange& part, v1::LayerGroupSizes* sizes) {
  sizes->set_layer_group(group.layout.id);
  v1::ShardPart* out = sizes->mutable_part();
  out->set_layer_group(group.layout.id);
  *out->mutable_layers() = ToRange(part.layer_begin, part.layer_end);
  *out->mutable_heads() = ToRange(part.head_begin, part.head_end);
  if (part.empty()) return;
  sizes->set_raw_bytes(RawBytes(group.layout, part));
  sizes->set_encoded_bytes_min(group.plan->EncodedBytesMin(part));
  sizes->set_encoded_bytes_typical(group.plan->EncodedBytesTypical(part));
  sizes->set_encoded_bytes_max(group.plan->EncodedBytesMax(part));
}

}  // namespace

absl::Status CacheCalls::OpenCache(const Tenant& tenant, const v1::OpenCacheRequest& request,
                                   v1::OpenCacheResponse* response) const {
  NQKV_RETURN_IF_ERROR(CheckRequest(request));
  NQKV_ASSIGN_OR_RETURN(const CacheRegistry::Opened opened, environment_->caches->Open(tenant, request));
  const Cache& cache = *opened.cache;
  NQKV_ASSIGN_OR_RETURN(const Shard* shard, cache.FindShard(opened.shard_id));
  response->set_cache_id(cache.wire_id());
  response->set_shard_id(opened.shard_id);
  response->set_created(opened.created);
  response->set_spec_fingerprint(cache.fingerprint());
  *response->mutable_policy() = ToProto(cache.policy());
  for (size_t i = 0; i < cache.groups().size(); ++i) {
    FillSizes(cache.groups()[i], shard->parts[i], response->add_sizes());
  }
  FillLimits(environment_->limits, response->mutable_limits());
  response->add_transports("grpc");
  response->set_server_version(std::string(Version()));
  response->set_placement_run(16);
  // Workers join at any rate: only what is new is worth a line.
  spdlog::log(opened.created ? spdlog::level::info : spdlog::level::debug,
              "{} cache '{}' of model '{}', shard {}, codec {}{}{}", opened.created ? "created" : "joined",
              cache.name(), absl::Utf8SafeCEscape(cache.spec().model()), opened.shard_id, cache.policy().Name(),
              request.engine().empty() ? "" : ", by ", absl::Utf8SafeCEscape(request.engine()));
  return absl::OkStatus();
}

absl::Status CacheCalls::Lookup(const Tenant& tenant, const v1::LookupRequest& request,
                                v1::LookupResponse* response) const {
  NQKV_RETURN_IF_ERROR(CheckRequest(request));
  NQKV_ASSIGN_OR_RETURN(const PreparedLookup lookup, PreparedLookup::Prepare(environment_, tenant, request));
  lookup.Answer(response);
  return absl::OkStatus();
}

absl::Status CacheCalls::Release(const Tenant& tenant, const v1::ReleaseRequest& request,
                                 v1::ReleaseResponse* response) const {
  NQKV_RETURN_IF_ERROR(CheckRequest(request));
  if (request.lease_tokens_size() > kReleaseTokensMax) {
    return FieldError("lease_tokens",
                      absl::StrCat(request.lease_tokens_size(), " tokens, at most ", kReleaseTokensMax));
  }
  uint32_t released = 0;
  for (const std::string& token : request.lease_tokens()) released += environment_->leases->Release(tenant.id, token);
  response->set_released(released);
  return absl::OkStatus();
}

absl::Status CacheCalls::Touch(const Tenant& tenant, const v1::TouchRequest& request, v1::TouchResponse*) const {
  NQKV_RETURN_IF_ERROR(CheckRequest(request));
  NQKV_ASSIGN_OR_RETURN(const std::shared_ptr<Cache> cache, environment_->caches->Find(tenant, request.cache_id()));
  NQKV_ASSIGN_OR_RETURN(const std::vector<BlockKey> keys, ResolveKeys(*cache, request.layer_group(), request.keys()));
  environment_->store->Touch(keys);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<BlockKey>> CacheCalls::ResolveKeys(
    const Cache& cache, uint32_t layer_group, const google::protobuf::RepeatedPtrField<std::string>& keys) const {
  NQKV_ASSIGN_OR_RETURN(const CacheGroup* group, cache.FindGroup(layer_group, "layer_group"));
  const uint32_t keys_max = environment_->limits.delete_keys_max;
  if (static_cast<uint32_t>(keys.size()) > keys_max) {
    return FieldError("keys", absl::StrCat(keys.size(), " keys, at most ", keys_max));
  }
  NQKV_RETURN_IF_ERROR(CheckKeys(keys, "keys"));
  std::vector<BlockKey> resolved;
  resolved.reserve(static_cast<size_t>(keys.size()));
  for (const std::string& bytes : keys) {
    NQKV_ASSIGN_OR_RETURN(const BlockKey key, BlockKey::Create(cache.tenant().id, cache.id(), group->layout.id, bytes));
    resolved.push_back(key);
  }
  return resolved;
}

absl::Status CacheCalls::Delete(const Tenant& tenant, const v1::DeleteRequest& request,
                                v1::DeleteResponse* response) const {
  NQKV_RETURN_IF_ERROR(CheckRequest(request));
  NQKV_ASSIGN_OR_RETURN(const std::shared_ptr<Cache> cache, environment_->caches->Find(tenant, request.cache_id()));
  NQKV_ASSIGN_OR_RETURN(const std::vector<BlockKey> keys, ResolveKeys(*cache, request.layer_group(), request.keys()));
  BlockStore::Removed removed;
  for (const BlockKey& key : keys) {
    const BlockStore::Removed one = environment_->store->Delete(key);
    removed.blocks += one.blocks;
    removed.stored_bytes += one.stored_bytes;
  }
  response->set_deleted_blocks(removed.blocks);
  response->set_freed_bytes(removed.stored_bytes);
  return absl::OkStatus();
}

absl::Status CacheCalls::Clear(const Tenant& tenant, const v1::ClearRequest& request,
                               v1::ClearResponse* response) const {
  NQKV_RETURN_IF_ERROR(CheckRequest(request));
  NQKV_ASSIGN_OR_RETURN(const std::shared_ptr<Cache> cache, environment_->caches->Find(tenant, request.cache_id()));
  const BlockStore::Removed removed = environment_->store->Clear(tenant.id, cache->id());
  response->set_deleted_blocks(removed.blocks);
  response->set_freed_bytes(removed.stored_bytes);
  spdlog::info("cleared cache '{}': {} blocks, {} bytes", cache->name(), removed.blocks, removed.stored_bytes);
  return absl::OkStatus();
}

}  // namespace nqkv
