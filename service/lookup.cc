#include "service/lookup.h"

#include <algorithm>
#include <iterator>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "kernels/status_macros.h"
#include "proto/rpc_status.h"
#include "service/convert.h"

namespace nqkv {
namespace {

constexpr absl::Duration kRetryDelay = absl::Seconds(1);

// What a reply takes at most: a query's result, a chain's match, and a block's description with its tag and length.
constexpr uint64_t kResultBytesMax = 24;
constexpr uint64_t kLeaseBytesMax = 512;  // Its token, or why there is none.
constexpr uint64_t kMatchBytesMax = 48;
constexpr uint64_t kBlockInfoBytesMax = 32;

// Whatever is present: a client that stays below it is never surprised by a cache that has filled.
absl::Status CheckReplySize(const v1::LookupRequest& request, uint64_t message_bytes_max) {
  uint64_t bytes = 0;
  for (const v1::LookupQuery& query : request.queries()) {
    bytes += kResultBytesMax + (query.has_lease() ? kLeaseBytesMax : 0);
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

void FillBlockInfo(const BlockPresence& presence, v1::BlockInfo* info) {
  info->set_present(presence.present);
  if (!presence.present) return;
  info->set_tier(v1::TIER_HOST);
  info->set_stored_bytes(presence.stored_bytes);
  info->set_provenance(static_cast<v1::Provenance>(presence.provenance));
  info->set_floor_error(presence.floor_error);
  info->set_token_norm_error(presence.token_norm_error);
}

// Pins the first `count` blocks, from the last to the first, so that the head of the chain is the most recent, and
// drops those behind one that was evicted meanwhile. `handles` are the blocks' from the last that is left to the first.
void PinPrefix(BlockStore* store, std::span<const BlockKey> keys, size_t count, const PartRange& needed,
               std::vector<BlockHandle>* handles) {
  for (size_t i = count; i-- > 0;) {
    absl::StatusOr<BlockHandle> handle = store->Get(keys[i], needed);
    if (handle.ok()) {
      handles->push_back(*std::move(handle));
    } else {
      handles->clear();
    }
  }
}

}  // namespace

absl::StatusOr<PreparedLookup> PreparedLookup::Prepare(const CallEnvironment* environment, const Tenant& tenant,
                                                       const v1::LookupRequest& request) {
  NQKV_ASSIGN_OR_RETURN(std::shared_ptr<Cache> cache, environment->caches->Find(tenant, request.cache_id()));
  PreparedLookup lookup(environment, std::move(cache));
  NQKV_ASSIGN_OR_RETURN(const Shard* shard, lookup.cache_->FindShard(request.shard_id()));
  const size_t groups = lookup.cache_->groups().size();
  NQKV_RETURN_IF_ERROR(CheckLookupSize(request, groups, environment->limits.lookup_keys_max));
  NQKV_RETURN_IF_ERROR(CheckReplySize(request, environment->limits.message_bytes_max));
  lookup.queries_.reserve(static_cast<size_t>(request.queries_size()));
  for (int q = 0; q < request.queries_size(); ++q) {
    NQKV_ASSIGN_OR_RETURN(Query query,
                          lookup.ResolveQuery(*shard, request.queries(q), absl::StrCat("queries[", q, "]")));
    lookup.queries_.push_back(std::move(query));
  }
  return lookup;
}

absl::StatusOr<PreparedLookup::Query> PreparedLookup::ResolveQuery(const Shard& shard, const v1::LookupQuery& query,
                                                                   const std::string& path) const {
  Query resolved;
  resolved.is_prefix = query.mode() != v1::LOOKUP_MODE_SET;
  resolved.include_blocks = query.include_blocks();
  for (int c = 0; c < query.chains_size(); ++c) {
    NQKV_ASSIGN_OR_RETURN(Chain chain, ResolveChain(shard, query.chains(c), absl::StrCat(path, ".chains[", c, "]")));
    resolved.chains.push_back(std::move(chain));
  }
  NQKV_RETURN_IF_ERROR(CheckChains(resolved, path));
  if (query.has_lease()) {
    NQKV_ASSIGN_OR_RETURN(resolved.lease, ResolveLease(query, path));
  } else if (!query.request_id().empty()) {
    return FieldError(path + ".request_id", "names a lease, but none is asked for");
  }
  const double wait_seconds = query.wait_until_present().seconds_max();
  const double wait_seconds_max = environment_->limits.lookup_wait_seconds_max;
  if (!(wait_seconds >= 0 && wait_seconds <= wait_seconds_max)) {
    return FieldError(path + ".wait_until_present.seconds_max",
                      absl::StrCat(wait_seconds, " is not within 0 to ", wait_seconds_max));
  }
  resolved.wait = absl::Seconds(wait_seconds);
  return resolved;
}

absl::StatusOr<PreparedLookup::Chain> PreparedLookup::ResolveChain(const Shard& shard, const v1::KeyChain& chain,
                                                                   const std::string& path) const {
  Chain resolved;
  NQKV_ASSIGN_OR_RETURN(resolved.group, cache_->FindGroup(chain.layer_group(), path + ".layer_group"));
  const GroupLayout& layout = resolved.group->layout;
  NQKV_ASSIGN_OR_RETURN(resolved.needed, PartFromProto(nullptr, nullptr, shard.parts[cache_->IndexOf(*resolved.group)],
                                                       layout, path + ".layer_group"));
  NQKV_RETURN_IF_ERROR(CheckKeys(chain.keys(), path + ".keys"));
  resolved.first_token = uint64_t{chain.first_block_index()} * layout.block_tokens;
  resolved.keys.reserve(static_cast<size_t>(chain.keys_size()));
  for (const std::string& bytes : chain.keys()) {
    NQKV_ASSIGN_OR_RETURN(const BlockKey key, BlockKey::Create(cache_->tenant().id, cache_->id(), layout.id, bytes));
    resolved.keys.push_back(key);
  }
  return resolved;
}

absl::StatusOr<LeaseTable::Request> PreparedLookup::ResolveLease(const v1::LookupQuery& query,
                                                                 const std::string& path) const {
  const ServiceLimits& limits = environment_->limits;
  const double seconds = query.lease().seconds();
  if (!(seconds >= 0 && seconds <= limits.lease_seconds_max)) {
    return FieldError(path + ".lease.seconds", absl::StrCat(seconds, " is not within 0 to ", limits.lease_seconds_max));
  }
  if (query.request_id().size() > kRequestIdBytesMax) {
    return FieldError(path + ".request_id",
                      absl::StrCat(query.request_id().size(), " bytes, at most ", kRequestIdBytesMax));
  }
  const absl::Duration duration = absl::Seconds(seconds > 0 ? seconds : limits.lease_seconds_default);
  return LeaseTable::Request{.tenant = cache_->tenant().id,
                             .cache = cache_->id(),
                             .session_id = query.lease().session_id(),
                             .request_id = query.request_id(),
                             .duration = absl::ToChronoNanoseconds(duration)};
}

// A layer group once; a prefix of several groups starts at the same token in each.
absl::Status PreparedLookup::CheckChains(const Query& query, const std::string& path) {
  const std::vector<Chain>& chains = query.chains;
  for (size_t i = 1; i < chains.size(); ++i) {
    const std::string chain_path = absl::StrCat(path, ".chains[", i, "]");
    for (size_t j = 0; j < i; ++j) {
      if (chains[i].group != chains[j].group) continue;
      return FieldError(chain_path + ".layer_group",
                        absl::StrCat(chains[i].group->layout.id, " is that of chains[", j, "] too"));
    }
    if (query.is_prefix && chains[i].first_token != chains[0].first_token) {
      return FieldError(chain_path + ".first_block_index",
                        absl::StrCat("the chain starts at token ", chains[i].first_token, ", chains[0] at token ",
                                     chains[0].first_token));
    }
  }
  return absl::OkStatus();
}

std::optional<PreparedLookup::Missing> PreparedLookup::FindMissing(absl::Duration waited) {
  for (Query& query : queries_) {
    if (query.wait <= waited) continue;
    for (; query.chains_found < query.chains.size(); ++query.chains_found, query.keys_found = 0) {
      const Chain& chain = query.chains[query.chains_found];
      for (; query.keys_found < chain.keys.size(); ++query.keys_found) {
        const Missing missing = {.key = chain.keys[query.keys_found], .needed = chain.needed, .wait = query.wait};
        if (IsMissing(missing)) return missing;
      }
    }
  }
  return std::nullopt;
}

bool PreparedLookup::IsMissing(const Missing& missing) const {
  return !environment_->store->Find(missing.key, missing.needed).present;
}

bool PreparedLookup::waits() const {
  return std::any_of(queries_.begin(), queries_.end(),
                     [](const Query& query) { return query.wait > absl::ZeroDuration(); });
}

void PreparedLookup::Answer(v1::LookupResponse* response) const {
  for (const Query& query : queries_) {
    v1::LookupResult* result = response->add_results();
    query.is_prefix ? AnswerPrefix(query, result) : AnswerSet(query, result);
    Count(query, *result);
  }
}

// The longest prefix that every chain has, cut to whole blocks of each, in tokens.
uint64_t PreparedLookup::MatchPrefix(const Query& query, std::vector<Match>* matches) const {
  uint64_t tokens = UINT64_MAX;
  uint64_t unit = 1;
  for (size_t i = 0; i < query.chains.size(); ++i) {
    const Chain& chain = query.chains[i];
    const uint64_t block_tokens = chain.group->layout.block_tokens;
    const size_t matched = environment_->store->MatchPrefix(chain.keys, chain.needed, &(*matches)[i].presences);
    tokens = std::min(tokens, block_tokens * matched);
    unit = std::lcm(unit, block_tokens);
    if (unit > tokens) return 0;  // Nothing can match any more, and the multiple stays small.
  }
  if (query.chains.empty()) return 0;
  tokens = tokens / unit * unit;
  if (!query.lease.has_value()) return tokens;
  uint64_t pinned_tokens = tokens;
  for (size_t i = 0; i < query.chains.size(); ++i) {
    const Chain& chain = query.chains[i];
    const uint64_t block_tokens = chain.group->layout.block_tokens;
    std::vector<BlockHandle>& handles = (*matches)[i].handles;
    PinPrefix(environment_->store, chain.keys, pinned_tokens / block_tokens, chain.needed, &handles);
    pinned_tokens = handles.size() * block_tokens / unit * unit;
  }
  for (size_t i = 0; i < query.chains.size(); ++i) {
    std::vector<BlockHandle>& handles = (*matches)[i].handles;
    const size_t left = pinned_tokens / query.chains[i].group->layout.block_tokens;
    handles.erase(handles.begin(), handles.end() - static_cast<ptrdiff_t>(left));  // The last blocks stand first.
  }
  return pinned_tokens;
}

void PreparedLookup::AnswerPrefix(const Query& query, v1::LookupResult* result) const {
  std::vector<Match> matches(query.chains.size());
  const uint64_t tokens = MatchPrefix(query, &matches);
  result->set_matched_tokens(tokens);
  std::vector<BlockHandle> handles;
  for (size_t i = 0; i < query.chains.size(); ++i) {
    const Chain& chain = query.chains[i];
    const uint64_t matched = tokens / chain.group->layout.block_tokens;
    v1::GroupMatch* match = result->add_groups();
    match->set_layer_group(chain.group->layout.id);
    match->set_matched_blocks(static_cast<uint32_t>(matched));
    match->set_raw_bytes(matched * RawBytes(chain.group->layout, chain.needed));
    for (size_t block = 0; block < matched; ++block) {
      const BlockPresence& presence = matches[i].presences[block];
      match->set_stored_bytes(match->stored_bytes() + presence.stored_bytes);
      if (query.include_blocks) FillBlockInfo(presence, match->add_blocks());
    }
    std::move(matches[i].handles.begin(), matches[i].handles.end(), std::back_inserter(handles));
  }
  if (query.lease.has_value()) Grant(*query.lease, std::move(handles), result);
}

void PreparedLookup::AnswerSet(const Query& query, v1::LookupResult* result) const {
  BlockStore* store = environment_->store;
  std::vector<BlockHandle> handles;
  for (const Chain& chain : query.chains) {
    v1::GroupMatch* match = result->add_groups();
    std::vector<BlockKey> present;
    std::string bits((chain.keys.size() + 7) / 8, '\0');
    for (size_t i = 0; i < chain.keys.size(); ++i) {
      BlockPresence presence = store->Find(chain.keys[i], chain.needed);
      if (presence.present && query.lease.has_value()) {
        absl::StatusOr<BlockHandle> handle = store->Get(chain.keys[i], chain.needed);
        if (handle.ok()) {
          handles.push_back(*std::move(handle));
        } else {
          presence = {};  // Evicted meanwhile.
        }
      }
      if (query.include_blocks) FillBlockInfo(presence, match->add_blocks());
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
  if (query.lease.has_value()) Grant(*query.lease, std::move(handles), result);
}

void PreparedLookup::Grant(const LeaseTable::Request& lease, std::vector<BlockHandle> handles,
                           v1::LookupResult* result) const {
  absl::StatusOr<std::string> token = environment_->leases->Grant(lease, std::move(handles));
  if (token.ok()) {
    result->set_lease_token(*std::move(token));
  } else if (absl::IsResourceExhausted(token.status())) {
    environment_->metrics->RecordRejection(Rejection::kLeases);
    ToProto(WithRetry(token.status(), kRetryDelay), result->mutable_lease_status());
  } else {
    ToProto(token.status(), result->mutable_lease_status());
  }
}

void PreparedLookup::Count(const Query& query, const v1::LookupResult& result) const {
  CacheMetrics& metrics = cache_->metrics();
  if (query.is_prefix) {
    environment_->metrics->RecordLookup(result.matched_tokens());
    metrics.lookup_matched_tokens->Increment(static_cast<double>(result.matched_tokens()));
  }
  metrics.lookups->Increment();
  for (const Chain& chain : query.chains) metrics.lookup_keys->Increment(static_cast<double>(chain.keys.size()));
  for (const v1::GroupMatch& match : result.groups()) metrics.lookup_hit_keys->Increment(match.matched_blocks());
}

}  // namespace nqkv
