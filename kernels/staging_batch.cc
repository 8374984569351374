#include "kernels/staging_batch.h"

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/device_codec.h"
#include "kernels/status_macros.h"

namespace nqkv {

namespace {

constexpr size_t kAlignment = 16;
// Beside a plane: its jobs, its checksum, and what alignment costs.
constexpr size_t kItemBytes = sizeof(DeviceEncodeJob) + sizeof(DeviceDecodeJob) + sizeof(DeviceCrcJob) + 8 * kAlignment;

// Takes places in a buffer, the same in both of its memories.
class Cursor {
 public:
  explicit Cursor(const StagingBuffer& buffer) : buffer_(buffer) {}

  size_t Take(size_t bytes) {
    const size_t begin = end_;
    end_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return begin;
  }
  size_t end() const { return end_; }

  std::byte* host(size_t offset) const { return buffer_.host.data() + offset; }
  template <typename T = std::byte>
  T* device(size_t offset) const {
    return reinterpret_cast<T*>(buffer_.device.data() + offset);
  }

  absl::Status Upload() const {
    return CopyToDevice(buffer_.device.data(), buffer_.host.data(), end_, buffer_.stream.view());
  }
  absl::Status Download(size_t begin) const {
    return CopyToHost(host(begin), device(begin), end_ - begin, buffer_.stream.view());
  }

 private:
  const StagingBuffer& buffer_;
  size_t end_ = 0;
};

template <typename Job>
void PutJob(const Cursor& cursor, size_t table, size_t index, const Job& job) {
  std::memcpy(cursor.host(table + index * sizeof(Job)), &job, sizeof(Job));
}

// The layout of a plane without gaps, [tokens][heads][channels].
DevicePlaneLayout DenseLayout(uint32_t tokens, uint32_t heads, uint32_t channels, Dtype dtype) {
  const auto row = static_cast<int64_t>(channels * DtypeBytes(dtype));
  return {.token_stride = row * heads, .head_stride = row, .page_tokens = tokens};
}

// Copies rows between a dense plane and one with strides. `Copy(dense row, row with strides)`.
template <typename Copy>
void ForEachRow(const PlaneShape& shape, ptrdiff_t token_stride, ptrdiff_t head_stride, Copy copy) {
  const size_t row_bytes = shape.channels * DtypeBytes(shape.dtype);
  const bool dense = head_stride == static_cast<ptrdiff_t>(row_bytes) &&
                     token_stride == static_cast<ptrdiff_t>(row_bytes * shape.heads);
  if (dense) return copy(size_t{0}, ptrdiff_t{0}, shape.raw_bytes());
  for (uint32_t t = 0; t < shape.tokens; ++t) {
    for (uint32_t h = 0; h < shape.heads; ++h) {
      copy((size_t{t} * shape.heads + h) * row_bytes, t * token_stride + h * head_stride, row_bytes);
    }
  }
}

PlaneShape TargetShape(const PlaneDecodeJob& job) {
  return {job.shape.tokens, job.head_end - job.head_begin, job.shape.channels, job.dtype};
}

bool IsAlike(const PlaneEncodeJob& a, const PlaneEncodeJob& b) { return a.shape == b.shape && a.codec == b.codec; }
bool IsAlike(const PlaneDecodeJob& a, const PlaneDecodeJob& b) {
  return a.shape == b.shape && a.codec == b.codec && a.head_begin == b.head_begin && a.head_end == b.head_end &&
         a.dtype == b.dtype;
}

// Numbers of items that one launch can take together.
template <typename Item>
std::vector<std::vector<size_t>> Groups(const std::vector<Item*>& items) {
  std::vector<std::vector<size_t>> groups;
  for (size_t i = 0; i < items.size(); ++i) {
    std::vector<size_t>* found = nullptr;
    for (std::vector<size_t>& group : groups) {
      if (IsAlike(items[group.front()]->job, items[i]->job)) found = &group;
    }
    if (found == nullptr) found = &groups.emplace_back();
    found->push_back(i);
  }
  return groups;
}

template <typename Item>
void PutChecksumJobs(const Cursor& cursor, const Batch<Item>& batch, size_t table) {
  for (size_t i = 0; i < batch.items.size(); ++i) {
    const auto& job = batch.items[i]->job;
    PutJob(cursor, table, i,
           DeviceCrcJob{.data = job.encoded,
                        .crc = cursor.device<uint32_t>(batch.checksums) + i,
                        .bytes = static_cast<uint32_t>(EncodedBytes(job.codec, job.shape))});
  }
}

template <typename Item>
uint32_t ChecksumOf(const Batch<Item>& batch, size_t index) {
  uint32_t checksum;
  std::memcpy(&checksum, batch.buffer->host.data() + batch.checksums + index * sizeof(checksum), sizeof(checksum));
  return checksum;
}

// Each gets a status of its own, since the items may belong to several threads.
template <typename Item>
void FailAll(const Batch<Item>& batch) {
  for (Item* item : batch.items) item->status = absl::Status(batch.status.code(), batch.status.message());
}

bool IsAligned(const std::byte* memory) { return reinterpret_cast<uintptr_t>(memory) % kAlignment == 0; }

}  // namespace

absl::StatusOr<StagingBuffer> StagingBuffer::Create(size_t bytes) {
  NQKV_ASSIGN_OR_RETURN(Stream stream, Stream::Create());
  NQKV_ASSIGN_OR_RETURN(PinnedMemory host, PinnedMemory::Allocate(bytes));
  NQKV_ASSIGN_OR_RETURN(DeviceMemory device, DeviceMemory::Allocate(bytes));
  return StagingBuffer{std::move(stream), std::move(host), std::move(device)};
}

size_t StagingBytes(const EncodeItem& item) {
  return item.job.shape.raw_bytes() + item.job.shape.heads * sizeof(DeviceHeadSums) + kItemBytes;
}

size_t StagingBytes(const DecodeItem& item) { return TargetShape(item.job).raw_bytes() + kItemBytes; }

absl::Status CheckItem(const EncodeItem& item) {
  const PlaneEncodeJob& job = item.job;
  if (!IsAligned(job.encoded)) return absl::InvalidArgumentError("encoded: not aligned to 16 bytes");
  return CheckDeviceEncode(
      {.shape = job.shape,
       .codec = job.codec,
       .layout = DenseLayout(job.shape.tokens, job.shape.heads, job.shape.channels, job.shape.dtype)});
}

absl::Status CheckItem(const DecodeItem& item) {
  const PlaneDecodeJob& job = item.job;
  if (!IsAligned(job.encoded)) return absl::InvalidArgumentError("encoded: not aligned to 16 bytes");
  return CheckDeviceDecode({.shape = job.shape,
                            .codec = job.codec,
                            .head_begin = job.head_begin,
                            .head_end = job.head_end,
                            .dtype = job.dtype,
                            .layout = {.page_tokens = 1}});
}

absl::Status Enqueue(Batch<EncodeItem>& batch) {
  const StreamView stream = batch.buffer->stream.view();
  Cursor cursor(*batch.buffer);
  std::vector<size_t> sources;
  for (const EncodeItem* item : batch.items) {
    const PlaneEncodeJob& job = item->job;
    sources.push_back(cursor.Take(job.shape.raw_bytes()));
    std::byte* const dense = cursor.host(sources.back());
    ForEachRow(job.shape, job.token_stride, job.head_stride,
               [&](size_t at, ptrdiff_t offset, size_t bytes) { std::memcpy(dense + at, job.source + offset, bytes); });
  }
  const size_t jobs = cursor.Take(batch.items.size() * sizeof(DeviceEncodeJob));
  const size_t checksum_jobs = cursor.Take(batch.items.size() * sizeof(DeviceCrcJob));
  Cursor results = cursor;
  for (const EncodeItem* item : batch.items) {
    batch.results.push_back(results.Take(item->job.shape.heads * sizeof(DeviceHeadSums)));
  }
  batch.checksums = results.Take(batch.items.size() * sizeof(uint32_t));

  const std::vector<std::vector<size_t>> groups = Groups(batch.items);
  size_t next = 0;
  for (const std::vector<size_t>& group : groups) {
    for (size_t i : group) {
      PutJob(cursor, jobs, next++,
             DeviceEncodeJob{.source = cursor.device(sources[i]),
                             .encoded = batch.items[i]->job.encoded,
                             .sums = cursor.device<DeviceHeadSums>(batch.results[i])});
    }
  }
  PutChecksumJobs(cursor, batch, checksum_jobs);
  NQKV_RETURN_IF_ERROR(cursor.Upload());
  next = 0;
  for (const std::vector<size_t>& group : groups) {
    const PlaneShape& shape = batch.items[group.front()]->job.shape;
    NQKV_RETURN_IF_ERROR(EncodeOnDevice({.jobs = cursor.device<const DeviceEncodeJob>(jobs) + next,
                                         .job_count = static_cast<uint32_t>(group.size()),
                                         .shape = shape,
                                         .codec = batch.items[group.front()]->job.codec,
                                         .layout = DenseLayout(shape.tokens, shape.heads, shape.channels, shape.dtype)},
                                        stream));
    next += group.size();
  }
  NQKV_RETURN_IF_ERROR(Crc32cOnDevice(cursor.device<const DeviceCrcJob>(checksum_jobs),
                                      static_cast<uint32_t>(batch.items.size()), stream));
  return results.Download(cursor.end());
}

absl::Status Enqueue(Batch<DecodeItem>& batch) {
  const StreamView stream = batch.buffer->stream.view();
  Cursor cursor(*batch.buffer);
  const size_t jobs = cursor.Take(batch.items.size() * sizeof(DeviceDecodeJob));
  const size_t checksum_jobs = cursor.Take(batch.items.size() * sizeof(DeviceCrcJob));
  Cursor results = cursor;
  batch.checksums = results.Take(batch.items.size() * sizeof(uint32_t));
  for (const DecodeItem* item : batch.items) batch.results.push_back(results.Take(TargetShape(item->job).raw_bytes()));

  const std::vector<std::vector<size_t>> groups = Groups(batch.items);
  size_t next = 0;
  for (const std::vector<size_t>& group : groups) {
    for (size_t i : group) {
      PutJob(cursor, jobs, next++,
             DeviceDecodeJob{.encoded = batch.items[i]->job.encoded, .target = cursor.device(batch.results[i])});
    }
  }
  PutChecksumJobs(cursor, batch, checksum_jobs);
  NQKV_RETURN_IF_ERROR(cursor.Upload());
  NQKV_RETURN_IF_ERROR(Crc32cOnDevice(cursor.device<const DeviceCrcJob>(checksum_jobs),
                                      static_cast<uint32_t>(batch.items.size()), stream));
  next = 0;
  for (const std::vector<size_t>& group : groups) {
    const PlaneDecodeJob& job = batch.items[group.front()]->job;
    NQKV_RETURN_IF_ERROR(DecodeOnDevice(
        {.jobs = cursor.device<const DeviceDecodeJob>(jobs) + next,
         .job_count = static_cast<uint32_t>(group.size()),
         .shape = job.shape,
         .codec = job.codec,
         .head_begin = job.head_begin,
         .head_end = job.head_end,
         .dtype = job.dtype,
         .layout = DenseLayout(job.shape.tokens, job.head_end - job.head_begin, job.shape.channels, job.dtype)},
        stream));
    next += group.size();
  }
  return results.Download(cursor.end());
}

void Finish(const Batch<EncodeItem>& batch) {
  if (!batch.status.ok()) return FailAll(batch);
  for (size_t i = 0; i < batch.items.size(); ++i) {
    const EncodeItem& item = *batch.items[i];
    const auto* sums = reinterpret_cast<const DeviceHeadSums*>(batch.buffer->host.data() + batch.results[i]);
    *item.result = FoldHeads({sums, item.job.shape.heads});
    const bool encoded = item.result->finite && item.result->in_scale_range;
    if (encoded || item.job.codec.id == CodecId::kRaw) item.result->crc32c = ChecksumOf(batch, i);
  }
}

void Finish(const Batch<DecodeItem>& batch) {
  if (!batch.status.ok()) return FailAll(batch);
  for (size_t i = 0; i < batch.items.size(); ++i) {
    DecodeItem& item = *batch.items[i];
    if (ChecksumOf(batch, i) != item.job.crc32c) {
      item.status = absl::DataLossError(absl::StrCat("plane ", item.index, " does not have its checksum"));
      continue;
    }
    const std::byte* const dense = batch.buffer->host.data() + batch.results[i];
    ForEachRow(
        TargetShape(item.job), item.job.token_stride, item.job.head_stride,
        [&](size_t at, ptrdiff_t offset, size_t bytes) { std::memcpy(item.job.target + offset, dense + at, bytes); });
  }
}

}  // namespace nqkv
