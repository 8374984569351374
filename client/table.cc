#include "client/table.h"

#include <algorithm>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"

namespace nqkv::client {

std::string FormatBytes(uint64_t bytes) {
  static constexpr const char* kUnits[] = {"B", "kB", "MB", "GB", "TB", "PB", "EB"};
  if (bytes < 1000) return absl::StrCat(bytes, " B");
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  // 999.5 and more would be shown as 1000.
  for (; value >= 999.5 && unit + 1 < std::size(kUnits); ++unit) value /= 1000;
  return absl::StrFormat("%.*f %s", value < 9.995 ? 2 : value < 99.95 ? 1 : 0, value, kUnits[unit]);
}

std::string FormatNumber(double number, int digits) { return absl::StrFormat("%.*g", digits, number); }

std::string Wrap(const std::string& text, size_t width) {
  std::string wrapped;
  size_t line_bytes = 0;
  for (const absl::string_view word : absl::StrSplit(text, ' ', absl::SkipEmpty())) {
    if (line_bytes > 0 && line_bytes + 1 + word.size() > width) {
      wrapped += '\n';
      line_bytes = 0;
    }
    absl::StrAppend(&wrapped, line_bytes > 0 ? " " : "", word);
    line_bytes += (line_bytes > 0 ? 1 : 0) + word.size();
  }
  return wrapped + "\n";
}

std::string Table::ToString() const {
  std::vector<size_t> widths;
  for (const auto& row : rows_) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string text;
  for (const auto& row : rows_) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      const std::string gap(widths[i] - row[i].size(), ' ');
      absl::StrAppend(&line, i == 0 ? " " : "  ", i == 0 ? row[i] : gap, i == 0 ? gap : row[i]);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    absl::StrAppend(&text, line, "\n");
  }
  return text;
}

}  // namespace nqkv::client
