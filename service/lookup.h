// One Lookup: the request checked and resolved, then answered.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "nqkv/v1/kv_cache.pb.h"
#include "service/cache_registry.h"
#include "service/call_environment.h"
#include "service/tenants.h"
#include "storage/block_handle.h"
#include "storage/block_presence.h"
#include "storage/lease_table.h"

namespace nqkv {

// Not thread-safe.
class PreparedLookup {
 public:
  static constexpr size_t kRequestIdBytesMax = 128;

  // Checks all of the request, so that no lease is granted for a call that ends with an error. `environment` must
  // outlive the lookup. Errors are those of the Lookup rpc.
  static absl::StatusOr<PreparedLookup> Prepare(const CallEnvironment* environment, const Tenant& tenant,
                                                const v1::LookupRequest& request);

  // A block that a query waits for.
  struct Missing {
    BlockKey key;
    PartRange needed;
    absl::Duration wait;  // How long the query waits, from the start of the call.
  };
  // The first block that is missing of the first query that still waits after `waited`; none when nothing is to be
  // waited for. What was found once is not looked for again.
  std::optional<Missing> FindMissing(absl::Duration waited);
  bool IsMissing(const Missing& missing) const;
  // Whether any query waits.
  bool waits() const;

  void Answer(v1::LookupResponse* response) const;

 private:
  struct Chain {
    const CacheGroup* group = nullptr;
    PartRange needed;
    std::vector<BlockKey> keys;
    uint64_t first_token = 0;
  };
  struct Query {
    std::vector<Chain> chains;
    bool is_prefix = true;
    bool include_blocks = false;
    std::optional<LeaseTable::Request> lease;
    absl::Duration wait;
    size_t chains_found = 0;  // Chains of which every key was found, and keys of the one after.
    size_t keys_found = 0;
  };
  // What a chain's keys come to, key by key; for a prefix, of the keys that matched.
  struct Match {
    std::vector<BlockPresence> presences;
    std::vector<BlockHandle> handles;  // With a lease: of what is present, in any order.
  };

  PreparedLookup(const CallEnvironment* environment, std::shared_ptr<Cache> cache)
      : environment_(environment), cache_(std::move(cache)) {}

  absl::StatusOr<Query> ResolveQuery(const Shard& shard, const v1::LookupQuery& query, const std::string& path) const;
  absl::StatusOr<Chain> ResolveChain(const Shard& shard, const v1::KeyChain& chain, const std::string& path) const;
  absl::StatusOr<LeaseTable::Request> ResolveLease(const v1::LookupQuery& query, const std::string& path) const;
  static absl::Status CheckChains(const Query& query, const std::string& path);

  void AnswerPrefix(const Query& query, v1::LookupResult* result) const;
  void AnswerSet(const Query& query, v1::LookupResult* result) const;
  uint64_t MatchPrefix(const Query& query, std::vector<Match>* matches) const;
  void Grant(const LeaseTable::Request& lease, std::vector<BlockHandle> handles, v1::LookupResult* result) const;
  void Count(const Query& query, const v1::LookupResult& result) const;

  const CallEnvironment* environment_;
  std::shared_ptr<Cache> cache_;
  std::vector<Query> queries_;
};

}  // namespace nqkv
