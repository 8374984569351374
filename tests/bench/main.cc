// nqkv-bench: measures one part of NQKV beside its baselines and bounds, in the same run.
#include <cstdio>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/strings/str_cat.h"
#include "tests/bench/codec_suite.h"
#include "tests/bench/kernels_suite.h"
#include "tests/bench/report.h"

ABSL_FLAG(bool, json, false, "Print one JSON object a line instead of a table.");
ABSL_FLAG(std::string, filter, "", "Run only the cases whose name contains this.");
ABSL_FLAG(uint32_t, repeats, 21, "Samples of each case; medians are reported.");

namespace nqkv::bench {
namespace {

struct Suite {
  const char* name;
  const char* description;
  std::vector<Row> (*run)(const std::string& filter, size_t repeats);
};

constexpr Suite kSuites[] = {
    {"codec", "encode and decode on one thread, against memory copies", &RunCodecSuite},
    {"kernels", "encode and decode on a GPU, against a copy on it", &RunKernelsSuite},
};

std::string Usage() {
  std::string usage = "nqkv-bench SUITE [--json] [--filter=TEXT] [--repeats=N]\n\nSuites:\n";
  for (const Suite& suite : kSuites) absl::StrAppend(&usage, "  ", suite.name, "  ", suite.description, "\n");
  absl::StrAppend(&usage, "\nExits with 3 when a baseline is missing; its rows have no ratio and say why.\n",
                  "Example: nqkv-bench codec --filter=nqkv4-g64/64MiB");
  return usage;
}

int Run(const std::string& name) {
  for (const Suite& suite : kSuites) {
    if (name != suite.name) continue;
    const std::vector<Row> rows = suite.run(absl::GetFlag(FLAGS_filter), absl::GetFlag(FLAGS_repeats));
    if (rows.empty()) {
      std::fprintf(stderr, "nqkv-bench: no case's name contains \"%s\"\n", absl::GetFlag(FLAGS_filter).c_str());
      return 2;
    }
    absl::GetFlag(FLAGS_json) ? PrintJson(rows) : PrintTable(rows);
    return ExitCode(rows);
  }
  std::fprintf(stderr, "nqkv-bench: unknown suite \"%s\"\n%s\n", name.c_str(), Usage().c_str());
  return 2;
}

}  // namespace
}  // namespace nqkv::bench

int main(int argc, char** argv) {
  absl::SetProgramUsageMessage(nqkv::bench::Usage());
  const std::vector<char*> arguments = absl::ParseCommandLine(argc, argv);
  if (arguments.size() != 2 || absl::GetFlag(FLAGS_repeats) == 0) {
    std::fprintf(stderr, "%s\n", nqkv::bench::Usage().c_str());
    return 2;
  }
  return nqkv::bench::Run(arguments[1]);
}
