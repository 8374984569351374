// Any request is answered or refused: the first byte picks the rpc, the rest is its message.
#include <cstdint>
#include <memory>
#include <string>

#include "service/cache_calls.h"
#include "service/call_environment.h"
#include "service/get_stream.h"
#include "spdlog/spdlog.h"

namespace nqkv {
namespace {

struct Service {
  Metrics metrics;
  std::unique_ptr<BlockStore> store = *BlockStore::Create({.host_bytes = uint64_t{1} << 20});
  CacheRegistry caches{{.spec = {.block_raw_bytes_max = 1 << 20, .plane_raw_bytes_max = 1 << 20},
                        .caches_max = 4,
                        .shards_max = 4,
                        .bytes_max = 1 << 20},
                       store.get(),
                       &metrics};
  SteadyClock clock;
  PresenceWaiters waiters{4};
  LeaseTable leases{LeaseLimits(), &clock};
  CallEnvironment environment;

  Service() {
    spdlog::set_level(spdlog::level::off);
    environment.store = store.get();
    environment.leases = &leases;
    environment.waiters = &waiters;
    environment.caches = &caches;
    environment.metrics = &metrics;
  }

  // Ids are random: a request's small number names the cache of that place.
  void PickCache(uint64_t cache_id, uint64_t* picked) const {
    const auto list = caches.List();
    if (cache_id < list.size()) *picked = list[cache_id]->wire_id();
  }
};

template <typename Request, typename Call>
void Answer(const Service& service, const uint8_t* data, size_t size, Call call) {
  Request request;
  if (!request.ParseFromArray(data, static_cast<int>(size))) return;
  if constexpr (requires { request.set_cache_id(0); }) {
    uint64_t cache_id = request.cache_id();
    service.PickCache(cache_id, &cache_id);
    request.set_cache_id(cache_id);
  }
  call(request).IgnoreError();
}

void AnswerAny(const Service& service, const uint8_t* data, size_t size) {
  const CacheCalls calls(&service.environment);
  const Tenant tenant;
  const uint8_t rpc = data[0] % 7;
  ++data, --size;
  if (rpc == 0) {
    v1::OpenCacheResponse response;
    Answer<v1::OpenCacheRequest>(service, data, size,
                                 [&](const auto& request) { return calls.OpenCache(tenant, request, &response); });
  } else if (rpc == 1) {
    v1::LookupResponse response;
    Answer<v1::LookupRequest>(service, data, size,
                              [&](const auto& request) { return calls.Lookup(tenant, request, &response); });
  } else if (rpc == 2) {
    v1::DeleteResponse response;
    Answer<v1::DeleteRequest>(service, data, size,
                              [&](const auto& request) { return calls.Delete(tenant, request, &response); });
  } else if (rpc == 3) {
    v1::ClearResponse response;
    Answer<v1::ClearRequest>(service, data, size,
                             [&](const auto& request) { return calls.Clear(tenant, request, &response); });
  } else if (rpc == 5) {
    v1::ReleaseResponse response;
    Answer<v1::ReleaseRequest>(service, data, size,
                               [&](const auto& request) { return calls.Release(tenant, request, &response); });
  } else if (rpc == 6) {
    v1::TouchResponse response;
    Answer<v1::TouchRequest>(service, data, size,
                             [&](const auto& request) { return calls.Touch(tenant, request, &response); });
  } else {
    Answer<v1::GetRequest>(service, data, size, [&](const auto& request) -> absl::Status {
      auto stream = GetStream::Open(&service.environment, tenant, request);
      if (!stream.ok()) return stream.status();
      while (!(*stream)->done()) {
        if (const auto message = (*stream)->Next(nullptr); !message.ok()) return message.status();
      }
      return absl::OkStatus();
    });
  }
}

}  // namespace
}  // namespace nqkv

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const nqkv::Service service;
  if (size < 1) return 0;
  nqkv::AnswerAny(service, data, size);
  return 0;
}
