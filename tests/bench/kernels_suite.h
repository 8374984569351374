// The kernels on a GPU, against a copy on the device.
//
// Cases are <operation>/<form>/<size>. Data are fp16 planes of [64 tokens][8 heads][128 channels], 1 GiB in all, far
// beyond the caches; encode measures the errors. A -paged case gathers from, or scatters to, pages of 16 tokens in
// random order. Rates count what is moved, raw and encoded bytes together; the copy counts bytes read plus written.
// Without a GPU each case has a row without a ratio that says why.
#pragma once

#include <string>
#include <vector>

#include "tests/bench/report.h"

namespace nqkv::bench {

// Only the cases whose name contains `filter`.
std::vector<Row> RunKernelsSuite(const std::string& filter, size_t repeats);

}  // namespace nqkv::bench
