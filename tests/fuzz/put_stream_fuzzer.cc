// Any messages on a Put stream are stored whole or refused, and nothing of them is left behind.
//
// The input is a piece size and messages, each with its length before it; the cache's id is put in front of each.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "service/call_environment.h"
#include "service/put_stream.h"
#include "spdlog/spdlog.h"

namespace nqkv {
namespace {

void Check(bool holds) {
  if (!holds) std::abort();
}

// Pieces in memory of their own, so that the address sanitizer sees a byte too many.
class PieceMessage final : public IncomingMessage {
 public:
  PieceMessage(const std::string& bytes, size_t piece_bytes) {
    for (size_t begin = 0; begin < bytes.size(); begin += piece_bytes) {
      const auto* from = reinterpret_cast<const std::byte*>(bytes.data()) + begin;
      memory_.emplace_back(from, from + std::min(piece_bytes, bytes.size() - begin));
    }
    for (const std::vector<std::byte>& piece : memory_) pieces_.push_back(piece);
  }
  std::span<const std::span<const std::byte>> pieces() const override { return pieces_; }

 private:
  std::vector<std::vector<std::byte>> memory_;
  std::vector<std::span<const std::byte>> pieces_;
};

// A service with one cache of one layer: planes of 16 bytes, blocks of two.
struct Service {
  Metrics metrics;
  std::unique_ptr<BlockStore> store = *BlockStore::Create({.host_bytes = uint64_t{1} << 20});
  CacheRegistry caches{{.spec = {.block_raw_bytes_max = 1 << 20, .plane_raw_bytes_max = 1 << 20},
                        .caches_max = 4,
                        .shards_max = 4,
                        .bytes_max = 1 << 20},
                       store.get(),
                       &metrics};
  PresenceWaiters waiters{4};
  CallEnvironment environment;
  std::shared_ptr<ByteBudget> reserved = std::make_shared<ByteBudget>(uint64_t{1} << 18);
  v1::PutRequest prefix;

  Service() {
    spdlog::set_level(spdlog::level::off);
    environment.store = store.get();
    environment.waiters = &waiters;
    environment.caches = &caches;
    environment.budget = std::make_shared<ByteBudget>(uint64_t{1} << 20);
    environment.metrics = &metrics;
    environment.limits.put_open_blocks_max = 4;
    v1::OpenCacheRequest request;
    request.set_name("cache");
    request.mutable_spec()->set_model("model");
    v1::LayerGroup* group = request.mutable_spec()->add_layer_groups();
    group->set_kind(v1::LAYER_GROUP_KIND_FULL);
    group->set_block_tokens(1);
    for (const v1::PlaneRole role : {v1::PLANE_ROLE_KEY, v1::PLANE_ROLE_VALUE}) {
      v1::PlaneSpec* plane = group->add_planes();
      plane->set_role(role);
      plane->set_heads(1);
      plane->set_channels(8);
      plane->set_dtype(v1::DTYPE_FLOAT16);
    }
    prefix.set_cache_id(caches.Open({}, request)->cache->wire_id());
  }
};

void PutMessages(Service& service, const uint8_t* data, size_t size) {
  const size_t piece_bytes = data[0] % 32 + 1;
  ++data, --size;
  PutStream stream(&service.environment,
                   {.tenant = {}, .payload = service.environment.budget, .reserved = service.reserved});
  v1::PutResponse response;
  absl::Status status;
  while (size > 0 && status.ok()) {
    const size_t length = std::min<size_t>(data[0], size - 1);
    const std::string bytes = service.prefix.SerializeAsString() + std::string(data + 1, data + 1 + length);
    status = stream.Take(PieceMessage(bytes, piece_bytes), &response);
    data += length + 1;
    size -= length + 1;
  }
  stream.End(&response);
  Check(stream.open_blocks() == 0);
  for (const v1::BlockPutResult& result : response.results()) {
    Check((result.status().code() == 0) == (result.outcome() != v1::PUT_OUTCOME_UNSPECIFIED));
  }
}

}  // namespace
}  // namespace nqkv

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static nqkv::Service service;
  if (size < 1) return 0;
  nqkv::PutMessages(service, data, size);
  nqkv::Check(service.environment.budget->used_bytes() == 0);
  nqkv::Check(service.reserved->used_bytes() == 0);
  nqkv::Check(service.store->Stats().reserved_bytes == 0);
  return 0;
}
