#include <malloc.h>

#include <algorithm>
#include <atomic>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/block_planes.h"
#include "client/channel.h"
#include "client/convert.h"
#include "client/get_stream.h"
#include "client/nqkv.h"
#include "client/put_stream.h"
#include "client/retry.h"
#include "client/session.h"
#include "kernels/status_macros.h"
#include "proto/key_chain.h"
#include "proto/rpc_status.h"

namespace nqkv::client {
namespace {

constexpr uint64_t kMessageBytes = 1 << 20;  // Where the server has no opinion.
// Of a message, for what is beside the payload.
constexpr uint64_t kHeaderBytesMax = 64 << 10;

// One open of a cache by the server. Never changes.
struct OpenState {
  uint64_t cache_id = 0;
  uint32_t shard_id = 0;
  CacheInfo info;
};

TimePoint DeadlineOf(const ClientOptions& client, const CallOptions& call, const Clock& clock) {
  // A timeout beyond a year means none; clamped since time points overflow.
  const std::chrono::milliseconds year = std::chrono::hours(24 * 365);
  return clock.Now() + std::min(call.timeout.value_or(client.timeout), year);
}

// Runs `call(connection)`; one that ends with UNAVAILABLE costs the connection.
template <typename Call>
absl::Status OnConnection(Channel* channel, Call call) {
  NQKV_ASSIGN_OR_RETURN(const std::shared_ptr<Connection> connection, channel->Connect());
  absl::Status status = call(connection.get());
  if (absl::IsUnavailable(status)) channel->Discard(connection);
  return status;
}

absl::StatusOr<std::shared_ptr<const OpenState>> Open(Channel* channel, const v1::OpenCacheRequest& request,
                                                      TimePoint deadline, const Clock& clock) {
  v1::OpenCacheResponse response;
  NQKV_RETURN_IF_ERROR(OnConnection(channel, [&](Connection* connection) {
    grpc::ClientContext context;
    SetDeadline(&context, deadline, clock);
    return FromGrpc(connection->stub().OpenCache(&context, request, &response));
  }));
  auto state = std::make_shared<OpenState>();
  state->cache_id = response.cache_id();
  state->shard_id = response.shard_id();
  state->info = FromProto(response);
  return state;
}

v1::GetRequest GetRequestOf(const OpenState& state, const GetOptions& get) {
  v1::GetRequest request;
  request.set_cache_id(state.cache_id);
  request.set_shard_id(state.shard_id);
  request.mutable_chain()->set_layer_group(get.layer_group);
  if (get.layers) *request.mutable_layers() = ToProto(*get.layers);
  if (get.heads) *request.mutable_heads() = ToProto(*get.heads);
  if (get.dtype) request.set_dtype(static_cast<v1::Dtype>(*get.dtype));
  request.set_include_planes(get.include_planes);
  request.set_lease_token(get.lease_token);
  return request;
}

uint64_t PutPayloadBytes(const CacheInfo& info) {
  const uint64_t best = info.message_bytes_best > 0 ? info.message_bytes_best : kMessageBytes;
  if (info.message_bytes_max == 0) return best;
  const uint64_t most = info.message_bytes_max > 2 * kHeaderBytesMax
                            ? info.message_bytes_max - kHeaderBytesMax
                            : std::max<uint64_t>(info.message_bytes_max / 2, 1);
  return std::min(best, most);
}

// INVALID_ARGUMENT for a block that makes no sense before it is sent.
absl::StatusOr<PutItem> PutItemOf(uint32_t number, const PutBlock& block, const CacheSpec& spec,
                                  const CacheInfo& info) {
  PutItem item{.number = number, .block = &block, .planes = {}};
  if (block.planes.empty()) {
    if (block.data == nullptr && block.bytes > 0) return absl::InvalidArgumentError("block: data is null");
    return item;
  }
  NQKV_ASSIGN_OR_RETURN(item.planes, PlanesOf(spec, info, block.layer_group, block.layers, block.heads));
  if (item.planes.size() != block.planes.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("block: ", block.planes.size(), " planes given, the range has ", item.planes.size()));
  }
  for (const PlaneSource& plane : block.planes) {
    if (plane.data == nullptr) return absl::InvalidArgumentError("block: a plane's data is null");
  }
  return item;
}

// One attempt at all of `pending`, which keeps those that want another.
absl::Status PutOnce(Connection* connection, const Clock& clock, const OpenState& state, TimePoint deadline,
                     std::vector<PutItem>* pending, std::vector<PutResult>* results) {
  std::vector<std::optional<PutResult>> answers(results->size());
  const PutStreamOptions stream{.cache_id = state.cache_id,
                                .shard_id = state.shard_id,
                                .payload_bytes = PutPayloadBytes(state.info),
                                .open_blocks_max = std::max<uint32_t>(state.info.put_open_blocks_max, 1),
                                .deadline = deadline};
  absl::Status ended = RunPutStream(connection, clock, stream, *pending, answers);
  absl::Status worth_another;
  std::erase_if(*pending, [&](const PutItem& item) {
    std::optional<PutResult>& answer = answers[item.number];
    if (!answer) return false;
    PutResult& result = (*results)[item.number];
    result = *std::move(answer);
    if (!IsRetryable(result.status)) return true;
    worth_another = result.status;
    return false;
  });
  return ended.ok() ? worth_another : ended;
}

// The planes of a block that `get` asks for, in the dtype that it asks for.
absl::StatusOr<std::vector<PlanePiece>> PlanesOf(const CacheSpec& spec, const CacheInfo& info, const GetOptions& get) {
  NQKV_ASSIGN_OR_RETURN(std::vector<PlanePiece> planes, PlanesOf(spec, info, get.layer_group, get.layers, get.heads));
  for (PlanePiece& plane : planes) plane.spec.dtype = get.dtype.value_or(plane.spec.dtype);
  return planes;
}

// INVALID_ARGUMENT for a target that no block can be written to. `planes` are those of a block.
absl::Status CheckTarget(const GetTarget& target, const absl::StatusOr<std::vector<PlanePiece>>& planes) {
  if (target.planes.empty()) {
    if (target.data == nullptr && target.bytes > 0) return absl::InvalidArgumentError("target: data is null");
    return absl::OkStatus();
  }
  NQKV_RETURN_IF_ERROR(planes.status());
  if (target.planes.size() != planes->size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("target: ", target.planes.size(), " planes given, the range has ", planes->size()));
  }
  for (const PlaneTarget& plane : target.planes) {
    if (plane.data == nullptr) return absl::InvalidArgumentError("target: a plane's data is null");
  }
  return absl::OkStatus();
}

// One attempt at all of `pending`, which keeps those that have no result, or not all their bytes.
absl::Status GetOnce(Connection* connection, const Clock& clock, const OpenState& state, const GetOptions& get,
                     TimePoint deadline, std::span<const GetTarget> targets, std::span<const PlanePiece> planes,
                     std::vector<size_t>* pending, std::vector<GetResult>* results) {
  const size_t keys_max = state.info.get_keys_max > 0 ? state.info.get_keys_max : SIZE_MAX;
  std::span<const size_t> left(*pending);
  std::vector<size_t> unfinished;
  absl::Status ended;
  while (ended.ok() && !left.empty()) {
    const std::span<const size_t> batch = left.first(std::min(keys_max, left.size()));
    GetStreamOptions stream{.request = GetRequestOf(state, get), .planes = planes, .deadline = deadline};
    std::vector<const GetTarget*> batch_targets;
    std::vector<GetResult*> batch_results;
    for (const size_t index : batch) {
      stream.request.mutable_chain()->add_keys(targets[index].key);
      batch_targets.push_back(&targets[index]);
      batch_results.push_back(&(*results)[index]);
    }
    std::vector<bool> done;
    ended = RunGetStream(connection, clock, stream, batch_targets, batch_results, &done);
    for (size_t i = 0; i < batch.size(); ++i) {
      if (!done[i]) unfinished.push_back(batch[i]);
    }
    left = left.subspan(batch.size());
  }
  unfinished.insert(unfinished.end(), left.begin(), left.end());
  *pending = std::move(unfinished);
  return ended;
}

}  // namespace

class Cache::Impl {
 public:
  Impl(std::shared_ptr<Channel> channel, const ClientOptions& options, const CacheOptions& cache,
       std::shared_ptr<const OpenState> state)
      : channel_(std::move(channel)),
        options_(options),
        cache_(cache),
        request_(ToProto(cache)),
        clock_(channel_->clock()),
        state_(std::move(state)) {}

  const CacheOptions& cache() const { return cache_; }
  std::shared_ptr<const OpenState> state() const { return state_.load(); }
  const Clock& clock() const { return *clock_; }

  // Runs `attempt(connection, state, deadline)` until it is OK, is not worth another try, or time is up.
  template <typename Attempt>
  absl::Status Call(const CallOptions& options, Attempt attempt) {
    Retry retry(options_.retry, DeadlineOf(options_, options, *clock_), clock_);
    bool reopened = false;
    for (;;) {
      const std::shared_ptr<const OpenState> state = state_.load();
      absl::Status status = OnConnection(
          channel_.get(), [&](Connection* connection) { return attempt(connection, *state, retry.deadline()); });
      if (absl::IsNotFound(status) && !reopened) {
        reopened = true;
        status = Reopen(state, retry.deadline());
        if (status.ok()) continue;
      }
      if (!retry.Again(status)) return status;
    }
  }

 private:
  // Several threads may find out together and all ask: opening is idempotent, and they join the same cache.
  absl::Status Reopen(std::shared_ptr<const OpenState> stale, TimePoint deadline) {
    if (state_.load() != stale) return absl::OkStatus();
    NQKV_ASSIGN_OR_RETURN(std::shared_ptr<const OpenState> fresh, Open(channel_.get(), request_, deadline, *clock_));
    state_.compare_exchange_strong(stale, std::move(fresh));
    return absl::OkStatus();
  }

  const std::shared_ptr<Channel> channel_;
  const ClientOptions options_;
  const CacheOptions cache_;
  const v1::OpenCacheRequest request_;
  Clock* const clock_;
  std::atomic<std::shared_ptr<const OpenState>> state_;
};

Cache::Cache(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Cache::~Cache() = default;

const std::string& Cache::name() const { return impl_->cache().name; }
CacheInfo Cache::info() const { return impl_->state()->info; }

absl::StatusOr<uint64_t> Cache::BlockBytes(const GetOptions& options) const {
  NQKV_ASSIGN_OR_RETURN(const std::vector<PlanePiece> planes,
                        PlanesOf(impl_->cache().spec, impl_->state()->info, options));
  uint64_t bytes = 0;
  for (const PlanePiece& plane : planes) bytes += plane.bytes();
  return bytes;
}

absl::StatusOr<LookupResult> Cache::Lookup(const LookupQuery& query, const CallOptions& options) {
  NQKV_ASSIGN_OR_RETURN(std::vector<LookupResult> results, Lookup({&query, 1}, options));
  return std::move(results.front());
}

absl::StatusOr<std::vector<LookupResult>> Cache::Lookup(std::span<const LookupQuery> queries,
                                                        const CallOptions& options) {
  v1::LookupRequest request;
  for (const LookupQuery& query : queries) *request.add_queries() = ToProto(query);
  v1::LookupResponse response;
  NQKV_RETURN_IF_ERROR(impl_->Call(options, [&](Connection* connection, const OpenState& state, TimePoint deadline) {
    request.set_cache_id(state.cache_id);
    request.set_shard_id(state.shard_id);
    grpc::ClientContext context;
    SetDeadline(&context, deadline, impl_->clock());
    return FromGrpc(connection->stub().Lookup(&context, request, &response));
  }));
  if (static_cast<size_t>(response.results_size()) != queries.size()) {
    return absl::InternalError(
        absl::StrCat("reply: ", response.results_size(), " results for ", queries.size(), " queries"));
  }
  std::vector<LookupResult> results;
  for (size_t i = 0; i < queries.size(); ++i) {
    NQKV_ASSIGN_OR_RETURN(LookupResult result, FromProto(response.results(static_cast<int>(i)), queries[i]));
    results.push_back(std::move(result));
  }
  return results;
}

std::vector<PutResult> Cache::Put(std::span<const PutBlock> blocks, const CallOptions& options) {
  std::vector<PutResult> results(blocks.size());
  std::vector<PutItem> pending;  // Without a result that is final.
  const std::shared_ptr<const OpenState> opened = impl_->state();
  for (size_t i = 0; i < blocks.size(); ++i) {
    absl::StatusOr<PutItem> item = PutItemOf(static_cast<uint32_t>(i), blocks[i], impl_->cache().spec, opened->info);
    if (item.ok()) {
      pending.push_back(*std::move(item));
    } else {
      results[i].status = item.status();
    }
  }
  if (pending.empty()) return results;
  const absl::Status status =
      impl_->Call(options, [&](Connection* connection, const OpenState& state, TimePoint deadline) {
        return PutOnce(connection, impl_->clock(), state, deadline, &pending, &results);
      });
  for (const PutItem& item : pending) {
    if (results[item.number].status.ok()) results[item.number].status = status;
  }
  return results;
}

std::vector<GetResult> Cache::Get(std::span<const GetTarget> targets, const GetOptions& get,
                                  const CallOptions& options) {
  std::vector<GetResult> results(targets.size());
  std::vector<size_t> pending;  // Without a result that is final.
  const absl::StatusOr<std::vector<PlanePiece>> planes = PlanesOf(impl_->cache().spec, impl_->state()->info, get);
  for (size_t i = 0; i < targets.size(); ++i) {
    results[i].status = CheckTarget(targets[i], planes);
    if (results[i].status.ok()) pending.push_back(i);
  }
  if (pending.empty()) return results;
  const absl::Status status =
      impl_->Call(options, [&](Connection* connection, const OpenState& state, TimePoint deadline) {
        return GetOnce(connection, impl_->clock(), state, get, deadline, targets,
                       planes.ok() ? std::span<const PlanePiece>(*planes) : std::span<const PlanePiece>(), &pending,
                       &results);
      });
  for (const size_t index : pending) results[index].status = status;
  return results;
}

absl::StatusOr<uint32_t> Cache::Release(std::span<const std::string> lease_tokens, const CallOptions& options) {
  uint32_t released = 0;
  NQKV_RETURN_IF_ERROR(
      impl_->Call(options, [&](Connection* connection, const OpenState& state, TimePoint deadline) -> absl::Status {
        const size_t tokens_max = state.info.release_tokens_max > 0 ? state.info.release_tokens_max : SIZE_MAX;
        while (!lease_tokens.empty()) {
          const std::span<const std::string> batch = lease_tokens.first(std::min(tokens_max, lease_tokens.size()));
          v1::ReleaseRequest request;
          for (const std::string& token : batch) request.add_lease_tokens(token);
          v1::ReleaseResponse response;
          grpc::ClientContext context;
          SetDeadline(&context, deadline, impl_->clock());
          absl::Status status = FromGrpc(connection->stub().Release(&context, request, &response));
          if (!status.ok()) return status;
          released += response.released();
          lease_tokens = lease_tokens.subspan(batch.size());
        }
        return absl::OkStatus();
      }));
  return released;
}

absl::Status Cache::Touch(uint32_t layer_group, std::span<const std::string> keys, const CallOptions& options) {
  return impl_->Call(options, [&](Connection* connection, const OpenState& state, TimePoint deadline) -> absl::Status {
    // From the last batch to the first, as within each.
    const size_t keys_max = state.info.delete_keys_max > 0 ? state.info.delete_keys_max : SIZE_MAX;
    while (!keys.empty()) {
      const std::span<const std::string> batch = keys.last(std::min(keys_max, keys.size()));
      v1::TouchRequest request;
      request.set_cache_id(state.cache_id);
      request.set_layer_group(layer_group);
      for (const std::string& key : batch) request.add_keys(key);
      v1::TouchResponse response;
      grpc::ClientContext context;
      SetDeadline(&context, deadline, impl_->clock());
      NQKV_RETURN_IF_ERROR(FromGrpc(connection->stub().Touch(&context, request, &response)));
      keys = keys.first(keys.size() - batch.size());
    }
    return absl::OkStatus();
  });
}

absl::StatusOr<Removed> Cache::Delete(uint32_t layer_group, std::span<const std::string> keys,
                                      const CallOptions& options) {
  Removed removed;
  NQKV_RETURN_IF_ERROR(
      impl_->Call(options, [&](Connection* connection, const OpenState& state, TimePoint deadline) -> absl::Status {
        const size_t keys_max = state.info.delete_keys_max > 0 ? state.info.delete_keys_max : SIZE_MAX;
        while (!keys.empty()) {
          const std::span<const std::string> batch = keys.first(std::min(keys_max, keys.size()));
          v1::DeleteRequest request;
          request.set_cache_id(state.cache_id);
          request.set_layer_group(layer_group);
          for (const std::string& key : batch) request.add_keys(key);
          grpc::ClientContext context;
          SetDeadline(&context, deadline, impl_->clock());
          v1::DeleteResponse response;
          absl::Status deleted = FromGrpc(connection->stub().Delete(&context, request, &response));
          if (!deleted.ok()) return deleted;
          removed.blocks += response.deleted_blocks();
          removed.bytes += response.freed_bytes();
          keys = keys.subspan(batch.size());  // Another attempt goes on from here.
        }
        return absl::OkStatus();
      }));
  return removed;
}

absl::StatusOr<Removed> Cache::Clear(const CallOptions& options) {
  v1::ClearResponse response;
  NQKV_RETURN_IF_ERROR(impl_->Call(options, [&](Connection* connection, const OpenState& state, TimePoint deadline) {
    v1::ClearRequest request;
    request.set_cache_id(state.cache_id);
    grpc::ClientContext context;
    SetDeadline(&context, deadline, impl_->clock());
    return FromGrpc(connection->stub().Clear(&context, request, &response));
  }));
  return Removed{.blocks = response.deleted_blocks(), .bytes = response.freed_bytes()};
}

class Client::Impl {
 public:
  Impl(std::shared_ptr<Channel> channel, const ClientOptions& options)
      : channel_(std::move(channel)), options_(options) {}

  absl::StatusOr<std::shared_ptr<const OpenState>> Open(const CacheOptions& cache, const CallOptions& options) {
    Clock* clock = channel_->clock();
    const v1::OpenCacheRequest request = ToProto(cache);
    Retry retry(options_.retry, DeadlineOf(options_, options, *clock), clock);
    for (;;) {
      auto state = client::Open(channel_.get(), request, retry.deadline(), *clock);
      if (state.ok() || !retry.Again(state.status())) return state;
    }
  }

  const std::shared_ptr<Channel>& channel() const { return channel_; }
  const ClientOptions& options() const { return options_; }

 private:
  const std::shared_ptr<Channel> channel_;
  const ClientOptions options_;
};

Client::Client(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Client::~Client() = default;

absl::StatusOr<std::unique_ptr<Client>> Client::Connect(const std::string& server, const ClientOptions& options) {
  NQKV_RETURN_IF_ERROR(ValidateRetryPolicy(options.retry));
  if (options.timeout.count() <= 0) return absl::InvalidArgumentError("timeout: must be above 0");
  NQKV_ASSIGN_OR_RETURN(std::shared_ptr<Channel> channel, Channel::Create(server));
  return std::unique_ptr<Client>(new Client(std::make_unique<Impl>(std::move(channel), options)));
}

absl::StatusOr<std::unique_ptr<Cache>> Client::OpenCache(const CacheOptions& cache, const CallOptions& options) {
  NQKV_ASSIGN_OR_RETURN(auto state, impl_->Open(cache, options));
  return std::unique_ptr<Cache>(
      new Cache(std::make_unique<Cache::Impl>(impl_->channel(), impl_->options(), cache, std::move(state))));
}

absl::StatusOr<std::unique_ptr<Session>> Client::OpenSession(const SessionOptions& session,
                                                             const CallOptions& options) {
  auto opened = std::make_unique<Session::Impl>(impl_->channel(), session.owner);
  NQKV_RETURN_IF_ERROR(opened->Open(DeadlineOf(impl_->options(), options, *impl_->channel()->clock())));
  return std::unique_ptr<Session>(new Session(std::move(opened)));
}

CacheSpec UniformSpec(const std::string& model, uint32_t layers, uint32_t kv_heads, uint32_t head_channels, Dtype dtype,
                      uint32_t block_tokens) {
  LayerGroup group{.id = 0, .kind = GroupKind::kFull, .block_tokens = block_tokens, .planes = {}};
  for (uint32_t layer = 0; layer < layers; ++layer) {
    for (const PlaneRole role : {PlaneRole::kKey, PlaneRole::kValue}) {
      group.planes.push_back(
          {.layer = layer, .role = role, .heads = kv_heads, .channels = head_channels, .dtype = dtype});
    }
  }
  CacheSpec spec;
  spec.model = model;
  spec.layer_groups.push_back(std::move(group));
  return spec;
}

std::vector<std::string> ChainKeys(std::span<const uint32_t> tokens, uint32_t block_tokens, const KeyInputs& inputs) {
  nqkv::KeyInputs own{.adapter_digest = inputs.adapter_digest, .salt = inputs.salt, .items = {}};
  for (const MultimodalItem& item : inputs.items) {
    own.items.push_back({.id = item.id, .token_begin = item.token_begin, .token_end = item.token_end});
  }
  return nqkv::ChainKeys(tokens, block_tokens, own);
}

bool TuneMalloc() {
#ifdef __GLIBC__
  return mallopt(M_MMAP_THRESHOLD, 1 << 30) == 1 && mallopt(M_TRIM_THRESHOLD, 0x7fffffff) == 1 &&
         mallopt(M_TOP_PAD, 16 << 20) == 1 && mallopt(M_ARENA_MAX, 1) == 1;
#else
  return false;
#endif
}

}  // namespace nqkv::client
