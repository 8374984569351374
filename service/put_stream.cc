#include "service/put_stream.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/status_macros.h"
#include "proto/rpc_status.h"
#include "service/request_check.h"

namespace nqkv {
namespace {

// Blocks that were refused and whose bytes have not all come. A client that goes on beginning blocks without sending
// the rest of those is broken; each costs only a few bytes.
constexpr size_t kSkippingMax = 65'536;
// Blocks of a stream that are put into the order of eviction together.
constexpr size_t kStoredMax = 4'096;

// The first `bytes` of what is left of the payload.
std::vector<std::span<const std::byte>> CutFront(std::vector<std::span<const std::byte>>* payload, size_t* piece,
                                                 uint64_t bytes) {
  std::vector<std::span<const std::byte>> front;
  while (bytes > 0) {
    std::span<const std::byte>& next = (*payload)[*piece];
    const size_t taken = std::min<uint64_t>(bytes, next.size());
    front.push_back(next.first(taken));
    next = next.subspan(taken);
    if (next.empty()) ++*piece;
    bytes -= taken;
  }
  return front;
}

absl::Status CheckChunkBytes(const PutMessage& message) {
  uint64_t sum = 0;
  for (const v1::PutChunk& chunk : message.fields.chunks()) {
    if (chunk.bytes() > message.payload_bytes - sum) {
      return FieldError("chunks", absl::StrCat("they take more than the ", message.payload_bytes, " bytes of payload"));
    }
    sum += chunk.bytes();
  }
  if (sum == message.payload_bytes) return absl::OkStatus();
  return FieldError("chunks", absl::StrCat("they take ", sum, " of the ", message.payload_bytes, " bytes of payload"));
}

}  // namespace

PutStream::PutStream(const CallEnvironment* environment, Caller caller)
    : environment_(environment), caller_(std::move(caller)) {}

absl::Status PutStream::Take(const IncomingMessage& incoming, v1::PutResponse* response) {
  NQKV_ASSIGN_OR_RETURN(PutMessage message, ParsePutMessage(incoming.pieces()));
  NQKV_RETURN_IF_ERROR(CheckRequest(message.fields));
  NQKV_RETURN_IF_ERROR(Open(message.fields));
  NQKV_RETURN_IF_ERROR(CheckChunkBytes(message));
  payload_bytes_ += message.payload_bytes;
  size_t piece = 0;
  for (const v1::PutChunk& chunk : message.fields.chunks()) {
    if (chunk.has_begin()) NQKV_RETURN_IF_ERROR(BeginBlock(chunk, response));
    const auto bytes = CutFront(&message.payload, &piece, chunk.bytes());
    if (skipping_.contains(chunk.block())) {
      SkipChunk(chunk.block(), chunk.bytes());
    } else {
      NQKV_RETURN_IF_ERROR(WriteChunk(chunk.block(), bytes, response));
    }
  }
  return absl::OkStatus();
}

absl::Status PutStream::Open(const v1::PutRequest& fields) {
  if (cache_ == nullptr) {
    NQKV_ASSIGN_OR_RETURN(cache_, environment_->caches->Find(caller_.tenant, fields.cache_id()));
    NQKV_ASSIGN_OR_RETURN(shard_, cache_->FindShard(fields.shard_id()));
    cache_id_ = fields.cache_id();
    shard_id_ = fields.shard_id();
    return absl::OkStatus();
  }
  if (fields.cache_id() != 0 && fields.cache_id() != cache_id_) {
    return FieldError("cache_id", "not that of the stream's first message");
  }
  if (fields.shard_id() != 0 && fields.shard_id() != shard_id_) {
    return FieldError("shard_id", "not that of the stream's first message");
  }
  return absl::OkStatus();
}

absl::Status PutStream::BeginBlock(const v1::PutChunk& chunk, v1::PutResponse* response) {
  const uint32_t block = chunk.block();
  if (writers_.contains(block)) return FieldError("chunks.begin", absl::StrCat("block ", block, " is open already"));
  skipping_.erase(block);  // A client that knows its block was refused may leave out the rest.
  if (writers_.size() >= environment_->limits.put_open_blocks_max) {
    return FieldError("chunks.begin",
                      absl::StrCat("more than ", environment_->limits.put_open_blocks_max, " open blocks"));
  }
  absl::StatusOr<BlockWriter> writer = BlockWriter::Begin(*environment_, caller_, *cache_, *shard_, chunk.begin());
  if (writer.ok()) {
    writers_.emplace(block, *std::move(writer));
    return absl::OkStatus();
  }
  EndBlock(block, writer.status(), response->add_results());
  if (skipping_.size() >= kSkippingMax) {
    return FieldError("chunks.begin", absl::StrCat("more than ", kSkippingMax, " refused blocks that never ended"));
  }
  skipping_[block] = chunk.begin().payload_bytes();
  return absl::OkStatus();
}

absl::Status PutStream::WriteChunk(uint32_t block, std::span<const std::span<const std::byte>> bytes,
                                   v1::PutResponse* response) {
  const auto found = writers_.find(block);
  if (found == writers_.end()) return FieldError("chunks.block", absl::StrCat("block ", block, " was not begun"));
  BlockWriter& writer = found->second;
  uint64_t sum = 0;
  for (const std::span<const std::byte>& piece : bytes) sum += piece.size();
  const uint64_t missing = writer.bytes_missing();
  absl::Status status;
  if (sum > missing) {
    status = FieldError("chunks.bytes",
                        absl::StrCat("block ", block, " has ", sum - missing, " bytes more than its payload_bytes"));
  }
  for (size_t i = 0; i < bytes.size() && status.ok(); ++i) status = writer.Write(bytes[i]);
  if (!status.ok() && writer.scratch_refused()) return status;
  if (status.ok() && writer.bytes_missing() > 0) return absl::OkStatus();
  v1::BlockPutResult* result = response->add_results();
  if (status.ok()) status = writer.Commit(result);
  if (status.ok()) stored_.push_back(writer.key());
  if (stored_.size() >= kStoredMax) SettleStored();
  writers_.erase(found);
  EndBlock(block, status, result);
  if (sum < missing) skipping_[block] = missing - sum;
  return absl::OkStatus();
}

void PutStream::SkipChunk(uint32_t block, uint64_t bytes) {
  const auto found = skipping_.find(block);
  found->second -= std::min(found->second, bytes);
  if (found->second == 0) skipping_.erase(found);
}

void PutStream::EndBlock(uint32_t block, const absl::Status& status, v1::BlockPutResult* result) {
  CacheMetrics& metrics = cache_->metrics();
  ++ended_blocks_;
  result->set_block(block);
  if (absl::IsAlreadyExists(status)) {
    result->set_outcome(v1::PUT_OUTCOME_ALREADY_PRESENT);
    ToProto(absl::OkStatus(), result->mutable_status());
    metrics.put_blocks_present->Increment();
    return;
  }
  ToProto(status, result->mutable_status());
  if (status.ok()) result->set_outcome(v1::PUT_OUTCOME_STORED);
  (status.ok() ? metrics.put_blocks_stored : metrics.put_blocks_refused)->Increment();
}

void PutStream::End(v1::PutResponse* response) {
  for (const auto& [block, writer] : writers_) {
    EndBlock(block,
             FieldError("payload", absl::StrCat("the stream ended before the last ", writer.bytes_missing(),
                                                " bytes of the block")),
             response->add_results());
  }
  writers_.clear();
  SettleStored();
}

// Clients send a prompt's blocks head first; the head shall be evicted last.
void PutStream::SettleStored() {
  environment_->store->Settle(stored_);
  stored_.clear();
}

}  // namespace nqkv
