// A request trace through the real store: how many of the blocks asked for were there.
//
// Cases are <trace>/<share of the unique blocks>/<form>. The share says how many raw blocks the memory holds; raw and
// 4bit stand for blocks of either size in the same memory, recut for the same prompts in 64-token blocks. Values are
// percent of the blocks asked for. Baselines, in the same run: the plain policy with room for as many blocks
// (slru-model, lru-model), and the raw blocks.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "tests/bench/report.h"

namespace nqkv::bench {

// Only the cases whose name contains `filter`. Errors: those of reading the file.
absl::StatusOr<std::vector<Row>> RunTraceSuite(const std::string& path, const std::string& filter);

}  // namespace nqkv::bench
