#include "tests/support/fake_cuda/fiber_grid.h"

#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <boost/context/fiber.hpp>
#include <boost/context/preallocated.hpp>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#define NQKV_FIBERS_UNDER_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define NQKV_FIBERS_UNDER_ASAN 1
#endif
#endif
#ifdef NQKV_FIBERS_UNDER_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace nqkv::fake_cuda {
namespace {

using boost::context::fiber;

// Instrumented frames are several times as large.
#ifdef NQKV_FIBERS_UNDER_ASAN
constexpr size_t kStackBytes = size_t{64} << 10;
#else
constexpr size_t kStackBytes = size_t{16} << 10;
#endif
constexpr uint64_t kStackCanary = 0x5ac3d1e8b7f60924;

[[noreturn]] void Die(const char* where, const char* what) {
  std::fprintf(stderr, "fake CUDA: %s: %s\n", where, what);
  std::abort();
}

class Mapping {
 public:
  explicit Mapping(size_t bytes) : bytes_(bytes) {
    memory_ = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory_ == MAP_FAILED) Die("mmap", "no memory");
#ifdef NQKV_FIBERS_UNDER_ASAN
    // Fibers may have ended here before, and what the sanitizer forbade of their frames outlives an unmapping.
    __asan_unpoison_memory_region(memory_, bytes_);
#endif
  }
  ~Mapping() { ::munmap(memory_, bytes_); }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  std::byte* data() const { return static_cast<std::byte*>(memory_); }

 private:
  size_t bytes_;
  void* memory_;
};

// Ends at a page that may not be touched, and begins behind one, so that any access outside ends the process.
class GuardedMemory {
 public:
  explicit GuardedMemory(size_t bytes)
      : bytes_((bytes + 15) / 16 * 16),
        page_(static_cast<size_t>(::sysconf(_SC_PAGESIZE))),
        inner_((bytes_ + page_ - 1) / page_ * page_),
        mapping_(inner_ + 2 * page_) {
    ::mprotect(mapping_.data(), page_, PROT_NONE);
    ::mprotect(mapping_.data() + page_ + inner_, page_, PROT_NONE);
  }
  std::byte* data() const { return mapping_.data() + page_ + inner_ - bytes_; }
  size_t bytes() const { return bytes_; }

 private:
  size_t bytes_;
  size_t page_;
  size_t inner_;
  Mapping mapping_;
};

// The stacks are not its own.
struct KeepStack {
  boost::context::stack_context allocate() { return {}; }
  void deallocate(boost::context::stack_context&) {}
};

enum class State : uint8_t { kRuns, kInWarpOperation, kAtBarrier, kExited };

struct Meeting {
  WarpOperation operation = WarpOperation::kSync;
  uint32_t mask = 0;
  int line = 0;
  bool operator==(const Meeting&) const = default;
};

struct Thread {
  fiber context;
  fiber scheduler;
  dim3 index;
  unsigned number = 0;
  State state = State::kRuns;
  Meeting meeting;
  int barrier_line = 0;
  uint64_t value = 0;
  void* asan_stack = nullptr;
};

// A permutation of 0 .. count-1 that is cheap to draw: steps of an odd number around a power of two.
class Order {
 public:
  Order(unsigned count, uint32_t* random) : count_(count) {
    while (size_ < count) size_ *= 2;
    if (*random == 0) return;
    *random = *random * 1664525 + 1013904223;
    step_ = (*random >> 8) | 1;
    offset_ = *random >> 16;
    if (*random == 0) *random = 1;
  }
  template <typename Visit>
  void ForEach(Visit visit) const {
    for (unsigned i = 0; i < size_; ++i) {
      const unsigned place = (i * step_ + offset_) & (size_ - 1);
      if (place < count_) visit(place);
    }
  }

 private:
  unsigned count_;
  unsigned size_ = 1;
  unsigned step_ = 1;
  unsigned offset_ = 0;
};

class ThreadBlock {
 public:
  ThreadBlock(const Grid& grid, const std::function<void()>& body)
      : grid_(grid),
        body_(body),
        threads_(grid.threads.x * grid.threads.y * grid.threads.z),
        warp_values_(threads_.size()),
        stacks_(threads_.size() * kStackBytes),
        shared_(grid.shared_bytes),
        random_(grid.order_seed) {
    for (unsigned i = 0; i < threads_.size(); ++i) {
      const dim3& size = grid.threads;
      threads_[i].number = i;
      threads_[i].index = dim3(i % size.x, i / size.x % size.y, i / size.x / size.y);
    }
  }

  void Run(const dim3& index);

  const Grid& grid() const { return grid_; }
  const dim3& index() const { return index_; }
  Thread& thread() { return *thread_; }
  const GuardedMemory& shared() const { return shared_; }
  uint64_t warp_value(unsigned lane) const {
    return warp_values_[thread_->number / kWarpLanes * kWarpLanes + lane % kWarpLanes];
  }

  // Of the running thread: goes on when the scheduler comes back to it.
  void Wait(State state);
  [[noreturn]] void Fail(const Thread& thread, const char* what) const;

 private:
  void Start(Thread& thread);
  void Resume(Thread& thread);
  void RunWarp(unsigned first);
  bool FinishWarpOperations(unsigned first, unsigned last);
  void CheckMeeting(const Thread& thread, unsigned first, unsigned last) const;
  void OpenBarrier();
  void CheckStacks() const;
  std::byte* stack(const Thread& thread) const { return stacks_.data() + thread.number * kStackBytes; }
  void EnterFiber(Thread& thread);
  void LeaveFiber(Thread& thread, bool for_good);

  const Grid& grid_;
  const std::function<void()>& body_;
  std::vector<Thread> threads_;
  std::vector<uint64_t> warp_values_;  // What each lane handed in to its last finished operation.
  Mapping stacks_;
  GuardedMemory shared_;
  uint32_t random_;
  dim3 index_;
  Thread* thread_ = nullptr;
  size_t exited_ = 0;
  const void* scheduler_stack_ = nullptr;
  size_t scheduler_stack_bytes_ = 0;
};

thread_local ThreadBlock* running_block = nullptr;

ThreadBlock& Running() {
  if (running_block == nullptr) Die("outside a kernel", "device code was called");
  return *running_block;
}

void ThreadBlock::Fail(const Thread& thread, const char* what) const {
  char where[96];
  std::snprintf(where, sizeof(where), "block (%u, %u, %u), thread (%u, %u, %u)", index_.x, index_.y, index_.z,
                thread.index.x, thread.index.y, thread.index.z);
  Die(where, what);
}

// The address sanitizer keeps an account of each stack and must hear of every change.
void ThreadBlock::EnterFiber([[maybe_unused]] Thread& thread) {
#ifdef NQKV_FIBERS_UNDER_ASAN
  __sanitizer_finish_switch_fiber(thread.asan_stack, &scheduler_stack_, &scheduler_stack_bytes_);
#endif
}

void ThreadBlock::LeaveFiber([[maybe_unused]] Thread& thread, [[maybe_unused]] bool for_good) {
#ifdef NQKV_FIBERS_UNDER_ASAN
  __sanitizer_start_switch_fiber(for_good ? nullptr : &thread.asan_stack, scheduler_stack_, scheduler_stack_bytes_);
#endif
}

void ThreadBlock::Start(Thread& thread) {
  boost::context::stack_context context;
  context.size = kStackBytes;
  context.sp = stack(thread) + kStackBytes;
  std::memcpy(stack(thread), &kStackCanary, sizeof(kStackCanary));
  thread.state = State::kRuns;
  thread.asan_stack = nullptr;
  thread.context = fiber(std::allocator_arg, boost::context::preallocated(context.sp, context.size, context),
                         KeepStack{}, [this, &thread](fiber&& scheduler) {
                           EnterFiber(thread);
                           thread.scheduler = std::move(scheduler);
                           body_();
                           thread.state = State::kExited;
                           LeaveFiber(thread, true);
                           return std::move(thread.scheduler);
                         });
}

void ThreadBlock::Resume(Thread& thread) {
  thread_ = &thread;
#ifdef NQKV_FIBERS_UNDER_ASAN
  void* own_stack = nullptr;
  __sanitizer_start_switch_fiber(&own_stack, stack(thread), kStackBytes);
#endif
  thread.context = std::move(thread.context).resume();
#ifdef NQKV_FIBERS_UNDER_ASAN
  __sanitizer_finish_switch_fiber(own_stack, nullptr, nullptr);
#endif
  thread_ = nullptr;
  exited_ += thread.state == State::kExited;
}

void ThreadBlock::Wait(State state) {
  Thread& thread = *thread_;
  thread.state = state;
  LeaveFiber(thread, false);
  thread.scheduler = std::move(thread.scheduler).resume();
  EnterFiber(thread);
}

void ThreadBlock::CheckMeeting(const Thread& thread, unsigned first, unsigned last) const {
  if ((thread.meeting.mask >> (thread.number - first) & 1) == 0) {
    Fail(thread, "a warp operation's mask leaves out the thread that calls it");
  }
  for (unsigned i = first; i < last; ++i) {
    if ((thread.meeting.mask >> (i - first) & 1) == 0) continue;
    const bool here = threads_[i].state == State::kInWarpOperation && threads_[i].meeting == thread.meeting;
    if (!here) Fail(threads_[i], "diverged: other lanes of the mask wait for it in a warp operation");
  }
}

// Every lane of the warp waits or has exited. False: none is in a warp operation.
bool ThreadBlock::FinishWarpOperations(unsigned first, unsigned last) {
  bool any = false;
  for (unsigned i = first; i < last; ++i) {
    if (threads_[i].state != State::kInWarpOperation) continue;
    CheckMeeting(threads_[i], first, last);
    any = true;
  }
  for (unsigned i = first; i < last && any; ++i) {
    if (threads_[i].state != State::kInWarpOperation) continue;
    warp_values_[i] = threads_[i].value;
    threads_[i].state = State::kRuns;
  }
  return any;
}

void ThreadBlock::RunWarp(unsigned first) {
  const auto last = static_cast<unsigned>(std::min<size_t>(first + kWarpLanes, threads_.size()));
  do {
    Order(last - first, &random_).ForEach([&](unsigned lane) {
      Thread& thread = threads_[first + lane];
      if (thread.state == State::kRuns) Resume(thread);
    });
  } while (FinishWarpOperations(first, last));
}

void ThreadBlock::OpenBarrier() {
  const Thread* first = nullptr;
  for (Thread& thread : threads_) {
    if (thread.state != State::kAtBarrier) continue;
    if (exited_ > 0) Fail(thread, "diverged: waits at a barrier of the block, which other threads have left");
    if (first == nullptr) first = &thread;
    if (thread.barrier_line != first->barrier_line) Fail(thread, "diverged: the block's threads wait at two barriers");
    thread.state = State::kRuns;
  }
}

void ThreadBlock::CheckStacks() const {
  for (const Thread& thread : threads_) {
    if (std::memcmp(stack(thread), &kStackCanary, sizeof(kStackCanary)) != 0) Fail(thread, "its stack overflowed");
  }
}

void ThreadBlock::Run(const dim3& index) {
  index_ = index;
  exited_ = 0;
  std::memset(shared_.data(), 0xff, shared_.bytes());
  for (Thread& thread : threads_) Start(thread);
  const auto warps = static_cast<unsigned>((threads_.size() + kWarpLanes - 1) / kWarpLanes);
  while (exited_ < threads_.size()) {
    Order(warps, &random_).ForEach([&](unsigned warp) { RunWarp(warp * kWarpLanes); });
    OpenBarrier();
  }
  CheckStacks();
}

}  // namespace

void RunGrid(const Grid& grid, const std::function<void()>& body) {
  const size_t threads = size_t{grid.threads.x} * grid.threads.y * grid.threads.z;
  if (threads == 0 || threads > 1024) Die("launch", "a block has 1 to 1024 threads");
  if (grid.blocks.x == 0 || grid.blocks.y == 0 || grid.blocks.z == 0) Die("launch", "the grid is empty");
  if (grid.blocks.y > 65535 || grid.blocks.z > 65535) Die("launch", "the grid's y and z end at 65535");
  ThreadBlock block(grid, body);
  ThreadBlock* const outer = std::exchange(running_block, &block);
  for (unsigned z = 0; z < grid.blocks.z; ++z) {
    for (unsigned y = 0; y < grid.blocks.y; ++y) {
      for (unsigned x = 0; x < grid.blocks.x; ++x) block.Run(dim3(x, y, z));
    }
  }
  running_block = outer;
}

dim3 ThreadIndex() { return Running().thread().index; }
dim3 BlockIndex() { return Running().index(); }
dim3 BlockSize() { return Running().grid().threads; }
dim3 GridSize() { return Running().grid().blocks; }
std::byte* SharedMemory() { return Running().shared().data(); }
size_t SharedBytes() { return Running().grid().shared_bytes; }
unsigned Lane() { return Running().thread().number % kWarpLanes; }

void SyncBlock(int line) {
  ThreadBlock& block = Running();
  block.thread().barrier_line = line;
  block.Wait(State::kAtBarrier);
}

void MeetWarp(WarpOperation operation, uint32_t mask, uint64_t value, int line) {
  ThreadBlock& block = Running();
  Thread& thread = block.thread();
  thread.meeting = {.operation = operation, .mask = mask, .line = line};
  thread.value = value;
  block.Wait(State::kInWarpOperation);
}

uint64_t WarpValue(unsigned lane) {
  ThreadBlock& block = Running();
  const Thread& thread = block.thread();
  const bool exists = thread.number / kWarpLanes * kWarpLanes + lane < BlockSize().x * BlockSize().y * BlockSize().z;
  if (lane >= kWarpLanes || !exists || (thread.meeting.mask >> lane & 1) == 0) {
    block.Fail(thread, "reads from a lane outside the operation's mask");
  }
  return block.warp_value(lane);
}

void Check(bool holds, const char* what) {
  if (!holds) Running().Fail(Running().thread(), what);
}

}  // namespace nqkv::fake_cuda
