// Rows of nqkv-bench: one a case and baseline, as a table for people or as JSON, one object a line.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace nqkv::bench {

struct Row {
  std::string suite;
  std::string name;  // "<operation>/<form>/<size>".
  double value = 0;
  std::string unit;
  std::string baseline;
  std::optional<double> baseline_value;  // Absent: `reason` says why there is no ratio.
  std::string reason;
  std::string bound;  // What the machine allows, measured in the same run; a baseline's name.
  std::optional<double> bound_value;
  size_t repeats = 0;
  double spread_pct = 0;  // Of the middle half of the samples, against their median.
  size_t threads = 1;
};

void PrintTable(const std::vector<Row>& rows);
void PrintJson(const std::vector<Row>& rows);

// 0, or 3 when a row has no baseline to be compared with.
int ExitCode(const std::vector<Row>& rows);

}  // namespace nqkv::bench
