#include "tests/support/fake_kv_cache.h"

#include <algorithm>
#include <chrono>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server_builder.h"
#include "kernels/codec.h"
#include "proto/rpc_status.h"

namespace nqkv::testing {
namespace {

std::optional<absl::Status> Pop(std::deque<absl::Status>* statuses) {
  if (statuses->empty()) return std::nullopt;
  absl::Status status = std::move(statuses->front());
  statuses->pop_front();
  return status;
}

PlaneShape ShapeOf(const v1::LayerGroup& group, const v1::PlaneSpec& plane) {
  return {.tokens = group.block_tokens(),
          .heads = plane.heads(),
          .channels = plane.channels(),
          .dtype = static_cast<Dtype>(plane.dtype())};
}

uint64_t RawBytes(const v1::LayerGroup& group) {
  uint64_t bytes = 0;
  for (const v1::PlaneSpec& plane : group.planes()) bytes += ShapeOf(group, plane).raw_bytes();
  return bytes;
}

// What a real server says of a plane that it stored raw.
v1::PlaneInfo RawPlane(const v1::LayerGroup& group, const v1::PlaneSpec& plane, const char* bytes) {
  const PlaneShape shape = ShapeOf(group, plane);
  std::vector<std::byte> encoded(EncodedBytes({}, shape));
  const auto head_stride = static_cast<ptrdiff_t>(shape.channels * DtypeBytes(shape.dtype));
  const EncodeResult result = EncodePlane({.source = reinterpret_cast<const std::byte*>(bytes),
                                           .token_stride = head_stride * static_cast<ptrdiff_t>(shape.heads),
                                           .head_stride = head_stride,
                                           .shape = shape,
                                           .codec = {},
                                           .encoded = encoded});
  v1::PlaneInfo info;
  info.set_layer(plane.layer());
  info.set_role(plane.role());
  info.mutable_heads()->set_end(plane.heads());
  info.set_codec(v1::CODEC_RAW);
  info.set_layout(v1::PLANE_LAYOUT_HEAD);
  info.set_stored_bytes(encoded.size());
  info.set_floor_error(result.errors.floor_error);
  info.set_token_norm_error(result.errors.token_norm_error);
  info.set_nmse(result.errors.nmse);
  info.set_crc32c(result.crc32c);
  return info;
}

}  // namespace

FakeKvCache::FakeKvCache() {
  MutexLock lock(&mutex_);
  behaviour_.limits.set_message_bytes_max(4 << 20);
  behaviour_.limits.set_message_bytes_best(1 << 20);
  behaviour_.limits.set_get_keys_max(1024);
  behaviour_.limits.set_delete_keys_max(1024);
  behaviour_.limits.set_lookup_keys_max(65536);
  behaviour_.limits.set_put_open_blocks_max(64);
}

void FakeKvCache::set_behaviour(Behaviour behaviour) {
  MutexLock lock(&mutex_);
  if (behaviour.limits.message_bytes_best() == 0) behaviour.limits.MergeFrom(behaviour_.limits);
  behaviour_ = std::move(behaviour);
}

void FakeKvCache::FailNext(const std::string& rpc, std::vector<absl::Status> statuses) {
  MutexLock lock(&mutex_);
  failures_[rpc].insert(failures_[rpc].end(), statuses.begin(), statuses.end());
}

void FakeKvCache::FailNextPutOf(const std::string& key, std::vector<absl::Status> statuses) {
  MutexLock lock(&mutex_);
  put_failures_[key].insert(put_failures_[key].end(), statuses.begin(), statuses.end());
}

void FakeKvCache::BreakNextPutAfter(size_t messages, const absl::Status& status) {
  MutexLock lock(&mutex_);
  break_put_.emplace(messages, status);
}

void FakeKvCache::Restart() {
  MutexLock lock(&mutex_);
  cache_id_ = 0;
  blocks_.clear();
}

size_t FakeKvCache::calls(const std::string& rpc) const {
  MutexLock lock(&mutex_);
  const auto it = calls_.find(rpc);
  return it == calls_.end() ? 0 : it->second;
}

std::vector<std::pair<size_t, uint64_t>> FakeKvCache::put_messages() const {
  MutexLock lock(&mutex_);
  return put_messages_;
}

std::optional<std::string> FakeKvCache::block(const std::string& key) const {
  MutexLock lock(&mutex_);
  const auto it = blocks_.find(key);
  return it == blocks_.end() ? std::nullopt : std::optional(it->second.bytes);
}

std::optional<v1::PutBegin> FakeKvCache::begin_of(const std::string& key) const {
  MutexLock lock(&mutex_);
  const auto it = blocks_.find(key);
  return it == blocks_.end() ? std::nullopt : std::optional(it->second.begin);
}

size_t FakeKvCache::open_blocks_seen() const {
  MutexLock lock(&mutex_);
  return open_blocks_seen_;
}

absl::Status FakeKvCache::Enter(const std::string& rpc, std::optional<uint64_t> cache_id) {
  MutexLock lock(&mutex_);
  ++calls_[rpc];
  if (std::optional<absl::Status> status = Pop(&failures_[rpc])) return *status;
  if (cache_id && (*cache_id == 0 || *cache_id != cache_id_)) return absl::NotFoundError("unknown cache");
  return absl::OkStatus();
}

grpc::Status FakeKvCache::OpenCache(grpc::ServerContext*, const v1::OpenCacheRequest* request,
                                    v1::OpenCacheResponse* response) {
  if (absl::Status status = Enter("OpenCache", std::nullopt); !status.ok()) return ToGrpc(status);
  MutexLock lock(&mutex_);
  response->set_created(cache_id_ == 0);
  if (cache_id_ == 0) cache_id_ = next_cache_id_++;
  spec_ = request->spec();
  response->set_cache_id(cache_id_);
  response->set_shard_id(7);
  *response->mutable_policy() = request->policy();
  *response->mutable_limits() = behaviour_.limits;
  response->set_server_version("fake");
  for (const v1::LayerGroup& group : spec_.layer_groups()) {
    v1::LayerGroupSizes* sizes = response->add_sizes();
    sizes->set_layer_group(group.id());
    sizes->set_raw_bytes(RawBytes(group));
    sizes->mutable_part()->mutable_layers()->set_end(group.planes().rbegin()->layer() + 1);
    sizes->mutable_part()->mutable_heads()->set_end(group.planes(0).heads());
  }
  return grpc::Status::OK;
}

grpc::Status FakeKvCache::Lookup(grpc::ServerContext*, const v1::LookupRequest* request, v1::LookupResponse* response) {
  if (absl::Status status = Enter("Lookup", request->cache_id()); !status.ok()) return ToGrpc(status);
  MutexLock lock(&mutex_);
  for (const v1::LookupQuery& query : request->queries()) {
    v1::LookupResult* result = response->add_results();
    const bool prefix = query.mode() != v1::LOOKUP_MODE_SET;
    for (const v1::KeyChain& chain : query.chains()) {
      v1::GroupMatch* match = result->add_groups();
      match->set_layer_group(chain.layer_group());
      std::string present(static_cast<size_t>(chain.keys_size() + 7) / 8, '\0');
      for (int i = 0; i < chain.keys_size(); ++i) {
        const auto it = blocks_.find(chain.keys(i));
        if (it == blocks_.end() && prefix) break;
        if (it == blocks_.end()) continue;
        present[static_cast<size_t>(i) / 8] |= static_cast<char>(1 << i % 8);
        match->set_matched_blocks(match->matched_blocks() + 1);
        match->set_raw_bytes(match->raw_bytes() + it->second.bytes.size());
        match->set_stored_bytes(match->stored_bytes() + it->second.bytes.size());
      }
      if (!prefix) match->set_present(present);
      result->set_matched_tokens(uint64_t{match->matched_blocks()} * spec_.layer_groups(0).block_tokens());
    }
  }
  return grpc::Status::OK;
}

v1::BlockPutResult FakeKvCache::Store(uint32_t number, Block block) {
  MutexLock lock(&mutex_);
  v1::BlockPutResult result;
  result.set_block(number);
  absl::Status status = Pop(&put_failures_[block.begin.key()]).value_or(absl::OkStatus());
  if (status.ok() && block.begin.payload_bytes() != block.bytes.size()) {
    status = absl::InvalidArgumentError("payload_bytes: not what came");
  }
  ToProto(status, result.mutable_status());
  if (!status.ok()) return result;
  const std::string key = block.begin.key();
  result.set_raw_bytes(block.bytes.size());
  result.set_stored_bytes(block.bytes.size());
  result.set_outcome(blocks_.contains(key) ? v1::PUT_OUTCOME_ALREADY_PRESENT : v1::PUT_OUTCOME_STORED);
  blocks_.insert_or_assign(key, std::move(block));
  return result;
}

grpc::Status FakeKvCache::Put(grpc::ServerContext*, grpc::ServerReaderWriter<v1::PutResponse, v1::PutRequest>* stream) {
  std::map<uint32_t, Block> open;
  v1::PutRequest request;
  std::optional<std::pair<size_t, absl::Status>> breaks;
  for (size_t messages = 0; stream->Read(&request); ++messages) {
    if (messages == 0) {
      if (absl::Status status = Enter("Put", request.cache_id()); !status.ok()) return ToGrpc(status);
      MutexLock lock(&mutex_);
      breaks = std::exchange(break_put_, std::nullopt);
    }
    std::shared_ptr<const std::vector<v1::PutResponse>> script;
    {
      MutexLock lock(&mutex_);
      put_messages_.emplace_back(request.chunks_size(), request.payload().size());
      script = behaviour_.put_script;
    }
    if (script) {
      for (const v1::PutResponse& response : *script) stream->Write(response);
      return grpc::Status::OK;
    }
    if (breaks && messages == breaks->first) return ToGrpc(breaks->second);
    v1::PutResponse response;
    size_t offset = 0;
    for (const v1::PutChunk& chunk : request.chunks()) {
      if (chunk.has_begin() == open.contains(chunk.block()) || chunk.bytes() > request.payload().size() - offset) {
        return ToGrpc(absl::InvalidArgumentError("chunks: contradict themselves"));
      }
      Block& block = open[chunk.block()];
      if (chunk.has_begin()) block.begin = chunk.begin();
      block.bytes.append(request.payload(), offset, chunk.bytes());
      offset += chunk.bytes();
      {
        MutexLock lock(&mutex_);
        open_blocks_seen_ = std::max(open_blocks_seen_, open.size() + static_cast<size_t>(response.results_size()));
      }
      if (block.bytes.size() < block.begin.payload_bytes()) continue;
      *response.add_results() = Store(chunk.block(), std::move(block));
      open.erase(chunk.block());
    }
    if (response.results_size() > 0) stream->Write(response);
  }
  return grpc::Status::OK;
}

v1::BlockGetResult FakeKvCache::ResultOf(const std::string& key, uint32_t layer_group, bool include_planes,
                                         std::string* bytes) {
  MutexLock lock(&mutex_);
  v1::BlockGetResult result;
  const auto it = blocks_.find(key);
  if (it == blocks_.end()) {
    ToProto(absl::NotFoundError("no such block"), result.mutable_status());
    return result;
  }
  *bytes = it->second.bytes;
  result.set_payload_bytes(bytes->size());
  result.set_stored_bytes(bytes->size());
  result.set_tier(v1::TIER_HOST);
  if (!include_planes) return result;
  for (const v1::LayerGroup& group : spec_.layer_groups()) {
    if (group.id() != layer_group || RawBytes(group) != bytes->size()) continue;
    size_t offset = 0;
    for (const v1::PlaneSpec& plane : group.planes()) {
      *result.add_planes() = RawPlane(group, plane, bytes->data() + offset);
      offset += ShapeOf(group, plane).raw_bytes();
    }
  }
  return result;
}

grpc::Status FakeKvCache::Get(grpc::ServerContext*, const v1::GetRequest* request,
                              grpc::ServerWriter<v1::GetResponse>* writer) {
  if (absl::Status status = Enter("Get", request->cache_id()); !status.ok()) return ToGrpc(status);
  Behaviour behaviour;
  {
    MutexLock lock(&mutex_);
    behaviour = behaviour_;
  }
  if (behaviour.get_script) {
    for (const v1::GetResponse& response : *behaviour.get_script) writer->Write(response);
    return grpc::Status::OK;
  }
  struct Reply {
    v1::BlockGetResult result;
    std::string bytes;
    size_t sent = 0;
    bool begun = false;
  };
  std::vector<Reply> replies(static_cast<size_t>(request->chain().keys_size()));
  for (size_t i = 0; i < replies.size(); ++i) {
    replies[i].result = ResultOf(request->chain().keys(static_cast<int>(i)), request->chain().layer_group(),
                                 request->include_planes(), &replies[i].bytes);
  }
  // One chunk a message, of one block after another, or of the blocks by turns.
  for (bool more = true; more;) {
    more = false;
    for (size_t i = 0; i < replies.size(); ++i) {
      Reply& reply = replies[i];
      while (!reply.begun || reply.sent < reply.bytes.size()) {
        const size_t bytes = std::min<size_t>(behaviour.reply_bytes, reply.bytes.size() - reply.sent);
        v1::GetResponse response;
        v1::GetChunk* chunk = response.add_chunks();
        chunk->set_index(static_cast<uint32_t>(i));
        chunk->set_bytes(bytes);
        if (!reply.begun) *chunk->mutable_result() = reply.result;
        response.set_payload(reply.bytes.substr(reply.sent, bytes));
        reply.begun = true;
        reply.sent += bytes;
        if (behaviour.on_get) behaviour.on_get(&response);
        if (!writer->Write(response)) return grpc::Status::CANCELLED;
        if (behaviour.interleave) break;
      }
      more |= reply.sent < reply.bytes.size();
    }
  }
  return grpc::Status::OK;
}

grpc::Status FakeKvCache::Delete(grpc::ServerContext*, const v1::DeleteRequest* request, v1::DeleteResponse* response) {
  if (absl::Status status = Enter("Delete", request->cache_id()); !status.ok()) return ToGrpc(status);
  MutexLock lock(&mutex_);
  for (const std::string& key : request->keys()) {
    const auto it = blocks_.find(key);
    if (it == blocks_.end()) continue;
    response->set_deleted_blocks(response->deleted_blocks() + 1);
    response->set_freed_bytes(response->freed_bytes() + it->second.bytes.size());
    blocks_.erase(it);
  }
  return grpc::Status::OK;
}

grpc::Status FakeKvCache::Clear(grpc::ServerContext*, const v1::ClearRequest* request, v1::ClearResponse* response) {
  if (absl::Status status = Enter("Clear", request->cache_id()); !status.ok()) return ToGrpc(status);
  MutexLock lock(&mutex_);
  response->set_deleted_blocks(blocks_.size());
  blocks_.clear();
  return grpc::Status::OK;
}

FakeServer::FakeServer(grpc::Service* service, const std::string& socket_path) : address_("unix:" + socket_path) {
  grpc::ServerBuilder builder;
  builder.SetMaxReceiveMessageSize(16 << 20);
  builder.AddListeningPort(address_, grpc::InsecureServerCredentials());
  builder.RegisterService(service);
  server_ = builder.BuildAndStart();
}

FakeServer::~FakeServer() {
  if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(1));
}

}  // namespace nqkv::testing
