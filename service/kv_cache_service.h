// The KvCache service on gRPC's callback API.
#pragma once

#include "nqkv/v1/kv_cache.grpc.pb.h"
#include "service/cache_calls.h"
#include "service/call_environment.h"
#include "service/tenants.h"

namespace nqkv {

// Put and Get are raw byte methods, so that payloads are never copied into messages; the rest are generated ones.
using KvCacheBase = v1::KvCache::WithCallbackMethod_OpenCache<v1::KvCache::WithCallbackMethod_Lookup<
    v1::KvCache::WithRawCallbackMethod_Put<v1::KvCache::WithRawCallbackMethod_Get<
        v1::KvCache::WithCallbackMethod_Delete<v1::KvCache::WithCallbackMethod_Clear<v1::KvCache::Service>>>>>>;

// Thread-safe. No handler blocks: whatever takes longer than microseconds is a worker's.
class KvCacheService final : public KvCacheBase {
 public:
  // Both must outlive the service.
  KvCacheService(const CallEnvironment* environment, const Tenants* tenants)
      : environment_(environment), tenants_(tenants), calls_(environment) {}

  grpc::ServerUnaryReactor* OpenCache(grpc::CallbackServerContext* context, const v1::OpenCacheRequest* request,
                                      v1::OpenCacheResponse* response) override;
  grpc::ServerUnaryReactor* Lookup(grpc::CallbackServerContext* context, const v1::LookupRequest* request,
                                   v1::LookupResponse* response) override;
  grpc::ServerUnaryReactor* Delete(grpc::CallbackServerContext* context, const v1::DeleteRequest* request,
                                   v1::DeleteResponse* response) override;
  grpc::ServerUnaryReactor* Clear(grpc::CallbackServerContext* context, const v1::ClearRequest* request,
                                  v1::ClearResponse* response) override;
  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* Put(grpc::CallbackServerContext* context) override;
  grpc::ServerWriteReactor<grpc::ByteBuffer>* Get(grpc::CallbackServerContext* context,
                                                  const grpc::ByteBuffer* request) override;

 private:
  const CallEnvironment* const environment_;
  const Tenants* const tenants_;
  const CacheCalls calls_;
};

}  // namespace nqkv
