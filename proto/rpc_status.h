// absl::Status <-> gRPC status, with the google.rpc details that a client can act on.
//
// The codes are the same numbers, so the mapping is a cast. Details travel as payloads of the absl::Status and as
// grpc-status-details-bin on the wire.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "grpcpp/support/status.h"
#include "nqkv/v1/kv_cache.pb.h"

namespace nqkv {

// INVALID_ARGUMENT whose message is "<field>: <description>", with a BadRequest detail.
absl::Status FieldError(absl::string_view field, absl::string_view description);

// UNIMPLEMENTED "<field> is not built yet", with a BadRequest detail.
absl::Status NotBuiltYet(absl::string_view field);

// UNIMPLEMENTED: `message` (a path, or a message's name) sets a field number that the contract does not have; with a
// BadRequest detail.
absl::Status UnknownField(absl::string_view message, uint64_t number);

// `status` with a RetryInfo detail.
absl::Status WithRetry(absl::Status status, absl::Duration delay);

// The delay of the RetryInfo detail; zero when there is none.
absl::Duration RetryDelay(const absl::Status& status);

// All of it stays below the 8 KiB of metadata that a peer takes, since what is larger reaches a client as
// RESOURCE_EXHAUSTED: a message, and each text of a detail, over kStatusTextBytesMax ends with "..." instead.
inline constexpr size_t kStatusTextBytesMax = 1'024;
grpc::Status ToGrpc(const absl::Status& status);
absl::Status FromGrpc(const grpc::Status& status);

// The status of one block of a batch.
void ToProto(const absl::Status& status, v1::Status* out);
absl::Status FromProto(const v1::Status& status);

}  // namespace nqkv
