#include "service/request_check.h"

#include <array>
#include <string>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/reflection.h"
#include "kernels/status_macros.h"
#include "proto/rpc_status.h"

namespace nqkv {
namespace {

using google::protobuf::EnumValueDescriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

constexpr std::array kNotBuiltFields = std::to_array<NotBuiltField>({
    {"nqkv.v1.LayerGroup", "window_tokens"},
    {"nqkv.v1.OpenCacheRequest", "sentinel_hash"},
    {"nqkv.v1.LookupQuery", "max_floor_error"},
    {"nqkv.v1.KeyChain", "run_first_key"},
    {"nqkv.v1.PutRequest", "session_id"},
    {"nqkv.v1.PutBegin", "parent"},
    {"nqkv.v1.PutBegin", "expected_reuse"},
    {"nqkv.v1.PutBegin", "annotations"},
    {"nqkv.v1.PutBegin", "region"},
    {"nqkv.v1.GetRequest", "session_id"},
    {"nqkv.v1.GetRequest", "max_floor_error"},
    {"nqkv.v1.GetRequest", "regions"},
    {"nqkv.v1.GetRequest", "layer_by_layer"},
});

constexpr std::array kNotBuiltValues = std::to_array<NotBuiltValue>({
    {"nqkv.v1.Dtype", "DTYPE_FLOAT8_E4M3"},
    {"nqkv.v1.Dtype", "DTYPE_FLOAT8_E5M2"},
    {"nqkv.v1.LayerGroupKind", "LAYER_GROUP_KIND_SLIDING"},
    {"nqkv.v1.LayerGroupKind", "LAYER_GROUP_KIND_CHUNKED"},
    {"nqkv.v1.LayerGroupKind", "LAYER_GROUP_KIND_STATE"},
    {"nqkv.v1.LayerGroupKind", "LAYER_GROUP_KIND_OPAQUE"},
    {"nqkv.v1.PayloadForm", "PAYLOAD_FORM_ENCODED"},
});

// The tables as descriptors, found once: a comparison of pointers a field.
class NotBuilt {
 public:
  static const NotBuilt& Get() {
    static const NotBuilt instance;
    return instance;
  }

  bool Contains(const FieldDescriptor* field) const { return fields_.contains(field); }
  bool Contains(const EnumValueDescriptor* value) const { return values_.contains(value); }

 private:
  NotBuilt() {
    const auto* pool = google::protobuf::DescriptorPool::generated_pool();
    for (const NotBuiltField& entry : kNotBuiltFields) {
      fields_.insert(
          pool->FindMessageTypeByName(std::string(entry.message))->FindFieldByName(std::string(entry.field)));
    }
    for (const NotBuiltValue& entry : kNotBuiltValues) {
      values_.insert(pool->FindEnumTypeByName(std::string(entry.type))->FindValueByName(std::string(entry.value)));
    }
  }

  absl::flat_hash_set<const FieldDescriptor*> fields_;
  absl::flat_hash_set<const EnumValueDescriptor*> values_;
};

absl::Status CheckEnum(const FieldDescriptor* field, int number, const std::string& path) {
  const EnumValueDescriptor* value = field->enum_type()->FindValueByNumber(number);
  if (value == nullptr) return FieldError(path, absl::StrCat("unknown value ", number));
  if (NotBuilt::Get().Contains(value)) return NotBuiltYet(absl::StrCat(path, " ", value->name()));
  return absl::OkStatus();
}

absl::Status CheckMessage(const Message& message, const std::string& path);

absl::Status CheckField(const Message& message, const FieldDescriptor* field, const std::string& path) {
  if (NotBuilt::Get().Contains(field)) return NotBuiltYet(path);
  const bool is_message = field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE;
  const bool is_enum = field->cpp_type() == FieldDescriptor::CPPTYPE_ENUM;
  if (!is_message && !is_enum) return absl::OkStatus();
  const Reflection* reflection = message.GetReflection();
  if (!field->is_repeated()) {
    return is_enum ? CheckEnum(field, reflection->GetEnumValue(message, field), path)
                   : CheckMessage(reflection->GetMessage(message, field), path);
  }
  for (int i = 0; i < reflection->FieldSize(message, field); ++i) {
    const std::string item = absl::StrCat(path, "[", i, "]");
    NQKV_RETURN_IF_ERROR(is_enum ? CheckEnum(field, reflection->GetRepeatedEnumValue(message, field, i), item)
                                 : CheckMessage(reflection->GetRepeatedMessage(message, field, i), item));
  }
  return absl::OkStatus();
}

absl::Status CheckMessage(const Message& message, const std::string& path) {
  std::vector<const FieldDescriptor*> fields;
  message.GetReflection()->ListFields(message, &fields);
  for (const FieldDescriptor* field : fields) {
    NQKV_RETURN_IF_ERROR(
        CheckField(message, field, path.empty() ? field->name() : absl::StrCat(path, ".", field->name())));
  }
  return absl::OkStatus();
}

}  // namespace

std::span<const NotBuiltField> NotBuiltFields() { return kNotBuiltFields; }
std::span<const NotBuiltValue> NotBuiltValues() { return kNotBuiltValues; }

absl::Status CheckRequest(const Message& request) { return CheckMessage(request, ""); }

}  // namespace nqkv
