#include "tests/support/fake_cuda/fake_runtime.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <random>
#include <utility>
#include <vector>

// An event's n-th recording is done when `done` has reached n.
struct CUevent_st {
  uint64_t recorded = 0;
  uint64_t done = 0;
};

namespace nqkv::fake_cuda {
namespace {

struct Work {
  std::function<void()> run;
  std::shared_ptr<CUevent_st> waits_for;  // Ready once this event's recording `number` is done.
  uint64_t number = 0;

  bool ready() const { return waits_for == nullptr || waits_for->done >= number; }
};

}  // namespace
}  // namespace nqkv::fake_cuda

struct CUstream_st {
  std::deque<nqkv::fake_cuda::Work> queue;
  bool destroyed = false;
};

namespace nqkv::fake_cuda {
namespace {

[[noreturn]] void Die(const char* what) {
  std::fprintf(stderr, "fake CUDA runtime: %s\n", what);
  std::abort();
}

enum class Kind { kDevice, kPinned };

// CUDA aligns to 256 bytes. Ends where it was told, so that the address sanitizer sees who goes beyond.
struct FreeAligned {
  static constexpr std::align_val_t kAlignment{256};
  void operator()(std::byte* memory) const { ::operator delete(memory, kAlignment); }
};

struct Allocation {
  std::unique_ptr<std::byte, FreeAligned> memory;
  size_t bytes = 0;
  Kind kind = Kind::kDevice;
};

class Device {
 public:
  static Device& Get() {
    static Device device;
    return device;
  }

  std::mutex& mutex() { return mutex_; }

  void Reset(const Behaviour& behaviour) {
    if (!(Count() == InUse{})) Die("Reset: memory, streams or events of the old device are still in use");
    RunAll();
    behaviour_ = behaviour;
    random_.seed(behaviour.seed);
    broken_ = false;
    failed_calls_ = launches_ = 0;
  }
  void set_failure_rate(double rate) { behaviour_.failure_rate = rate; }
  void Break() { broken_ = true; }
  InUse Count() const {
    InUse count{.events = events_.size()};
    for (const auto& [begin, allocation] : allocations_) {
      (allocation.kind == Kind::kDevice ? count.device_bytes : count.pinned_bytes) += allocation.bytes;
    }
    for (const auto& stream : streams_) count.streams += !stream->destroyed;
    return count;
  }
  uint64_t failed_calls() const { return failed_calls_; }
  uint64_t launches() const { return launches_; }
  const Behaviour& behaviour() const { return behaviour_; }

  // What each call does first: lets some work run, and fails if it is its turn.
  cudaError_t Enter(cudaError_t failure) {
    while (behaviour_.seed != 0 && random_() % 2 == 0 && RunOne()) {
    }
    if (broken_) return Fail(cudaErrorIllegalAddress);
    if (behaviour_.failure_rate > 0 && std::bernoulli_distribution(behaviour_.failure_rate)(random_)) {
      return Fail(failure);
    }
    return cudaSuccess;
  }
  cudaError_t Fail(cudaError_t error) {
    ++failed_calls_;
    return error;
  }

  cudaError_t Allocate(void** memory, size_t bytes, Kind kind) {
    if (bytes == 0) Die("an allocation of no bytes");
    if (kind == Kind::kDevice && Count().device_bytes + bytes > behaviour_.device_bytes) {
      return Fail(cudaErrorMemoryAllocation);
    }
    auto* begin = static_cast<std::byte*>(::operator new(bytes, FreeAligned::kAlignment));
    std::memset(begin, 0xa5, bytes);  // What was allocated holds anything.
    allocations_.emplace(
        begin, Allocation{.memory = std::unique_ptr<std::byte, FreeAligned>(begin), .bytes = bytes, .kind = kind});
    *memory = begin;
    return cudaSuccess;
  }
  // As CUDA does: all work that might use the memory is done before it goes.
  void Free(void* memory, Kind kind) {
    RunAll();
    const auto found = allocations_.find(static_cast<std::byte*>(memory));
    if (found == allocations_.end() || found->second.kind != kind) Die("free: not an allocation of this kind");
    allocations_.erase(found);
  }
  void CheckRange(const void* memory, size_t bytes, Kind kind) const {
    const auto* address = static_cast<const std::byte*>(memory);
    auto found = allocations_.upper_bound(const_cast<std::byte*>(address));
    if (found == allocations_.begin()) Die("copy: memory that was not allocated here");
    --found;
    if (found->second.kind != kind) Die("copy: memory of the wrong kind");
    const size_t offset = static_cast<size_t>(address - found->first);
    if (offset > found->second.bytes || bytes > found->second.bytes - offset) Die("copy: beyond its allocation");
  }

  cudaStream_t CreateStream() {
    streams_.push_back(std::make_unique<CUstream_st>());
    return streams_.back().get();
  }
  void DestroyStream(cudaStream_t stream) { CheckStream(stream).destroyed = true; }
  CUstream_st& CheckStream(cudaStream_t stream) const {
    for (const auto& known : streams_) {
      if (known.get() == stream && !known->destroyed) return *known;
    }
    Die("a stream that was not created, or was destroyed; the default stream is not used");
  }
  cudaEvent_t CreateEvent() {
    auto event = std::make_shared<CUevent_st>();
    events_.emplace(event.get(), event);
    return event.get();
  }
  void DestroyEvent(cudaEvent_t event) {
    CheckEvent(event);
    events_.erase(event);
  }
  const std::shared_ptr<CUevent_st>& CheckEvent(cudaEvent_t event) const {
    const auto found = events_.find(event);
    if (found == events_.end()) Die("an event that was not created, or was destroyed");
    return found->second;
  }

  void Enqueue(cudaStream_t stream, Work work) {
    CheckStream(stream).queue.push_back(std::move(work));
    if (behaviour_.seed == 0) RunAll();
  }
  void CountLaunch() { ++launches_; }
  uint32_t NextOrderSeed() { return behaviour_.seed == 0 ? 0 : static_cast<uint32_t>(random_() | 1); }

  bool RunOne() {
    std::vector<CUstream_st*> ready;
    for (const auto& stream : streams_) {
      if (!stream->queue.empty() && stream->queue.front().ready()) ready.push_back(stream.get());
    }
    if (ready.empty()) return false;
    CUstream_st* stream = ready[random_() % ready.size()];
    Work work = std::move(stream->queue.front());
    stream->queue.pop_front();
    if (work.run) work.run();
    DropFinished();
    return true;
  }
  template <typename Done>
  void RunUntil(Done done) {
    while (!done()) {
      if (!RunOne()) Die("waits for what can never happen");
    }
  }
  void RunAll() {
    while (RunOne()) {
    }
  }

 private:
  void DropFinished() {
    std::erase_if(streams_, [](const auto& stream) { return stream->destroyed && stream->queue.empty(); });
  }

  std::mutex mutex_;
  Behaviour behaviour_;
  std::mt19937 random_;
  bool broken_ = false;
  uint64_t failed_calls_ = 0;
  uint64_t launches_ = 0;
  std::map<std::byte*, Allocation> allocations_;
  std::vector<std::unique_ptr<CUstream_st>> streams_;
  std::map<cudaEvent_t, std::shared_ptr<CUevent_st>> events_;
};

thread_local cudaError_t last_error = cudaSuccess;

// Runs `call` unless the call is one that fails.
template <typename Call>
cudaError_t Do(cudaError_t failure, Call call) {
  Device& device = Device::Get();
  std::lock_guard lock(device.mutex());
  cudaError_t error = device.Enter(failure);
  if (error == cudaSuccess) error = call(device);
  if (error != cudaSuccess && error != cudaErrorNotReady) last_error = error;
  return error;
}

// For calls that give something back, which must work even on a device that does not.
template <typename Call>
cudaError_t GiveBack(Call call) {
  Device& device = Device::Get();
  std::lock_guard lock(device.mutex());
  call(device);
  return cudaSuccess;
}

}  // namespace

void Reset(const Behaviour& behaviour) {
  GiveBack([&](Device& device) { device.Reset(behaviour); });
}
void SetFailureRate(double rate) {
  GiveBack([&](Device& device) { device.set_failure_rate(rate); });
}
void Break() {
  GiveBack([](Device& device) { device.Break(); });
}
InUse Count() {
  InUse count;
  GiveBack([&](Device& device) { count = device.Count(); });
  return count;
}
uint64_t FailedCalls() {
  uint64_t calls = 0;
  GiveBack([&](Device& device) { calls = device.failed_calls(); });
  return calls;
}
uint64_t Launches() {
  uint64_t launches = 0;
  GiveBack([&](Device& device) { launches = device.launches(); });
  return launches;
}

cudaError_t Launch(const cudaLaunchConfig_t& config, std::function<void()> body) {
  return Do(cudaErrorLaunchOutOfResources, [&](Device& device) {
    device.CountLaunch();
    const Grid grid{.blocks = config.gridDim,
                    .threads = config.blockDim,
                    .shared_bytes = config.dynamicSmemBytes,
                    .order_seed = device.NextOrderSeed()};
    const bool skipped = device.behaviour().skip_kernels;
    device.Enqueue(config.stream, {.run =
                                       [grid, skipped, body = std::move(body)] {
                                         if (!skipped) RunGrid(grid, body);
                                       },
                                   .waits_for = {},
                                   .number = 0});
    return cudaSuccess;
  });
}

}  // namespace nqkv::fake_cuda

using nqkv::fake_cuda::Device;
using nqkv::fake_cuda::Do;
using nqkv::fake_cuda::GiveBack;
using nqkv::fake_cuda::Kind;

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInsufficientDriver:
      return "cudaErrorInsufficientDriver";
    case cudaErrorNoDevice:
      return "cudaErrorNoDevice";
    case cudaErrorNotReady:
      return "cudaErrorNotReady";
    case cudaErrorIllegalAddress:
      return "cudaErrorIllegalAddress";
    case cudaErrorLaunchOutOfResources:
      return "cudaErrorLaunchOutOfResources";
    default:
      return "cudaErrorInvalidValue";
  }
}

const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }

cudaError_t cudaGetLastError() { return std::exchange(nqkv::fake_cuda::last_error, cudaSuccess); }

cudaError_t cudaGetDeviceCount(int* count) {
  return Do(cudaErrorInsufficientDriver, [&](Device& device) {
    *count = device.behaviour().devices;
    return *count > 0 ? cudaSuccess : cudaErrorNoDevice;
  });
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int number) {
  return Do(cudaErrorInvalidDevice, [&](Device& device) {
    if (number < 0 || number >= device.behaviour().devices) return cudaErrorInvalidDevice;
    std::snprintf(properties->name, sizeof(properties->name), "fake GPU");
    return cudaSuccess;
  });
}

cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  return Do(cudaErrorInvalidValue, [&](Device& device) {
    *total_bytes = device.behaviour().device_bytes;
    *free_bytes = *total_bytes - device.Count().device_bytes;
    return cudaSuccess;
  });
}

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  return Do(cudaErrorMemoryAllocation, [&](Device& device) { return device.Allocate(memory, bytes, Kind::kDevice); });
}

cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) {
  return Do(cudaErrorMemoryAllocation, [&](Device& device) { return device.Allocate(memory, bytes, Kind::kPinned); });
}

cudaError_t cudaFree(void* memory) {
  return GiveBack([&](Device& device) { device.Free(memory, Kind::kDevice); });
}

cudaError_t cudaFreeHost(void* memory) {
  return GiveBack([&](Device& device) { device.Free(memory, Kind::kPinned); });
}

cudaError_t cudaMemcpyAsync(void* target, const void* source, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  return Do(cudaErrorInvalidValue, [&](Device& device) {
    device.CheckRange(target, bytes, kind == cudaMemcpyDeviceToHost ? Kind::kPinned : Kind::kDevice);
    device.CheckRange(source, bytes, kind == cudaMemcpyHostToDevice ? Kind::kPinned : Kind::kDevice);
    device.Enqueue(stream, {.run = [=] { std::memcpy(target, source, bytes); }, .waits_for = {}, .number = 0});
    return cudaSuccess;
  });
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  return Do(cudaErrorMemoryAllocation, [&](Device& device) {
    *stream = device.CreateStream();
    return cudaSuccess;
  });
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  return GiveBack([&](Device& device) { device.DestroyStream(stream); });
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return Do(cudaErrorIllegalAddress, [&](Device& device) {
    const CUstream_st& known = device.CheckStream(stream);
    device.RunUntil([&] { return known.queue.empty(); });
    return cudaSuccess;
  });
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  return Do(cudaErrorInvalidValue, [&](Device& device) {
    const std::shared_ptr<CUevent_st>& known = device.CheckEvent(event);
    device.Enqueue(stream, {.run = {}, .waits_for = known, .number = known->recorded});
    return cudaSuccess;
  });
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  return Do(cudaErrorMemoryAllocation, [&](Device& device) {
    *event = device.CreateEvent();
    return cudaSuccess;
  });
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  return GiveBack([&](Device& device) { device.DestroyEvent(event); });
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return Do(cudaErrorInvalidValue, [&](Device& device) {
    const std::shared_ptr<CUevent_st> known = device.CheckEvent(event);
    const uint64_t number = ++known->recorded;
    device.Enqueue(stream, {.run = [known, number] { known->done = number; }, .waits_for = {}, .number = 0});
    return cudaSuccess;
  });
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  return Do(cudaErrorIllegalAddress, [&](Device& device) {
    const std::shared_ptr<CUevent_st>& known = device.CheckEvent(event);
    return known->done >= known->recorded ? cudaSuccess : cudaErrorNotReady;
  });
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return Do(cudaErrorIllegalAddress, [&](Device& device) {
    const std::shared_ptr<CUevent_st> known = device.CheckEvent(event);
    const uint64_t number = known->recorded;
    device.RunUntil([&] { return known->done >= number; });
    return cudaSuccess;
  });
}
