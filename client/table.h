// Text for people: aligned tables and short numbers.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace nqkv::client {

// "11.8 MB", "512 B": three significant digits, powers of 1000.
std::string FormatBytes(uint64_t bytes);
// printf's %.*g, without an exponent for 1e-4 and above.
std::string FormatNumber(double number, int digits);

// Broken at blanks into lines of at most `width` bytes, where words allow; each ends with a line feed.
std::string Wrap(const std::string& text, size_t width = 96);

// Rows under a head, two spaces between columns; the first column is flush left, all others flush right.
class Table {
 public:
  explicit Table(std::vector<std::string> head) { AddRow(std::move(head)); }
  void AddRow(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  std::string ToString() const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace nqkv::client
