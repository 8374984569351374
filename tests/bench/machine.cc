#include "tests/bench/machine.h"

#include <fstream>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "kernels/codec.h"
#include "kernels/device_memory.h"

namespace nqkv::bench {

namespace {

std::string Processor() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(": ");
    if (line.rfind("model name", 0) == 0 && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown processor";
}

}  // namespace

std::string MachineName() {
  const absl::StatusOr<DeviceInfo> device = FindDevice();
  return absl::StrCat(Processor(), ", ", std::thread::hardware_concurrency(), " CPUs, codec path ", CodecPathName(),
                      device.ok() ? absl::StrCat(", GPU ", device->name) : "");
}

}  // namespace nqkv::bench
