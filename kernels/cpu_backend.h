// The host's memory and processor as a backend.
#pragma once

#include <memory>

#include "kernels/backend.h"

namespace nqkv {

std::unique_ptr<Backend> MakeCpuBackend();

}  // namespace nqkv
