#include "service/cache_calls.h"

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/status_macros.h"
#include "proto/rpc_status.h"
#include "service/convert.h"
#include "service/request_check.h"
#include "service/version.h"
#include "spdlog/spdlog.h"

namespace nqkv {
namespace {

// One chain of a query, resolved.
struct Chain {
  const CacheGroup* group = nullptr;
  PartRange needed;
  std::vector<BlockKey> keys;
  uint64_t first_token = 0;
};

absl::StatusOr<Chain> ResolveChain(const Cache& cache, const Shard& shard, const v1::KeyChain& chain,
                                   const std::string& path) {
  Chain resolved;
  NQKV_ASSIGN_OR_RETURN(resolved.group, cache.FindGroup(chain.layer_group(), path + ".layer_group"));
  const GroupLayout& layout = resolved.group->layout;
  NQKV_ASSIGN_OR_RETURN(resolved.needed, PartFromProto(nullptr, nullptr, shard.parts[cache.IndexOf(*resolved.group)],
                                                       layout, path + ".layer_group"));
  NQKV_RETURN_IF_ERROR(CheckKeys(chain.keys(), path + ".keys"));
  resolved.first_token = uint64_t{chain.first_block_index()} * layout.block_tokens;
  resolved.keys.reserve(static_cast<size_t>(chain.keys_size()));
  for (const std::string& bytes : chain.keys()) {
    NQKV_ASSIGN_OR_RETURN(const BlockKey key, BlockKey::Create(cache.tenant().id, cache.id(), layout.id, bytes));
    resolved.keys.push_back(key);
  }
  return resolved;
}

// A layer group once; a prefix of several groups starts at the same token in each.
absl::Status CheckChains(const std::vector<Chain>& chains, bool prefix, const std::string& path) {
  for (size_t i = 1; i < chains.size(); ++i) {
    const std::string chain_path = absl::StrCat(path, ".chains[", i, "]");
    for (size_t j = 0; j < i; ++j) {
      if (chains[i].group != chains[j].group) continue;
      return FieldError(chain_path + ".layer_group",
                        absl::StrCat(chains[i].group->layout.id, " is that of chains[", j, "] too"));
    }
    if (prefix && chains[i].first_token != chains[0].first_token) {
      return FieldError(chain_path + ".first_block_index",
                        absl::StrCat("the chain starts at token ", chains[i].first_token, ", chains[0] at token ",
                                     chains[0].first_token));
    }
  }
  return absl::OkStatus();
}

void FillBlockInfo(const BlockPresence& presence, v1::BlockInfo* info) {
  info->set_present(presence.present);
  if (!presence.present) return;
  info->set_tier(v1::TIER_HOST);
  info->set_stored_bytes(presence.stored_bytes);
  info->set_provenance(static_cast<v1::Provenance>(presence.provenance));
  info->set_floor_error(presence.floor_error);
  info->set_token_norm_error(presence.token_norm_error);
}

void FillPrefixMatch(const Chain& chain, const std::vector<BlockPresence>& presences, size_t matched,
                     bool include_blocks, v1::GroupMatch* match) {
  match->set_layer_group(chain.group->layout.id);
  match->set_matched_blocks(static_cast<uint32_t>(matched));
  match->set_raw_bytes(matched * RawBytes(chain.group->layout, chain.needed));
  for (size_t i = 0; i < matched; ++i) {
    match->set_stored_bytes(match->stored_bytes() + presences[i].stored_bytes);
    if (include_blocks) FillBlockInfo(presences[i], match->add_blocks());
  }
}

// The longest prefix that every chain has, cut to whole blocks of each.
uint64_t MatchPrefix(BlockStore* store, const std::vector<Chain>& chains, bool include_blocks,
                     v1::LookupResult* result) {
  std::vector<std::vector<BlockPresence>> presences(chains.size());
  uint64_t tokens = UINT64_MAX;
  uint64_t unit = 1;
  for (size_t i = 0; i < chains.size(); ++i) {
    const uint64_t block_tokens = chains[i].group->layout.block_tokens;
    tokens = std::min(tokens, block_tokens * store->MatchPrefix(chains[i].keys, chains[i].needed, &presences[i]));
    unit = std::lcm(unit, block_tokens);
    if (unit > tokens) break;  // Nothing can match any more, and the multiple stays small.
  }
  tokens = chains.empty() ? 0 : tokens / unit * unit;
  result->set_matched_tokens(tokens);
  for (size_t i = 0; i < chains.size(); ++i) {
    FillPrefixMatch(chains[i], presences[i], tokens / chains[i].group->layout.block_tokens, include_blocks,
                    result->add_groups());
  }
  return tokens;
}

void MatchSet(BlockStore* store, const Chain& chain, bool include_blocks, v1::GroupMatch* match) {
  std::vector<BlockKey> present;
  std::string bits((chain.keys.size() + 7) / 8, '\0');
  for (size_t i = 0; i < chain.keys.size(); ++i) {
    const BlockPresence presence = store->Find(chain.keys[i], chain.needed);
    if (include_blocks) FillBlockInfo(presence, match->add_blocks());
    if (!presence.present) continue;
    bits[i / 8] = static_cast<char>(bits[i / 8] | 1 << i % 8);
    match->set_stored_bytes(match->stored_bytes() + presence.stored_bytes);
    present.push_back(chain.keys[i]);
  }
  store->Touch(present);
  match->set_layer_group(chain.group->layout.id);
  match->set_matched_blocks(static_cast<uint32_t>(present.size()));
  match->set_present(std::move(bits));
  match->set_raw_bytes(present.size() * RawBytes(chain.group->layout, chain.needed));
}

// What a reply takes at most: a query's result, a chain's match, and a block's description with its tag and length.
constexpr uint64_t kResultBytesMax = 24;
constexpr uint64_t kMatchBytesMax = 48;
constexpr uint64_t kBlockInfoBytesMax = 32;

// Whatever is present: a client that stays below it is never surprised by a cache that has filled.
absl::Status CheckReplySize(const v1::LookupRequest& request, uint64_t message_bytes_max) {
  uint64_t bytes = 0;
  for (const v1::LookupQuery& query : request.queries()) {
    bytes += kResultBytesMax;
    for (const v1::KeyChain& chain : query.chains()) {
      const uint64_t keys = static_cast<uint64_t>(chain.keys_size());
      bytes += kMatchBytesMax + keys / 8 + (query.include_blocks() ? keys * kBlockInfoBytesMax : 0);
    }
  }
  if (bytes <= message_bytes_max) return absl::OkStatus();
  return FieldError("queries", absl::StrCat("the reply may take ", bytes, " bytes, at most ", message_bytes_max,
                                            " make a message: ask for fewer keys, or leave out include_blocks"));
}

absl::Status CheckLookupSize(const v1::LookupRequest& request, size_t groups, uint32_t keys_max) {
  constexpr int queries_max = ServiceLimits::kLookupQueriesMax;
  if (request.queries_size() > queries_max) {
    return FieldError("queries", absl::StrCat(request.queries_size(), " queries, at most ", queries_max));
  }
  uint64_t keys = 0;
  for (int q = 0; q < request.queries_size(); ++q) {
    const v1::LookupQuery& query = request.queries(q);
    if (static_cast<size_t>(query.chains_size()) > groups) {
      return FieldError(absl::StrCat("queries[", q, "].chains"),
                        absl::StrCat(query.chains_size(), " chains, but the cache has ", groups, " layer groups"));
    }
    for (const v1::KeyChain& chain : query.chains()) keys += static_cast<uint64_t>(chain.keys_size());
  }
  if (keys <= keys_max) return absl::OkStatus();
  return FieldError("queries", absl::StrCat(keys, " keys, at most ", keys_max, " in one call"));
}

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
              cache.name(), cache.spec().model(), opened.shard_id, cache.policy().Name(),
              request.engine().empty() ? "" : ", by ", request.engine());
  return absl::OkStatus();
}

absl::Status CacheCalls::Lookup(const Tenant& tenant, const v1::LookupRequest& request,
                                v1::LookupResponse* response) const {
  NQKV_RETURN_IF_ERROR(CheckRequest(request));
  NQKV_ASSIGN_OR_RETURN(const std::shared_ptr<Cache> cache, environment_->caches->Find(tenant, request.cache_id()));
  NQKV_ASSIGN_OR_RETURN(const Shard* shard, cache->FindShard(request.shard_id()));
  NQKV_RETURN_IF_ERROR(CheckLookupSize(request, cache->groups().size(), environment_->limits.lookup_keys_max));
  NQKV_RETURN_IF_ERROR(CheckReplySize(request, environment_->limits.message_bytes_max));
  for (int q = 0; q < request.queries_size(); ++q) {
    const v1::LookupQuery& query = request.queries(q);
    const std::string path = absl::StrCat("queries[", q, "]");
    const bool prefix = query.mode() != v1::LOOKUP_MODE_SET;
    std::vector<Chain> chains;
    for (int c = 0; c < query.chains_size(); ++c) {
      NQKV_ASSIGN_OR_RETURN(Chain chain,
                            ResolveChain(*cache, *shard, query.chains(c), absl::StrCat(path, ".chains[", c, "]")));
      chains.push_back(std::move(chain));
    }
    NQKV_RETURN_IF_ERROR(CheckChains(chains, prefix, path));
    v1::LookupResult* result = response->add_results();
    if (prefix) {
      const uint64_t tokens = MatchPrefix(environment_->store, chains, query.include_blocks(), result);
      environment_->metrics->RecordLookup(tokens);
      cache->metrics().lookup_matched_tokens->Increment(static_cast<double>(tokens));
    } else {
      for (const Chain& chain : chains) {
        MatchSet(environment_->store, chain, query.include_blocks(), result->add_groups());
      }
    }
    cache->metrics().lookups->Increment();
    for (const Chain& chain : chains) cache->metrics().lookup_keys->Increment(static_cast<double>(chain.keys.size()));
    for (const v1::GroupMatch& match : result->groups()) {
      cache->metrics().lookup_hit_keys->Increment(match.matched_blocks());
    }
  }
  return absl::OkStatus();
}

absl::Status CacheCalls::Delete(const Tenant& tenant, const v1::DeleteRequest& request,
                                v1::DeleteResponse* response) const {
  NQKV_RETURN_IF_ERROR(CheckRequest(request));
  NQKV_ASSIGN_OR_RETURN(const std::shared_ptr<Cache> cache, environment_->caches->Find(tenant, request.cache_id()));
  NQKV_ASSIGN_OR_RETURN(const CacheGroup* group, cache->FindGroup(request.layer_group(), "layer_group"));
  const uint32_t keys_max = environment_->limits.delete_keys_max;
  if (static_cast<uint32_t>(request.keys_size()) > keys_max) {
    return FieldError("keys", absl::StrCat(request.keys_size(), " keys, at most ", keys_max));
  }
  NQKV_RETURN_IF_ERROR(CheckKeys(request.keys(), "keys"));
  BlockStore::Removed removed;
  for (const std::string& bytes : request.keys()) {
    NQKV_ASSIGN_OR_RETURN(const BlockKey key, BlockKey::Create(tenant.id, cache->id(), group->layout.id, bytes));
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
