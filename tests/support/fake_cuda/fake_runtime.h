// The part of CUDA's runtime API that NQKV uses, over host memory, so that the device backend runs without a GPU.
//
// A stream is a queue. Work waits in it until a call lets it run: each call runs some of what is ready, from streams
// drawn at random, and a call that waits runs more, in random order, until what it waits for is done. So whatever order
// and lateness CUDA allows happens here too. Calls fail at random when told to. Misuse ends the process: copies from or
// to memory that was never allocated here (pageable host memory included, which would make a copy synchronous), use of
// what was destroyed, waiting for an event that nobody records. Thread-safe; kernels run one at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include "tests/support/fake_cuda/fiber_grid.h"

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInsufficientDriver = 35,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorInvalidResourceHandle = 400,
  cudaErrorNotReady = 600,
  cudaErrorIllegalAddress = 700,
  cudaErrorLaunchOutOfResources = 701,
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2, cudaMemcpyDeviceToDevice = 3 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
inline constexpr unsigned cudaStreamNonBlocking = 1;
inline constexpr unsigned cudaEventDisableTiming = 2;
inline constexpr unsigned cudaHostAllocDefault = 0;

struct CUstream_st;
struct CUevent_st;
using cudaStream_t = CUstream_st*;
using cudaEvent_t = CUevent_st*;

const char* cudaGetErrorName(cudaError_t error);
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaGetDeviceCount(int* count);
struct cudaDeviceProp {
  char name[256] = {};
};
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes);
cudaError_t cudaMalloc(void** memory, size_t bytes);
cudaError_t cudaFree(void* memory);
cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned flags);
cudaError_t cudaFreeHost(void* memory);
cudaError_t cudaMemcpyAsync(void* target, const void* source, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventQuery(cudaEvent_t event);
cudaError_t cudaEventSynchronize(cudaEvent_t event);

template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int value) {
  return value > 99 << 10 ? cudaErrorInvalidValue : cudaSuccess;  // What the smallest of our GPUs has.
}

struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

namespace nqkv::fake_cuda {

cudaError_t Launch(const cudaLaunchConfig_t& config, std::function<void()> body);

struct Behaviour {
  uint32_t seed = 0;  // 0: everything runs at once and in order.
  int devices = 1;
  size_t device_bytes = size_t{1} << 30;
  double failure_rate = 0;    // Of each call that may fail.
  bool skip_kernels = false;  // For tests of threads alone: the thread sanitizer cannot follow many fibers.
};

// Replaces the device by a new one. Ends the process when something of the old one is still allocated.
void Reset(const Behaviour& behaviour);
// From the next call on.
void SetFailureRate(double rate);
// From the next call on every call fails, as after an illegal access.
void Break();

struct InUse {
  size_t device_bytes = 0;
  size_t pinned_bytes = 0;
  size_t streams = 0;
  size_t events = 0;
  bool operator==(const InUse&) const = default;
};
InUse Count();
uint64_t FailedCalls();
uint64_t Launches();

}  // namespace nqkv::fake_cuda

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  return nqkv::fake_cuda::Launch(*config, [kernel, ... copies = Parameters(arguments)] { kernel(copies...); });
}
