// The library's plain structs <-> the wire's messages.
//
// Numbers of enums are equal on both sides; what comes from a server is checked before it becomes an enum.
#pragma once

#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "client/nqkv.h"
#include "nqkv/v1/kv_cache.pb.h"

namespace nqkv::client {

v1::Range ToProto(const Range& range);
v1::CacheSpec ToProto(const CacheSpec& spec);
v1::OpenCacheRequest ToProto(const CacheOptions& options);
v1::LookupQuery ToProto(const LookupQuery& query);

// INVALID_ARGUMENT naming the field when the message has what the library has no word for. For specs from files.
absl::StatusOr<CacheSpec> FromProto(const v1::CacheSpec& spec);

CacheInfo FromProto(const v1::OpenCacheResponse& response);
PutResult FromProto(const v1::BlockPutResult& result);
// All but the payload's sizes, which the stream checks.
GetResult FromProto(const v1::BlockGetResult& result);

// INTERNAL when the reply does not fit the query.
absl::StatusOr<LookupResult> FromProto(const v1::LookupResult& result, const LookupQuery& query);

}  // namespace nqkv::client
