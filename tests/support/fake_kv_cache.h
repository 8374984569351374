// An in-process KvCache service that keeps raw blocks in a map: for tests of clients, which script its faults.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "grpcpp/server.h"
#include "nqkv/v1/kv_cache.grpc.pb.h"
#include "storage/mutex.h"

namespace nqkv::testing {

// Thread-safe. Knows FULL and MLA groups, whole blocks, and no ranges.
class FakeKvCache final : public v1::KvCache::Service {
 public:
  // What the server tells when a cache is opened, and how it cuts its replies.
  struct Behaviour {
    v1::Limits limits;
    uint64_t reply_bytes = 1 << 20;                // Payload of one Get message.
    bool interleave = false;                       // Get sends the blocks' chunks by turns.
    std::function<void(v1::GetResponse*)> on_get;  // Changes a reply before it is sent.
    // Null, or what is sent in place of the blocks or results. Pointers since g++ 12 takes optional vectors for
    // uninitialized under the sanitizers.
    std::shared_ptr<std::vector<v1::GetResponse>> get_script;
    std::shared_ptr<std::vector<v1::PutResponse>> put_script;
  };

  FakeKvCache();
  void set_behaviour(Behaviour behaviour);

  // The next calls of this rpc ("Put", ...) end so, before they do anything.
  void FailNext(const std::string& rpc, std::vector<absl::Status> statuses);
  // The next puts of the block with this key get these statuses.
  void FailNextPutOf(const std::string& key, std::vector<absl::Status> statuses);
  // Ends the next Put after so many messages.
  void BreakNextPutAfter(size_t messages, const absl::Status& status);
  // Forgets caches and blocks, as a restarted server does.
  void Restart();

  // What came.
  size_t calls(const std::string& rpc) const;
  std::vector<std::pair<size_t, uint64_t>> put_messages() const;  // Chunks and payload bytes of each.
  std::optional<std::string> block(const std::string& key) const;
  std::optional<v1::PutBegin> begin_of(const std::string& key) const;
  size_t open_blocks_seen() const;  // The most that were begun and not answered.

  grpc::Status OpenCache(grpc::ServerContext*, const v1::OpenCacheRequest*, v1::OpenCacheResponse*) override;
  grpc::Status Lookup(grpc::ServerContext*, const v1::LookupRequest*, v1::LookupResponse*) override;
  grpc::Status Put(grpc::ServerContext*, grpc::ServerReaderWriter<v1::PutResponse, v1::PutRequest>*) override;
  grpc::Status Get(grpc::ServerContext*, const v1::GetRequest*, grpc::ServerWriter<v1::GetResponse>*) override;
  grpc::Status Delete(grpc::ServerContext*, const v1::DeleteRequest*, v1::DeleteResponse*) override;
  grpc::Status Clear(grpc::ServerContext*, const v1::ClearRequest*, v1::ClearResponse*) override;

 private:
  struct Block {
    v1::PutBegin begin;
    std::string bytes;
  };

  // Counts the call; the scripted status, or NOT_FOUND for an unknown cache id other than 0.
  absl::Status Enter(const std::string& rpc, std::optional<uint64_t> cache_id);
  v1::BlockPutResult Store(uint32_t number, Block block);
  v1::BlockGetResult ResultOf(const std::string& key, uint32_t layer_group, bool include_planes, std::string* bytes);

  mutable Mutex mutex_;
  Behaviour behaviour_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, std::deque<absl::Status>> failures_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, std::deque<absl::Status>> put_failures_ ABSL_GUARDED_BY(mutex_);
  std::optional<std::pair<size_t, absl::Status>> break_put_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, size_t> calls_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::pair<size_t, uint64_t>> put_messages_ ABSL_GUARDED_BY(mutex_);
  size_t open_blocks_seen_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t cache_id_ ABSL_GUARDED_BY(mutex_) = 0;  // Of the only cache; 0: none.
  uint64_t next_cache_id_ ABSL_GUARDED_BY(mutex_) = 41;
  v1::CacheSpec spec_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, Block> blocks_ ABSL_GUARDED_BY(mutex_);
};

// Serves a service on "unix:<path>" until it goes.
class FakeServer {
 public:
  FakeServer(grpc::Service* service, const std::string& socket_path);
  ~FakeServer();
  const std::string& address() const { return address_; }

 private:
  std::string address_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace nqkv::testing
