// Refuses what no part of the service understands yet, in any request, by one table.
#pragma once

#include <span>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "google/protobuf/message.h"

namespace nqkv {

struct NotBuiltField {
  absl::string_view message;  // Full name.
  absl::string_view field;
};
struct NotBuiltValue {
  absl::string_view type;  // Full name of the enum.
  absl::string_view value;
};

// Everything that a request may not set.
std::span<const NotBuiltField> NotBuiltFields();
std::span<const NotBuiltValue> NotBuiltValues();

// Walks what is set in `request` and in the messages inside it.
//
// Errors:
//   UNIMPLEMENTED     a field or enum value of the tables is set; its path is named, such as "queries[0].lease".
//   INVALID_ARGUMENT  an enum has a number that the contract does not know; its path is named.
absl::Status CheckRequest(const google::protobuf::Message& request);

}  // namespace nqkv
