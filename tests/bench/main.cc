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
#include "tests/bench/store_suite.h"
#include "tests/bench/trace_suite.h"

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
    {"store", "look blocks up and replace them, with 1 to 8 threads", &RunStoreSuite},
};
constexpr char kTraceSuite[] = "trace";

std::string Usage() {
  std::string usage = "nqkv-bench SUITE [--json] [--filter=TEXT] [--repeats=N]\n\nSuites:\n";
  for (const Suite& suite : kSuites) absl::StrAppend(&usage, "  ", suite.name, "  ", suite.description, "\n");
  absl::StrAppend(&usage, "  ", kTraceSuite, " FILE  hits of a request trace, such as those in tests/data/traces\n");
  absl::StrAppend(&usage, "\nExits with 3 when a baseline is missing; its rows have no ratio and say why.\n",
                  "Example: nqkv-bench codec --filter=nqkv4-g64/64MiB");
  return usage;
}

int Print(const std::vector<Row>& rows) {
  if (rows.empty()) {
    std::fprintf(stderr, "nqkv-bench: no case's name contains \"%s\"\n", absl::GetFlag(FLAGS_filter).c_str());
    return 2;
  }
  absl::GetFlag(FLAGS_json) ? PrintJson(rows) : PrintTable(rows);
  return ExitCode(rows);
}

int Refuse(const std::string& reason) {
  std::fprintf(stderr, "nqkv-bench: %s\n%s\n", reason.c_str(), Usage().c_str());
  return 2;
}

int RunTrace(const std::string& path) {
  const absl::StatusOr<std::vector<Row>> rows = RunTraceSuite(path, absl::GetFlag(FLAGS_filter));
  if (rows.ok()) return Print(*rows);
  std::fprintf(stderr, "nqkv-bench: %s\n", rows.status().ToString().c_str());
  return 1;
}

// The arguments that are no flags.
int Run(const std::vector<std::string>& arguments) {
  if (absl::GetFlag(FLAGS_repeats) == 0) return Refuse("--repeats is 0");
  if (arguments.empty()) return Refuse("which suite?");
  const std::string& name = arguments.front();
  if (name == kTraceSuite) return arguments.size() == 2 ? RunTrace(arguments[1]) : Refuse("trace takes one file");
  for (const Suite& suite : kSuites) {
    if (name != suite.name) continue;
    if (arguments.size() != 1) return Refuse(absl::StrCat(name, " takes no file"));
    return Print(suite.run(absl::GetFlag(FLAGS_filter), absl::GetFlag(FLAGS_repeats)));
  }
  return Refuse(absl::StrCat("unknown suite \"", name, "\""));
}

}  // namespace
}  // namespace nqkv::bench

int main(int argc, char** argv) {
  absl::SetProgramUsageMessage(nqkv::bench::Usage());
  const std::vector<char*> arguments = absl::ParseCommandLine(argc, argv);
  return nqkv::bench::Run({arguments.begin() + 1, arguments.end()});
}
