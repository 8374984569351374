// What a request may hold, checked on its wire form: what is too much or unknown is refused before it takes memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "google/protobuf/descriptor.h"
#include "service/metrics.h"
#include "service/options.h"

namespace nqkv {

// A bound on a repeated field, counted over the whole message.
struct ItemLimit {
  absl::string_view field;  // Full name, such as "nqkv.v1.KeyChain.keys".
  uint64_t items_max = 0;
};

// Thread-safe. An empty repeated message takes 2 bytes on the wire and a hundred parsed, so a limit on the wire bytes
// alone bounds nothing.
class RequestShape {
 public:
  static constexpr uint64_t kItemsMax = 65'536;  // Of a repeated field without a limit of its own.

  explicit RequestShape(const google::protobuf::Descriptor* request, std::span<const ItemLimit> limits = {});

  // Walks over the message, whose bytes lie in `pieces`, and returns about how much memory it takes when it is parsed.
  // A message that passes is parsed without fail unless one of its strings is not UTF-8.
  //
  // Errors:
  //   INVALID_ARGUMENT  not such a message, or too many items; the field is named.
  //   UNIMPLEMENTED     a field number that the contract does not have: one of a later version; it is named.
  absl::StatusOr<uint64_t> Check(std::span<const std::span<const std::byte>> pieces) const;

  // INVALID_ARGUMENT "malformed message: not a GetRequest: " and why.
  absl::Status Malformed(absl::string_view why) const;

 private:
  friend class ShapeWalk;
  struct Type;
  struct Field {
    absl::string_view name;         // Empty: the type has no field of this number.
    int wire_type = 0;              // Of one value.
    bool is_packable = false;       // Repeated numbers may come in one length-delimited value too.
    const Type* message = nullptr;  // What the field holds when that is a message.
    size_t counter = 0;             // Of a repeated field; 0: not repeated.
    uint64_t items_max = UINT64_MAX;
    uint64_t item_bytes = 0;  // Memory of one parsed value, beside the bytes of a string.
  };
  struct Type {
    std::vector<Field> fields;  // By number.
  };

  const Type* AddType(const google::protobuf::Descriptor* type, std::span<const ItemLimit> limits);
  Field MakeField(const google::protobuf::FieldDescriptor* field, std::span<const ItemLimit> limits);

  const std::string name_;
  std::map<const google::protobuf::Descriptor*, std::unique_ptr<Type>> types_;
  size_t counters_ = 1;  // The first is never used.
  const Type* root_ = nullptr;
};

// The limits that the contract and OpenCache tell. `rpc` is any but Put.
RequestShape ShapeOf(Rpc rpc, const ServiceLimits& limits);
// Of all that comes before a PutRequest's payload.
const RequestShape& PutShape();

}  // namespace nqkv
