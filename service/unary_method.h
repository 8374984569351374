// The unary rpcs as bytes in and bytes out, by one template.
#pragma once

#include <string>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "kernels/status_macros.h"
#include "service/cache_calls.h"
#include "service/request_parser.h"
#include "service/request_shape.h"

namespace nqkv {

// Thread-safe once it is made.
struct UnaryMethod {
  // Parses a message, does what it asks for, and returns the reply's bytes. `lease` gets what the request holds.
  using Answer = absl::AnyInvocable<absl::StatusOr<std::string>(
      const Tenant& tenant, ByteBudget* budget, const IncomingMessage& message, ByteBudget::Lease* lease) const>;

  Rpc rpc;
  bool is_slow = false;  // Always a worker's, however small the message.
  Answer answer;
};

// `environment` must outlive what is returned.
template <typename Request, typename Response>
UnaryMethod MakeUnaryMethod(const CallEnvironment* environment, Rpc rpc, bool is_slow,
                            absl::Status (CacheCalls::*call)(const Tenant&, const Request&, Response*) const) {
  return {rpc, is_slow,
          [environment, call, calls = CacheCalls(environment), shape = ShapeOf(rpc, environment->limits)](
              const Tenant& tenant, ByteBudget* budget, const IncomingMessage& message,
              ByteBudget::Lease* lease) -> absl::StatusOr<std::string> {
            Request request;
            NQKV_ASSIGN_OR_RETURN(*lease, ParseRequest(*environment, budget, shape, message, &request));
            Response response;
            NQKV_RETURN_IF_ERROR((calls.*call)(tenant, request, &response));
            return response.SerializeAsString();
          }};
}

struct UnaryMethods {
  // `environment` must outlive the methods.
  explicit UnaryMethods(const CallEnvironment* environment)
      : open_cache(MakeUnaryMethod(environment, Rpc::kOpenCache, true, &CacheCalls::OpenCache)),
        lookup(MakeUnaryMethod(environment, Rpc::kLookup, false, &CacheCalls::Lookup)),
        delete_blocks(MakeUnaryMethod(environment, Rpc::kDelete, false, &CacheCalls::Delete)),
        clear(MakeUnaryMethod(environment, Rpc::kClear, true, &CacheCalls::Clear)) {}

  const UnaryMethod open_cache;
  const UnaryMethod lookup;
  const UnaryMethod delete_blocks;
  const UnaryMethod clear;
};

}  // namespace nqkv
