#include "tests/bench/trace_suite.h"

#include <cmath>
#include <cstdint>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "kernels/status_macros.h"
#include "tests/support/trace_file.h"
#include "tests/support/trace_replay.h"

namespace nqkv::bench {
namespace {

constexpr double kShares[] = {0.01, 0.02, 0.05, 0.1, 0.2};
constexpr uint32_t kRecutParts = 8;
// What stands for a block of the trace: large enough that its header and table weigh as little as in a real one.
constexpr uint32_t kTokens = 64;

class TraceSuite {
 public:
  TraceSuite(Trace trace, const std::string& filter) : trace_(std::move(trace)), filter_(filter) {}

  absl::Status RunShare(double share) {
    const auto blocks = static_cast<uint64_t>(std::lround(share * static_cast<double>(trace_.unique_blocks)));
    const std::string prefix = absl::StrCat(trace_.name, "/", 100 * share, "%/");
    if (!Wanted(prefix + "raw") && !Wanted(prefix + "raw-lru") && !Wanted(prefix + "4bit") && !Wanted(prefix + "recut"))
      return absl::OkStatus();
    const uint64_t raw_bytes = RawBlockBytes(kTokens);
    NQKV_ASSIGN_OR_RETURN(const uint64_t host_bytes, HostBytesFor(blocks, raw_bytes));
    NQKV_ASSIGN_OR_RETURN(const ReplayResult raw, ReplayThroughStore(trace_, {host_bytes, raw_bytes}));
    if (Wanted(prefix + "raw")) {
      Add(prefix + "raw", raw.block_hits, "slru-model", ReplayThroughModel(trace_, blocks, 0.2).block_hits);
    }
    if (Wanted(prefix + "raw-lru")) {
      NQKV_ASSIGN_OR_RETURN(const ReplayResult lru, ReplayThroughStore(trace_, {host_bytes, raw_bytes, "lru"}));
      Add(prefix + "raw-lru", lru.block_hits, "lru-model", ReplayThroughModel(trace_, blocks, 0).block_hits);
    }
    if (Wanted(prefix + "4bit")) {
      NQKV_ASSIGN_OR_RETURN(const ReplayResult packed,
                            ReplayThroughStore(trace_, {host_bytes, Nqkv4BlockBytes(kTokens)}));
      Add(prefix + "4bit", packed.block_hits, "raw", raw.block_hits);
      Add(prefix + "4bit-prefill", 1 - packed.token_hits, "raw", 1 - raw.token_hits);
    }
    if (Wanted(prefix + "recut")) NQKV_RETURN_IF_ERROR(RunRecut(prefix, blocks, raw.block_hits));
    return absl::OkStatus();
  }

  std::vector<Row> rows() { return std::move(rows_); }

 private:
  bool Wanted(const std::string& name) const { return absl::StrContains(name, filter_); }

  absl::Status RunRecut(const std::string& prefix, uint64_t blocks, double raw_hits) {
    const Trace recut = Recut(trace_, kRecutParts);
    const uint64_t bytes = RawBlockBytes(kTokens / kRecutParts);
    NQKV_ASSIGN_OR_RETURN(const uint64_t host_bytes, HostBytesFor(blocks * kRecutParts, bytes));
    NQKV_ASSIGN_OR_RETURN(const ReplayResult result, ReplayThroughStore(recut, {host_bytes, bytes}));
    Add(prefix + "recut", result.block_hits, "raw", raw_hits);
    return absl::OkStatus();
  }

  void Add(const std::string& name, double share, const std::string& baseline, double baseline_share) {
    Row row = {.suite = "trace", .name = name, .value = 100 * share, .unit = "%", .baseline = baseline};
    row.baseline_value = 100 * baseline_share;
    row.repeats = 1;
    rows_.push_back(row);
  }

  const Trace trace_;
  const std::string filter_;
  std::vector<Row> rows_;
};

}  // namespace

absl::StatusOr<std::vector<Row>> RunTraceSuite(const std::string& path, const std::string& filter) {
  NQKV_ASSIGN_OR_RETURN(Trace trace, ReadTrace(path));
  TraceSuite suite(std::move(trace), filter);
  for (const double share : kShares) NQKV_RETURN_IF_ERROR(suite.RunShare(share));
  return suite.rows();
}

}  // namespace nqkv::bench
