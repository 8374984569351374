// What the figures were measured on.
#pragma once

#include <string>

namespace nqkv::bench {

// Processor, codec path and, where there is one, GPU: "AMD EPYC, 2 CPUs, codec path avx2, GPU NVIDIA H100".
std::string MachineName();

}  // namespace nqkv::bench
