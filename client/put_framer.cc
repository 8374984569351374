#include "client/put_framer.h"

#include <algorithm>
#include <cstring>
#include <string>

namespace nqkv::client {
namespace {

constexpr uint32_t kPayloadTag = 15 << 3 | 2;  // PutRequest.payload, length-delimited.

void AppendVarint(std::string* out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out->push_back(static_cast<char>(value | 0x80));
  out->push_back(static_cast<char>(value));
}

v1::PutBegin BeginOf(const PutItem& item) {
  const PutBlock& block = *item.block;
  v1::PutBegin begin;
  begin.set_key(block.key);
  begin.set_layer_group(block.layer_group);
  if (block.layers) {
    begin.mutable_layers()->set_begin(block.layers->begin);
    begin.mutable_layers()->set_end(block.layers->end);
  }
  if (block.heads) {
    begin.mutable_heads()->set_begin(block.heads->begin);
    begin.mutable_heads()->set_end(block.heads->end);
  }
  begin.set_payload_bytes(item.bytes());
  begin.set_scope(block.scope);
  begin.set_token_start(block.token_start);
  begin.set_first_in_sequence(block.first_in_sequence);
  begin.set_provenance(static_cast<v1::Provenance>(block.provenance));
  return begin;
}

ptrdiff_t HeadStride(const PlaneSource& source, const PlanePiece& plane) {
  return source.head_stride != 0 ? source.head_stride
                                 : static_cast<ptrdiff_t>(plane.spec.channels * DtypeBytes(plane.spec.dtype));
}

ptrdiff_t TokenStride(const PlaneSource& source, const PlanePiece& plane) {
  return source.token_stride != 0 ? source.token_stride
                                  : HeadStride(source, plane) * static_cast<ptrdiff_t>(plane.heads);
}

bool IsContiguous(const PlaneSource& source, const PlanePiece& plane) {
  const auto head_bytes = static_cast<ptrdiff_t>(plane.spec.channels * DtypeBytes(plane.spec.dtype));
  return (plane.heads == 1 || HeadStride(source, plane) == head_bytes) &&
         (plane.tokens == 1 || TokenStride(source, plane) == static_cast<ptrdiff_t>(plane.token_bytes()));
}

grpc::Slice Gather(const PlaneSource& source, const PlanePiece& plane) {
  const size_t head_bytes = plane.spec.channels * DtypeBytes(plane.spec.dtype);
  const ptrdiff_t head_stride = HeadStride(source, plane);
  const ptrdiff_t token_stride = TokenStride(source, plane);
  grpc::Slice gathered(plane.bytes());
  auto* out = const_cast<uint8_t*>(gathered.begin());  // Nobody else has it yet.
  const auto* data = static_cast<const std::byte*>(source.data);
  for (uint32_t token = 0; token < plane.tokens; ++token) {
    for (uint32_t head = 0; head < plane.heads; ++head) {
      std::memcpy(out, data + token * token_stride + head * head_stride, head_bytes);
      out += head_bytes;
    }
  }
  return gathered;
}

}  // namespace

uint64_t PutItem::bytes() const {
  if (planes.empty()) return block->bytes;
  uint64_t bytes = 0;
  for (const PlanePiece& plane : planes) bytes += plane.bytes();
  return bytes;
}

PutFramer::PutFramer(uint64_t cache_id, uint32_t shard_id, std::span<const PutItem> items, uint64_t payload_bytes_max,
                     BorrowedMemory* borrowed)
    : items_(items),
      payload_bytes_max_(payload_bytes_max),
      borrowed_(borrowed),
      cache_id_(cache_id),
      shard_id_(shard_id) {}

grpc::ByteBuffer PutFramer::Next(size_t begin_max, size_t* begun) {
  v1::PutRequest request;
  if (first_) {
    request.set_cache_id(cache_id_);
    request.set_shard_id(shard_id_);
    first_ = false;
  }
  std::vector<grpc::Slice> slices(1);  // The first is the header, which is known last.
  uint64_t payload_bytes = 0;
  while (!done() && payload_bytes < payload_bytes_max_) {
    if (!begun_) {
      if (begin_max == 0) break;
      --begin_max;
      ++*begun;
    }
    payload_bytes += AddChunk(payload_bytes_max_ - payload_bytes, &request, &slices);
  }
  std::string header = request.SerializeAsString();
  AppendVarint(&header, kPayloadTag);
  AppendVarint(&header, payload_bytes);
  slices.front() = grpc::Slice(header);
  return grpc::ByteBuffer(slices.data(), slices.size());
}

uint64_t PutFramer::AddChunk(uint64_t room, v1::PutRequest* request, std::vector<grpc::Slice>* payload) {
  const PutItem& item = items_[item_];
  const uint64_t chunk_bytes = std::min(room, item.bytes() - sent_);
  v1::PutChunk* chunk = request->add_chunks();
  chunk->set_block(item.number);
  chunk->set_bytes(chunk_bytes);
  if (!begun_) *chunk->mutable_begin() = BeginOf(item);
  begun_ = true;
  for (uint64_t left = chunk_bytes; left > 0;) {
    if (piece_used_ == piece_.size()) LoadPiece();
    const size_t taken = std::min<uint64_t>(left, piece_.size() - piece_used_);
    payload->push_back(piece_.sub(piece_used_, piece_used_ + taken));
    piece_used_ += taken;
    left -= taken;
  }
  sent_ += chunk_bytes;
  if (sent_ == item.bytes()) {
    ++item_;
    sent_ = piece_index_ = piece_used_ = 0;
    piece_ = grpc::Slice();
    begun_ = false;
  }
  return chunk_bytes;
}

void PutFramer::LoadPiece() {
  const PutItem& item = items_[item_];
  piece_used_ = 0;
  if (item.planes.empty()) {
    piece_ = borrowed_->Borrow(item.block->data, item.block->bytes);
    return;
  }
  const PlaneSource& source = item.block->planes[piece_index_];
  const PlanePiece& plane = item.planes[piece_index_++];
  piece_ = IsContiguous(source, plane) ? borrowed_->Borrow(source.data, plane.bytes()) : Gather(source, plane);
}

}  // namespace nqkv::client
