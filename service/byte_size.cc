#include "service/byte_size.h"

#include <array>
#include <cmath>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace nqkv {
namespace {

struct Unit {
  absl::string_view name;
  uint64_t bytes;
};

constexpr std::array<Unit, 5> kBinaryUnits = {{{"TiB", uint64_t{1} << 40},
                                               {"GiB", uint64_t{1} << 30},
                                               {"MiB", uint64_t{1} << 20},
                                               {"KiB", uint64_t{1} << 10},
                                               {"B", 1}}};
constexpr std::array<Unit, 4> kDecimalUnits = {
    {{"TB", 1'000'000'000'000}, {"GB", 1'000'000'000}, {"MB", 1'000'000}, {"KB", 1'000}}};

const Unit* FindUnit(absl::string_view name) {
  for (const Unit& unit : kBinaryUnits) {
    if (unit.name == name) return &unit;
  }
  for (const Unit& unit : kDecimalUnits) {
    if (unit.name == name) return &unit;
  }
  return nullptr;
}

}  // namespace

bool AbslParseFlag(absl::string_view text, ByteSize* size, std::string* error) {
  text = absl::StripAsciiWhitespace(text);
  const size_t end = text.find_first_not_of("0123456789.");
  const absl::string_view digits = text.substr(0, end);
  const absl::string_view name =
      end == absl::string_view::npos ? "B" : absl::StripLeadingAsciiWhitespace(text.substr(end));
  const Unit* unit = FindUnit(name);
  double number = 0;
  if (unit == nullptr || digits.empty() || !absl::SimpleAtod(digits, &number)) {
    *error = absl::StrCat("'", text, "' is not a size such as 40GiB, 512MiB or 1048576");
    return false;
  }
  uint64_t whole = 0;
  if (absl::SimpleAtoi(digits, &whole) && whole <= UINT64_MAX / unit->bytes) {
    size->bytes = whole * unit->bytes;
    return true;
  }
  const double bytes = number * static_cast<double>(unit->bytes);
  if (!(bytes < 9.2e18)) {
    *error = absl::StrCat("'", text, "' is too large");
    return false;
  }
  size->bytes = static_cast<uint64_t>(std::llround(bytes));
  return true;
}

std::string AbslUnparseFlag(const ByteSize& size) {
  for (const Unit& unit : kBinaryUnits) {
    if (size.bytes >= unit.bytes && size.bytes % unit.bytes == 0)
      return absl::StrCat(size.bytes / unit.bytes, unit.name);
  }
  return "0";
}

std::string ShowBytes(uint64_t bytes) {
  for (const Unit& unit : kBinaryUnits) {
    if (bytes < unit.bytes || unit.bytes == 1) continue;
    return absl::StrFormat("%.1f %s", static_cast<double>(bytes) / static_cast<double>(unit.bytes), unit.name);
  }
  return absl::StrCat(bytes, " B");
}

}  // namespace nqkv
