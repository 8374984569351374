// The unary calls of the KvCache service: a request in, a response or a status out. Knows no transport.
#pragma once

#include "absl/status/status.h"
#include "nqkv/v1/kv_cache.pb.h"
#include "service/call_environment.h"
#include "service/tenants.h"

namespace nqkv {

// Thread-safe, keeps nothing. Errors are those that each rpc's comment lists.
class CacheCalls {
 public:
  // `environment` must outlive the object.
  explicit CacheCalls(const CallEnvironment* environment) : environment_(environment) {}

  absl::Status OpenCache(const Tenant& tenant, const v1::OpenCacheRequest& request,
                         v1::OpenCacheResponse* response) const;
  absl::Status Lookup(const Tenant& tenant, const v1::LookupRequest& request, v1::LookupResponse* response) const;
  absl::Status Delete(const Tenant& tenant, const v1::DeleteRequest& request, v1::DeleteResponse* response) const;
  absl::Status Clear(const Tenant& tenant, const v1::ClearRequest& request, v1::ClearResponse* response) const;

 private:
  const CallEnvironment* const environment_;
};

}  // namespace nqkv
