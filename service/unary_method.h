// The unary rpcs as bytes in and bytes out, by one template.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "kernels/status_macros.h"
#include "service/cache_calls.h"
#include "service/lookup_call.h"
#include "service/request_check.h"
#include "service/request_parser.h"
#include "service/request_shape.h"

namespace nqkv {

// Thread-safe once it is made.
struct UnaryMethod {
  // Parses a message, does what it asks for, and returns the reply's bytes. `lease` gets what the request holds.
  using Answer = absl::AnyInvocable<absl::StatusOr<std::string>(
      const Tenant& tenant, ByteBudget* budget, const IncomingMessage& message, ByteBudget::Lease* lease) const>;

  // In place of `answer`, for a method that may wait: what it returns is started, and answers by `done`, once.
  using Done = absl::AnyInvocable<void(absl::StatusOr<std::string> reply)>;
  using Begin = absl::AnyInvocable<absl::StatusOr<std::shared_ptr<LookupCall>>(
      const Tenant& tenant, ByteBudget* budget, const IncomingMessage& message, ByteBudget::Lease* lease, Done done)
                                       const>;

  Rpc rpc;
  bool is_slow = false;  // Always a worker's, however small the message.
  Answer answer;
  Begin begin = nullptr;
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

// `environment` must outlive what is returned.
inline UnaryMethod MakeLookupMethod(const CallEnvironment* environment) {
  return {
      .rpc = Rpc::kLookup,
      .answer = nullptr,
      .begin = [environment, shape = ShapeOf(Rpc::kLookup, environment->limits)](
                   const Tenant& tenant, ByteBudget* budget, const IncomingMessage& message, ByteBudget::Lease* lease,
                   UnaryMethod::Done done) -> absl::StatusOr<std::shared_ptr<LookupCall>> {
        v1::LookupRequest request;
        NQKV_ASSIGN_OR_RETURN(*lease, ParseRequest(*environment, budget, shape, message, &request));
        NQKV_RETURN_IF_ERROR(CheckRequest(request));
        NQKV_ASSIGN_OR_RETURN(PreparedLookup lookup, PreparedLookup::Prepare(environment, tenant, request));
        auto response = std::make_shared<v1::LookupResponse>();
        auto reply = [response, done = std::move(done)](const absl::Status& status) mutable {
          status.ok() ? done(response->SerializeAsString()) : done(status);
        };
        return std::make_shared<LookupCall>(environment, std::move(lookup), response.get(), std::move(reply));
      }};
}

struct UnaryMethods {
  // `environment` must outlive the methods.
  explicit UnaryMethods(const CallEnvironment* environment)
      : open_cache(MakeUnaryMethod(environment, Rpc::kOpenCache, true, &CacheCalls::OpenCache)),
        lookup(MakeLookupMethod(environment)),
        release(MakeUnaryMethod(environment, Rpc::kRelease, true, &CacheCalls::Release)),
        touch(MakeUnaryMethod(environment, Rpc::kTouch, false, &CacheCalls::Touch)),
        delete_blocks(MakeUnaryMethod(environment, Rpc::kDelete, false, &CacheCalls::Delete)),
        clear(MakeUnaryMethod(environment, Rpc::kClear, true, &CacheCalls::Clear)) {}

  const UnaryMethod open_cache;
  const UnaryMethod lookup;
  const UnaryMethod release;
  const UnaryMethod touch;
  const UnaryMethod delete_blocks;
  const UnaryMethod clear;
};

}  // namespace nqkv
