#include "kernels/cuda_backend.h"

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/device_memory.h"
#include "kernels/mutex.h"
#include "kernels/staging_batch.h"
#include "kernels/status_macros.h"

namespace nqkv {

namespace {

// Batches that one caller has on the device at a time: one is copied while the other is computed.
constexpr size_t kBatchesPerCaller = 2;

class CudaMemory final : public BackendMemory {
 public:
  explicit CudaMemory(DeviceMemory memory) : memory_(std::move(memory)) {}
  std::span<std::byte> bytes() const override { return {memory_.data(), memory_.bytes()}; }

 private:
  DeviceMemory memory_;
};

// Planes wait in a queue for a free staging buffer. Whoever has planes there and finds a buffer free runs a batch of
// what waits, its own planes or not; the others sleep until theirs are done.
class CudaBackend final : public Backend {
 public:
  CudaBackend(std::vector<StagingBuffer> buffers, size_t staging_bytes)
      : staging_bytes_(staging_bytes), buffers_(std::move(buffers)) {
    for (StagingBuffer& buffer : buffers_) free_.push_back(&buffer);
  }

  absl::string_view name() const override { return "cuda"; }
  bool Has(const PlaneCodec& codec) const override {
    EncodeItem item;
    item.job.shape = {.tokens = 1, .heads = 1, .channels = 1024};
    item.job.codec = codec;
    return CheckItem(item).ok();
  }

  absl::StatusOr<std::unique_ptr<BackendMemory>> Allocate(size_t bytes) override {
    NQKV_ASSIGN_OR_RETURN(DeviceMemory memory, DeviceMemory::Allocate(bytes));
    return std::make_unique<CudaMemory>(std::move(memory));
  }

  absl::Status Encode(std::span<const PlaneEncodeJob> planes, std::span<EncodeResult> results) override {
    std::vector<EncodeItem> items(planes.size());
    for (size_t i = 0; i < planes.size(); ++i) {
      items[i].job = planes[i];
      items[i].result = &results[i];
    }
    return Run(std::span(items));
  }

  absl::Status Decode(std::span<const PlaneDecodeJob> planes) override {
    std::vector<DecodeItem> items(planes.size());
    for (size_t i = 0; i < planes.size(); ++i) {
      items[i].job = planes[i];
      items[i].index = i;
    }
    return Run(std::span(items));
  }

  absl::Status Write(std::span<const std::byte> source, std::byte* target) override {
    return Copy(source.size(), [&](StagingBuffer& buffer, size_t done, size_t bytes) {
      std::memcpy(buffer.host.data(), source.data() + done, bytes);
      return Settle(buffer, CopyToDevice(target + done, buffer.host.data(), bytes, buffer.stream.view()));
    });
  }

  absl::Status Read(const std::byte* source, std::span<std::byte> target) override {
    return Copy(target.size(), [&](StagingBuffer& buffer, size_t done, size_t bytes) {
      NQKV_RETURN_IF_ERROR(Settle(buffer, CopyToHost(buffer.host.data(), source + done, bytes, buffer.stream.view())));
      std::memcpy(target.data() + done, buffer.host.data(), bytes);
      return absl::OkStatus();
    });
  }

 private:
  std::deque<EncodeItem*>& Queue(const EncodeItem*) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return encodes_; }
  std::deque<DecodeItem*>& Queue(const DecodeItem*) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return decodes_; }

  template <typename Item>
  absl::Status Run(std::span<Item> items) ABSL_LOCKS_EXCLUDED(mutex_);
  // True when `batch` is to be run; false when the oldest running batch is to be finished, or, when there is none, all
  // is done.
  template <typename Item>
  bool NextBatch(std::span<Item> items, size_t running, Batch<Item>* batch) ABSL_LOCKS_EXCLUDED(mutex_);
  template <typename Item>
  void FillBatch(Batch<Item>* batch) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  template <typename Item>
  void FinishBatch(Batch<Item> batch) ABSL_LOCKS_EXCLUDED(mutex_);
  template <typename Item>
  void FailQueue(std::deque<Item*>& queue) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  template <typename CopyPiece>
  absl::Status Copy(size_t bytes, CopyPiece copy) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<StagingBuffer*> TakeBuffer() ABSL_LOCKS_EXCLUDED(mutex_);
  void GiveBack(StagingBuffer* buffer) ABSL_LOCKS_EXCLUDED(mutex_);
  // Waits for the buffer's stream, whatever became of what was to be enqueued. When even that fails, what is on the
  // device may still read and write: nothing may be used again.
  absl::Status Settle(StagingBuffer& buffer, absl::Status enqueued) ABSL_LOCKS_EXCLUDED(mutex_);

  const size_t staging_bytes_;
  std::vector<StagingBuffer> buffers_;
  Mutex mutex_;
  std::condition_variable_any changed_;  // A buffer came free, items are done, or the device broke.
  std::vector<StagingBuffer*> free_ ABSL_GUARDED_BY(mutex_);
  std::deque<EncodeItem*> encodes_ ABSL_GUARDED_BY(mutex_);
  std::deque<DecodeItem*> decodes_ ABSL_GUARDED_BY(mutex_);
  absl::Status broken_ ABSL_GUARDED_BY(mutex_);
};

template <typename Item>
absl::Status CudaBackend::Run(std::span<Item> items) {
  for (const Item& item : items) {
    NQKV_RETURN_IF_ERROR(CheckItem(item));
    if (StagingBytes(item) > staging_bytes_) {
      return absl::ResourceExhaustedError(
          absl::StrCat("a plane needs ", StagingBytes(item), " bytes of a staging buffer that has ", staging_bytes_));
    }
  }
  {
    MutexLock lock(&mutex_);
    for (Item& item : items) Queue(&item).push_back(&item);
  }
  std::deque<Batch<Item>> running;
  for (;;) {
    Batch<Item> batch;
    if (NextBatch(items, running.size(), &batch)) {
      batch.status = Enqueue(batch);
      running.push_back(std::move(batch));
    } else if (!running.empty()) {
      FinishBatch(std::move(running.front()));
      running.pop_front();
    } else {
      break;
    }
  }
  for (const Item& item : items) NQKV_RETURN_IF_ERROR(item.status);
  return absl::OkStatus();
}

template <typename Item>
bool CudaBackend::NextBatch(std::span<Item> items, size_t running, Batch<Item>* batch) {
  MutexLock lock(&mutex_);
  for (;;) {
    if (!broken_.ok()) {
      FailQueue(encodes_);
      FailQueue(decodes_);
    }
    const bool all_done = std::all_of(items.begin(), items.end(), [](const Item& item) { return item.done; });
    const bool work_waits = !free_.empty() && !Queue(items.data()).empty();
    if (!all_done && work_waits && running < kBatchesPerCaller) {
      FillBatch(batch);
      return true;
    }
    if (all_done || running > 0) return false;
    changed_.wait(mutex_);
  }
}

template <typename Item>
void CudaBackend::FillBatch(Batch<Item>* batch) {
  batch->buffer = free_.back();
  free_.pop_back();
  std::deque<Item*>& queue = Queue(static_cast<const Item*>(nullptr));
  size_t bytes = 0;
  while (!queue.empty() && bytes + StagingBytes(*queue.front()) <= staging_bytes_) {
    bytes += StagingBytes(*queue.front());
    batch->items.push_back(queue.front());
    queue.pop_front();
  }
}

template <typename Item>
void CudaBackend::FinishBatch(Batch<Item> batch) {
  const absl::Status settled = Settle(*batch.buffer, batch.status);
  if (batch.status.ok()) batch.status = settled;
  Finish(batch);
  {
    MutexLock lock(&mutex_);
    for (Item* item : batch.items) item->done = true;
    if (broken_.ok()) free_.push_back(batch.buffer);
  }
  changed_.notify_all();
}

template <typename Item>
void CudaBackend::FailQueue(std::deque<Item*>& queue) {
  for (Item* item : queue) {
    item->status = absl::Status(broken_.code(), broken_.message());
    item->done = true;
  }
  if (!queue.empty()) changed_.notify_all();
  queue.clear();
}

absl::Status CudaBackend::Settle(StagingBuffer& buffer, absl::Status enqueued) {
  absl::Status waited = buffer.stream.Wait();
  if (!waited.ok()) {
    MutexLock lock(&mutex_);
    if (broken_.ok()) broken_ = absl::Status(waited.code(), waited.message());
    free_.clear();
    return waited;
  }
  return enqueued;
}

template <typename CopyPiece>
absl::Status CudaBackend::Copy(size_t bytes, CopyPiece copy) {
  NQKV_ASSIGN_OR_RETURN(StagingBuffer* const buffer, TakeBuffer());
  absl::Status status;
  for (size_t done = 0; done < bytes && status.ok(); done += staging_bytes_) {
    status = copy(*buffer, done, std::min(staging_bytes_, bytes - done));
  }
  GiveBack(buffer);
  return status;
}

absl::StatusOr<StagingBuffer*> CudaBackend::TakeBuffer() {
  MutexLock lock(&mutex_);
  while (free_.empty() && broken_.ok()) changed_.wait(mutex_);
  if (!broken_.ok()) return absl::Status(broken_.code(), broken_.message());
  StagingBuffer* const buffer = free_.back();
  free_.pop_back();
  return buffer;
}

void CudaBackend::GiveBack(StagingBuffer* buffer) {
  {
    MutexLock lock(&mutex_);
    if (broken_.ok()) free_.push_back(buffer);
  }
  changed_.notify_all();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(const CudaBackendOptions& options) {
  if (options.staging_buffers == 0 || options.staging_bytes == 0) {
    return absl::InvalidArgumentError("staging: at least one buffer of one byte is needed");
  }
  NQKV_RETURN_IF_ERROR(FindDevice().status());
  std::vector<StagingBuffer> buffers;
  for (size_t i = 0; i < options.staging_buffers; ++i) {
    NQKV_ASSIGN_OR_RETURN(StagingBuffer buffer, StagingBuffer::Create(options.staging_bytes));
    buffers.push_back(std::move(buffer));
  }
  return std::make_unique<CudaBackend>(std::move(buffers), options.staging_bytes);
}

}  // namespace nqkv
