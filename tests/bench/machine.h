// What the figures were measured on.
#pragma once

#include <string>

namespace nqkv::bench {

// Processor and codec path: "AMD EPYC, 2 CPUs, codec path avx2".
std::string MachineName();

}  // namespace nqkv::bench
