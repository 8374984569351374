// The unary calls of the KvCache service: a request in, a response or a status out. Knows no transport.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
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
  // Answers at once, however long a query would wait: that is LookupCall's.
  absl::Status Lookup(const Tenant& tenant, const v1::LookupRequest& request, v1::LookupResponse* response) const;
  absl::Status Release(const Tenant& tenant, const v1::ReleaseRequest& request, v1::ReleaseResponse* response) const;
  absl::Status Touch(const Tenant& tenant, const v1::TouchRequest& request, v1::TouchResponse* response) const;
  absl::Status Delete(const Tenant& tenant, const v1::DeleteRequest& request, v1::DeleteResponse* response) const;
  absl::Status Clear(const Tenant& tenant, const v1::ClearRequest& request, v1::ClearResponse* response) const;

 private:
  // The keys of a batch; INVALID_ARGUMENT names what is wrong with them.
  absl::StatusOr<std::vector<BlockKey>> ResolveKeys(const Cache& cache, uint32_t layer_group,
                                                    const google::protobuf::RepeatedPtrField<std::string>& keys) const;

  const CallEnvironment* const environment_;
};

}  // namespace nqkv
