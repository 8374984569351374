// Takes in the request of a unary call or a Get: bounded, in the budget, checked, and only then parsed.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "google/protobuf/message_lite.h"
#include "service/byte_budget.h"
#include "service/call_environment.h"
#include "service/call_message.h"
#include "service/request_shape.h"

namespace nqkv {

// Larger ones are parsed and answered by a worker: a handler has microseconds.
inline constexpr uint64_t kInlineRequestBytesMax = uint64_t{64} << 10;

// Takes the message's bytes into the budget.
//
// Errors:
//   RESOURCE_EXHAUSTED  the message is over the limit, or too many bytes are in flight (carries RetryInfo). Counted.
absl::StatusOr<ByteBudget::Lease> AdmitRequest(const CallEnvironment& environment, ByteBudget* budget,
                                               const IncomingMessage& message);

// Fills `request`, and takes into the budget what it and what a call makes of it hold.
//
// Errors: those of RequestShape::Check, INVALID_ARGUMENT for a string that is not UTF-8, and
//   RESOURCE_EXHAUSTED  too many bytes in flight; carries RetryInfo. Counted.
absl::StatusOr<ByteBudget::Lease> ParseRequest(const CallEnvironment& environment, ByteBudget* budget,
                                               const RequestShape& shape, const IncomingMessage& message,
                                               google::protobuf::MessageLite* request);

}  // namespace nqkv
