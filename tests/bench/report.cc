#include "tests/bench/report.h"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "tests/bench/machine.h"

namespace nqkv::bench {

namespace {

std::optional<double> Ratio(double value, const std::optional<double>& other) {
  return other.has_value() && *other > 0 ? std::optional(value / *other) : std::nullopt;
}

std::string Number(const std::optional<double>& number, const char* format) {
  if (!number.has_value()) return "-";
  char text[32];
  std::snprintf(text, sizeof(text), format, *number);
  return text;
}

nlohmann::json Json(const std::optional<double>& number) {
  return number.has_value() ? nlohmann::json(*number) : nlohmann::json(nullptr);
}

}  // namespace

void PrintTable(const std::vector<Row>& rows) {
  size_t width = 4;
  for (const Row& row : rows) width = std::max(width, row.name.size());
  const int name_width = static_cast<int>(width);
  std::printf("%s\n\n", MachineName().c_str());
  std::printf("%-*s %9s %-5s %8s  %-10s %9s %7s  %-10s %7s\n", name_width, "case", "median", "", "spread", "baseline",
              "median", "ratio", "bound", "ratio");
  std::string last;
  for (const Row& row : rows) {
    const bool again = row.name == last;
    last = row.name;
    const std::string spread = Number(row.spread_pct, "%.1f") + " %";
    std::printf("%-*s %9s %-5s %8s  %-10s %9s %6sx  %-10s %6sx%s%s\n", name_width, again ? "" : row.name.c_str(),
                again ? "" : Number(row.value, "%.2f").c_str(), again ? "" : row.unit.c_str(),
                again ? "" : spread.c_str(), row.baseline.c_str(), Number(row.baseline_value, "%.2f").c_str(),
                Number(Ratio(row.value, row.baseline_value), "%.2f").c_str(), row.bound.c_str(),
                Number(Ratio(row.value, row.bound_value), "%.2f").c_str(), row.reason.empty() ? "" : "  ",
                row.reason.c_str());
  }
}

void PrintJson(const std::vector<Row>& rows) {
  for (const Row& row : rows) {
    nlohmann::ordered_json json = {
        {"suite", row.suite}, {"case", row.name}, {"value", row.value}, {"unit", row.unit}, {"baseline", row.baseline}};
    json["baseline_value"] = Json(row.baseline_value);
    json["ratio"] = Json(Ratio(row.value, row.baseline_value));
    if (!row.reason.empty()) json["reason"] = row.reason;
    json["bound"] = row.bound;
    json["bound_ratio"] = Json(Ratio(row.value, row.bound_value));
    json["repeats"] = row.repeats;
    json["spread_pct"] = row.spread_pct;
    json["threads"] = row.threads;
    json["machine"] = MachineName();
    std::printf("%s\n", json.dump().c_str());
  }
}

int ExitCode(const std::vector<Row>& rows) {
  const bool complete =
      std::all_of(rows.begin(), rows.end(), [](const Row& row) { return row.baseline_value.has_value(); });
  return complete ? 0 : 3;
}

}  // namespace nqkv::bench
