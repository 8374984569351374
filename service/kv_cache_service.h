// The KvCache service on gRPC's callback API.
#pragma once

#include "nqkv/v1/kv_cache.grpc.pb.h"
#include "service/call_environment.h"
#include "service/request_shape.h"
#include "service/tenants.h"
#include "service/unary_method.h"

namespace nqkv {

// All are raw byte methods: payloads are never copied into messages, and no message is parsed before it is bounded.
using KvCacheBase = v1::KvCache::WithRawCallbackMethod_OpenCache<v1::KvCache::WithRawCallbackMethod_Lookup<
    v1::KvCache::WithRawCallbackMethod_Put<v1::KvCache::WithRawCallbackMethod_Get<
        v1::KvCache::WithRawCallbackMethod_Delete<v1::KvCache::WithRawCallbackMethod_Clear<
            v1::KvCache::WithRawCallbackMethod_Session<v1::KvCache::WithRawCallbackMethod_Release<
                v1::KvCache::WithRawCallbackMethod_Touch<v1::KvCache::Service>>>>>>>>>;

// Thread-safe. No handler blocks: whatever takes longer than microseconds is a worker's.
class KvCacheService final : public KvCacheBase {
 public:
  // Both must outlive the service.
  KvCacheService(const CallEnvironment* environment, const Tenants* tenants)
      : environment_(environment),
        tenants_(tenants),
        methods_(environment),
        get_shape_(ShapeOf(Rpc::kGet, environment->limits)),
        session_shape_(ShapeOf(Rpc::kSession, environment->limits)) {}

  grpc::ServerUnaryReactor* OpenCache(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                      grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Lookup(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                   grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Delete(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                   grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Clear(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                  grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Release(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                    grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Touch(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                  grpc::ByteBuffer* response) override;
  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* Session(grpc::CallbackServerContext* context) override;
  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* Put(grpc::CallbackServerContext* context) override;
  grpc::ServerWriteReactor<grpc::ByteBuffer>* Get(grpc::CallbackServerContext* context,
                                                  const grpc::ByteBuffer* request) override;

 private:
  const CallEnvironment* const environment_;
  const Tenants* const tenants_;
  const UnaryMethods methods_;
  const RequestShape get_shape_;
  const RequestShape session_shape_;
};

}  // namespace nqkv
