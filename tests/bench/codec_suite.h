// The codecs on one thread, against copies of the same bytes.
//
// Cases are <operation>/<form>/<size>. encode measures the errors and computes the CRC; decode checks the CRC first;
// encode-plain and decode-plain do neither. A form is fp16 unless it says bf16; nqkv4h has groups of 64, and
// with -k8 eight strong channels a head. The 64 MiB are 512 planes of
// [64 tokens][8 heads][128 channels], so that each is as large as a served one and all are far beyond the cache; 128
// KiB is one such plane, in the cache. Rates count raw bytes.
#pragma once

#include <string>
#include <vector>

#include "tests/bench/report.h"

namespace nqkv::bench {

// Only the cases whose name contains `filter`.
std::vector<Row> RunCodecSuite(const std::string& filter, size_t repeats);

}  // namespace nqkv::bench
