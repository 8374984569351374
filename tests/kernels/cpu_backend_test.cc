#include "kernels/cpu_backend.h"

#include "tests/conformance/backend_conformance.h"

namespace nqkv {

INSTANTIATE_TEST_SUITE_P(Cpu, BackendConformanceTest, testing::Values(&MakeCpuBackend));

}  // namespace nqkv
