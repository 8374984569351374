// One batch of planes on its way through a staging buffer: what is laid out in it, copied, launched and read back.
//
// Not thread-safe: a buffer belongs to whoever runs the batch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/device_memory.h"
#include "kernels/stream.h"

namespace nqkv {

// Pinned host memory with a twin of the same size on the device, and the stream that copies between them.
struct StagingBuffer {
  Stream stream;
  PinnedMemory host;
  DeviceMemory device;

  static absl::StatusOr<StagingBuffer> Create(size_t bytes);
};

// A plane that waits for its turn. `status` and `done` are set when it had it.
struct EncodeItem {
  PlaneEncodeJob job;
  EncodeResult* result = nullptr;
  absl::Status status;
  bool done = false;
};
struct DecodeItem {
  PlaneDecodeJob job;
  size_t index = 0;  // Among the caller's planes.
  absl::Status status;
  bool done = false;
};

// What of a staging buffer the item needs at most.
size_t StagingBytes(const EncodeItem& item);
size_t StagingBytes(const DecodeItem& item);

// INVALID_ARGUMENT or UNIMPLEMENTED: the item cannot be in a batch.
absl::Status CheckItem(const EncodeItem& item);
absl::Status CheckItem(const DecodeItem& item);

// What is enqueued, and where its results will be in the buffer.
template <typename Item>
struct Batch {
  StagingBuffer* buffer = nullptr;
  std::vector<Item*> items;
  absl::Status status;          // Of enqueueing.
  std::vector<size_t> results;  // An item: head sums, or the decoded plane.
  size_t checksums = 0;         // [items] u32
};

// Enqueues the batch on its buffer's stream. Precondition: the items' StagingBytes fit the buffer together. After an
// error a part may be enqueued: the stream must be waited for all the same.
absl::Status Enqueue(Batch<EncodeItem>& batch);
absl::Status Enqueue(Batch<DecodeItem>& batch);

// Reads the results from the buffer and sets the items' status. Precondition: the stream has been waited for.
void Finish(const Batch<EncodeItem>& batch);
void Finish(const Batch<DecodeItem>& batch);

}  // namespace nqkv
