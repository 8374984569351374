#include "proto/spec_fingerprint.h"

#include <algorithm>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "proto/key_chain.h"

namespace nqkv {
namespace {

struct Field {
  std::string path;
  std::string value;  // Canonical bytes.
  std::string shown;
};

std::string LittleEndian(uint32_t value) {
  std::string bytes;
  for (int shift = 0; shift < 32; shift += 8) bytes.push_back(static_cast<char>(value >> shift & 0xff));
  return bytes;
}

// The spec as a list of fields in a fixed order: its canonical form is their concatenation.
class FieldList {
 public:
  explicit FieldList(const v1::CacheSpec& spec) {
    AddText("model", spec.model());
    AddText("revision", spec.revision());
    AddBytes("rope_digest", spec.rope_digest());
    AddBytes("adapter_digest", spec.adapter_digest());
    AddText("key_scheme", spec.key_scheme().empty() ? std::string(kKeyScheme) : spec.key_scheme());
    AddNumber("layer_groups.size", static_cast<uint32_t>(spec.layer_groups_size()));
    for (int i = 0; i < spec.layer_groups_size(); ++i)
      AddGroup(absl::StrCat("layer_groups[", i, "]"), spec.layer_groups(i));
  }

  const std::vector<Field>& fields() const { return fields_; }

 private:
  void AddGroup(const std::string& path, const v1::LayerGroup& group) {
    AddNumber(path + ".id", group.id());
    AddEnum(path + ".kind", group.kind(), v1::LayerGroupKind_Name(group.kind()));
    AddNumber(path + ".block_tokens", group.block_tokens());
    AddNumber(path + ".window_tokens", group.window_tokens());
    AddNumber(path + ".planes.size", static_cast<uint32_t>(group.planes_size()));
    for (int i = 0; i < group.planes_size(); ++i) {
      const v1::PlaneSpec& plane = group.planes(i);
      const std::string plane_path = absl::StrCat(path, ".planes[", i, "]");
      AddNumber(plane_path + ".layer", plane.layer());
      AddEnum(plane_path + ".role", plane.role(), v1::PlaneRole_Name(plane.role()));
      AddNumber(plane_path + ".heads", plane.heads());
      AddNumber(plane_path + ".channels", plane.channels());
      AddEnum(plane_path + ".dtype", plane.dtype(), v1::Dtype_Name(plane.dtype()));
    }
  }
  void AddText(std::string path, const std::string& text) { Add(std::move(path), text, absl::StrCat("'", text, "'")); }
  void AddBytes(std::string path, const std::string& bytes) {
    Add(std::move(path), bytes, absl::BytesToHexString(bytes));
  }
  void Add(std::string path, const std::string& value, std::string shown) {
    fields_.push_back({std::move(path), LittleEndian(static_cast<uint32_t>(value.size())) + value, std::move(shown)});
  }
  void AddNumber(std::string path, uint32_t value) {
    fields_.push_back({std::move(path), LittleEndian(value), absl::StrCat(value)});
  }
  void AddEnum(std::string path, int value, std::string name) {
    fields_.push_back({std::move(path), LittleEndian(static_cast<uint32_t>(value)), std::move(name)});
  }

  std::vector<Field> fields_;
};

const Field* Find(const std::vector<Field>& fields, size_t guess, absl::string_view path) {
  if (guess < fields.size() && fields[guess].path == path) return &fields[guess];
  auto it = std::find_if(fields.begin(), fields.end(), [&](const Field& field) { return field.path == path; });
  return it == fields.end() ? nullptr : &*it;
}

}  // namespace

std::string SpecFingerprint16(const v1::CacheSpec& spec) {
  std::string canonical("nqkv-spec-v1\0", 13);
  const FieldList list(spec);
  for (const Field& field : list.fields()) canonical += field.value;
  return Sha256(canonical).substr(0, 16);
}

std::vector<std::string> DifferingFields(const v1::CacheSpec& present, const v1::CacheSpec& asked) {
  const FieldList present_list(present);
  const FieldList asked_list(asked);
  std::vector<std::string> differing;
  for (size_t i = 0; i < present_list.fields().size(); ++i) {
    const Field& field = present_list.fields()[i];
    const Field* other = Find(asked_list.fields(), i, field.path);
    if (other == nullptr) continue;  // The list's own size differs and is named.
    if (other->value != field.value) {
      differing.push_back(absl::StrCat(field.path, " (", field.shown, ", asked for ", other->shown, ")"));
    }
  }
  return differing;
}

}  // namespace nqkv
