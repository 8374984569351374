#include "proto/spec_fingerprint.h"

#include <tuple>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "proto/key_chain.h"

namespace nqkv {
namespace {

// Where a field stands. The names are literals.
struct Place {
  int group = -1;  // Index of the layer group; -1: a field of the spec itself.
  int plane = -1;  // Index of the plane; -1: a field of the group itself.
  absl::string_view name;

  bool operator==(const Place&) const = default;
  template <typename H>
  friend H AbslHashValue(H h, const Place& place) {
    return H::combine(std::move(h), place.group, place.plane, place.name);
  }
};

struct Field {
  Place place;
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
    AddNumber({.name = "layer_groups.size"}, static_cast<uint32_t>(spec.layer_groups_size()));
    for (int i = 0; i < spec.layer_groups_size(); ++i) AddGroup(i, spec.layer_groups(i));
  }

  const std::vector<Field>& fields() const { return fields_; }

 private:
  void AddGroup(int i, const v1::LayerGroup& group) {
    AddNumber({i, -1, "id"}, group.id());
    AddEnum({i, -1, "kind"}, group.kind(), v1::LayerGroupKind_Name(group.kind()));
    AddNumber({i, -1, "block_tokens"}, group.block_tokens());
    AddNumber({i, -1, "window_tokens"}, group.window_tokens());
    AddNumber({i, -1, "planes.size"}, static_cast<uint32_t>(group.planes_size()));
    for (int p = 0; p < group.planes_size(); ++p) {
      const v1::PlaneSpec& plane = group.planes(p);
      AddNumber({i, p, "layer"}, plane.layer());
      AddEnum({i, p, "role"}, plane.role(), v1::PlaneRole_Name(plane.role()));
      AddNumber({i, p, "heads"}, plane.heads());
      AddNumber({i, p, "channels"}, plane.channels());
      AddEnum({i, p, "dtype"}, plane.dtype(), v1::Dtype_Name(plane.dtype()));
    }
  }
  void AddText(absl::string_view name, const std::string& text) { Add(name, text, absl::StrCat("'", text, "'")); }
  void AddBytes(absl::string_view name, const std::string& bytes) { Add(name, bytes, absl::BytesToHexString(bytes)); }
  void Add(absl::string_view name, const std::string& value, std::string shown) {
    fields_.push_back({{.name = name}, LittleEndian(static_cast<uint32_t>(value.size())) + value, std::move(shown)});
  }
  void AddNumber(Place place, uint32_t value) { fields_.push_back({place, LittleEndian(value), absl::StrCat(value)}); }
  void AddEnum(Place place, int value, std::string name) {
    fields_.push_back({place, LittleEndian(static_cast<uint32_t>(value)), std::move(name)});
  }

  std::vector<Field> fields_;
};

// One difference, and all the planes of a group that have it.
struct Difference {
  Place place;  // Of the first plane.
  std::vector<int> planes;
  std::string shown;
};

// Differences in the order of the fields; equal ones of a group's planes are one.
class DifferenceList {
 public:
  void Add(const Place& place, std::string shown) {
    const auto [found, is_new] = places_.try_emplace({place.group, place.name, place.plane < 0, shown}, list_.size());
    if (is_new) list_.push_back({place, {}, std::move(shown)});
    list_[found->second].planes.push_back(place.plane);
  }

  const std::vector<Difference>& list() const { return list_; }

 private:
  absl::flat_hash_map<std::tuple<int, absl::string_view, bool, std::string>, size_t> places_;
  std::vector<Difference> list_;
};

// "0-3", or "0, 2, 4 and 77 more" with up to kRunsShown runs.
std::string IndexText(const std::vector<int>& increasing) {
  constexpr int kRunsShown = 3;
  std::string text;
  int runs = 0;
  for (size_t begin = 0; begin < increasing.size();) {
    if (runs++ == kRunsShown) return absl::StrCat(text, " and ", increasing.size() - begin, " more");
    size_t end = begin + 1;
    while (end < increasing.size() && increasing[end] == increasing[end - 1] + 1) ++end;
    absl::StrAppend(&text, text.empty() ? "" : ", ", increasing[begin]);
    if (end > begin + 1) absl::StrAppend(&text, "-", increasing[end - 1]);
    begin = end;
  }
  return text;
}

std::string Describe(const Difference& difference) {
  const Place& place = difference.place;
  std::string path;
  if (place.group >= 0) absl::StrAppend(&path, "layer_groups[", place.group, "].");
  if (place.plane >= 0) absl::StrAppend(&path, "planes[", IndexText(difference.planes), "].");
  return absl::StrCat(path, place.name, " (", difference.shown, ")");
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
  absl::flat_hash_map<Place, const Field*> asked_fields;
  for (const Field& field : asked_list.fields()) asked_fields.emplace(field.place, &field);
  DifferenceList differences;
  for (const Field& field : present_list.fields()) {
    const auto other = asked_fields.find(field.place);
    if (other == asked_fields.end()) continue;  // The list's own size differs and is named.
    if (other->second->value == field.value) continue;
    differences.Add(field.place, absl::StrCat(field.shown, ", asked for ", other->second->shown));
  }
  std::vector<std::string> texts;
  for (const Difference& difference : differences.list()) texts.push_back(Describe(difference));
  return texts;
}

}  // namespace nqkv
