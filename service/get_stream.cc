#include "service/get_stream.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/status_macros.h"
#include "proto/rpc_status.h"
#include "service/convert.h"
#include "service/request_check.h"
#include "spdlog/spdlog.h"

namespace nqkv {
namespace {

// What a message may spend on everything but the payload: results of misses, descriptions of planes.
constexpr size_t kChunksBytesMax = size_t{256} << 10;
// A message is begun below that and takes in one more block's descriptions, which have as much.
constexpr uint64_t kPlaneInfoBytesMax = 72;
constexpr uint64_t kHeadBytesMax = 2 * kChunksBytesMax;

// What the payload may have of a message, so that all of it stays below the limit that OpenCache tells.
uint64_t PayloadBytes(const ServiceLimits& limits) {
  const uint64_t head = std::min(kHeadBytesMax, limits.message_bytes_max / 2);
  return std::min(limits.message_bytes_best, limits.message_bytes_max - head);
}

void AppendVarint(uint64_t value, std::string* out) {
  while (value >= 0x80) {
    out->push_back(static_cast<char>(value | 0x80));
    value >>= 7;
  }
  out->push_back(static_cast<char>(value));
}

void FillPlaneInfo(const BlockView& part, const PlaneEntry& plane, v1::PlaneInfo* info) {
  const PartRange& range = part.header().range;
  info->set_layer(plane.layer);
  info->set_role(static_cast<v1::PlaneRole>(plane.role));
  *info->mutable_heads() = ToRange(range.head_begin, range.head_end);
  info->set_codec(static_cast<v1::Codec>(plane.codec.id));
  info->set_scale_group(plane.codec.scale_group);
  info->set_layout(static_cast<v1::PlaneLayout>(plane.codec.layout));
  info->set_stored_bytes(plane.length);
  info->set_floor_error(plane.errors.floor_error);
  info->set_token_norm_error(plane.errors.token_norm_error);
  info->set_nmse(plane.errors.nmse);
  info->set_crc32c(plane.crc32c);
  info->set_strong_channels(plane.codec.strong_channels);
}

}  // namespace

absl::StatusOr<std::unique_ptr<GetStream>> GetStream::Open(const CallEnvironment* environment, const Tenant& tenant,
                                                           const v1::GetRequest& request) {
  NQKV_RETURN_IF_ERROR(CheckRequest(request));
  NQKV_ASSIGN_OR_RETURN(const std::shared_ptr<Cache> cache, environment->caches->Find(tenant, request.cache_id()));
  NQKV_ASSIGN_OR_RETURN(const Shard* shard, cache->FindShard(request.shard_id()));
  const v1::KeyChain& chain = request.chain();
  NQKV_ASSIGN_OR_RETURN(const CacheGroup* group, cache->FindGroup(chain.layer_group(), "chain.layer_group"));
  if (chain.keys_size() == 0) return FieldError("chain.keys", "required");
  const uint32_t keys_max = environment->limits.get_keys_max;
  if (static_cast<uint32_t>(chain.keys_size()) > keys_max) {
    return FieldError("chain.keys", absl::StrCat(chain.keys_size(), " keys, at most ", keys_max));
  }
  NQKV_RETURN_IF_ERROR(CheckKeys(chain.keys(), "chain.keys"));
  NQKV_ASSIGN_OR_RETURN(const PartRange range, PartFromProto(request.has_layers() ? &request.layers() : nullptr,
                                                             request.has_heads() ? &request.heads() : nullptr,
                                                             shard->parts[cache->IndexOf(*group)], group->layout, ""));
  NQKV_ASSIGN_OR_RETURN(const std::optional<Dtype> dtype, DtypeFromProto(request.dtype(), "dtype"));
  std::vector<BlockKey> keys;
  keys.reserve(static_cast<size_t>(chain.keys_size()));
  for (const std::string& bytes : chain.keys()) {
    NQKV_ASSIGN_OR_RETURN(const BlockKey key, BlockKey::Create(tenant.id, cache->id(), group->layout.id, bytes));
    keys.push_back(key);
  }
  LeaseTable::Hold lease;
  if (!request.lease_token().empty()) {
    NQKV_ASSIGN_OR_RETURN(lease, environment->leases->BeginRead(tenant.id, request.lease_token()));
  }
  environment->store->Touch(keys);  // Together, so that the head of a chain stays the most recent.
  return std::unique_ptr<GetStream>(
      new GetStream(environment, cache, group, range, request, dtype, std::move(keys), std::move(lease)));
}

GetStream::GetStream(const CallEnvironment* environment, std::shared_ptr<Cache> cache, const CacheGroup* group,
                     const PartRange& range, const v1::GetRequest& request, std::optional<Dtype> dtype,
                     std::vector<BlockKey> keys, LeaseTable::Hold lease)
    : environment_(environment),
      cache_(std::move(cache)),
      group_(group),
      range_(range),
      span_(PlanesIn(group->layout, range)),
      include_planes_(request.include_planes()),
      dtype_(dtype),
      keys_(std::move(keys)),
      lease_(std::move(lease)),
      message_bytes_(PayloadBytes(environment->limits)) {
  for (size_t plane = span_.first; plane < span_.last; ++plane) {
    block_bytes_ += PlaneBytes(plane);
    plane_bytes_max_ = std::max(plane_bytes_max_, PlaneBytes(plane));
  }
}

uint64_t GetStream::PlaneBytes(size_t plane) const {
  PlaneShape shape = ShapeOf(group_->layout, group_->layout.planes[plane], range_);
  shape.dtype = DtypeOf(plane);
  return shape.raw_bytes();
}

uint64_t GetStream::buffer_bytes_max() const {
  if (block_bytes_ <= message_bytes_) return std::min(message_bytes_, keys_.size() * block_bytes_);
  return std::max(message_bytes_, plane_bytes_max_);
}

absl::StatusOr<OutgoingMessage> GetStream::Next(const std::shared_ptr<PayloadLease>& lease) {
  Draft draft;
  while (!done() && draft.chunks_bytes < kChunksBytesMax) {
    if (open_.has_value()) {
      NQKV_ASSIGN_OR_RETURN(const bool more, AddPlane(lease, &draft));
      if (!more) break;
    } else if (block_bytes_ <= message_bytes_) {
      if (!AddWholeBlock(lease, &draft)) break;
    } else if (!OpenLargeBlock(&draft)) {
      break;
    }
  }
  return Seal(std::move(draft));
}

bool GetStream::AddWholeBlock(const std::shared_ptr<PayloadLease>& lease, Draft* draft) {
  if (draft->buffer != nullptr && draft->end + block_bytes_ > draft->buffer_bytes) return false;
  const uint32_t index = static_cast<uint32_t>(next_key_++);
  absl::StatusOr<PinnedBlock> block = Pin(keys_[index]);
  absl::Status status = block.ok() ? CheckDescriptions(*block) : block.status();
  if (status.ok() && draft->buffer == nullptr) {
    const uint64_t blocks_left = keys_.size() - index;
    draft->buffer_bytes = std::min(message_bytes_, blocks_left * block_bytes_);
    draft->buffer = Allocate(draft->buffer_bytes, lease);
  }
  uint64_t end = draft->end;
  for (size_t plane = span_.first; plane < span_.last && status.ok(); ++plane) {
    status = Decode(*block, plane, draft->buffer->bytes.get() + end);
    end += PlaneBytes(plane);
  }
  if (!status.ok()) {
    FailBlock(index, DropIfDamaged(index, std::move(status)), draft);
    return true;
  }
  v1::GetChunk* chunk = ChunkOf(index, draft);
  FillResult(*block, chunk->mutable_result());
  chunk->set_bytes(block_bytes_);
  draft->chunks_bytes += chunk->ByteSizeLong();
  draft->end = end;
  CountHit(*block);
  return true;
}

bool GetStream::OpenLargeBlock(Draft* draft) {
  if (draft->end > draft->begin) return false;  // It starts a message of its own.
  const uint32_t index = static_cast<uint32_t>(next_key_++);
  absl::StatusOr<PinnedBlock> block = Pin(keys_[index]);
  absl::Status status = block.ok() ? CheckDescriptions(*block) : block.status();
  if (status.ok()) status = CheckPlanes(&*block);
  if (!status.ok()) {
    FailBlock(index, DropIfDamaged(index, std::move(status)), draft);
    return true;
  }
  v1::GetChunk* chunk = ChunkOf(index, draft);
  FillResult(*block, chunk->mutable_result());
  draft->chunks_bytes += chunk->ByteSizeLong();
  CountHit(*block);
  open_.emplace(OpenBlock{.pinned = *std::move(block), .index = index, .plane = span_.first});
  return true;
}

absl::StatusOr<bool> GetStream::AddPlane(const std::shared_ptr<PayloadLease>& lease, Draft* draft) {
  const uint64_t bytes = PlaneBytes(open_->plane);
  if (bytes > message_bytes_) {
    if (draft->end > draft->begin) return false;
    if (open_->plane_buffer == nullptr) {
      open_->plane_buffer = Allocate(bytes, lease);
      NQKV_RETURN_IF_ERROR(
          DropIfDamaged(open_->index, Decode(open_->pinned, open_->plane, open_->plane_buffer->bytes.get())));
    }
    AddPieceOfPlane(draft);
    return false;
  }
  if (draft->buffer == nullptr) {
    draft->buffer_bytes = message_bytes_;
    draft->buffer = Allocate(message_bytes_, lease);
  }
  if (draft->end + bytes > draft->buffer_bytes) return false;
  NQKV_RETURN_IF_ERROR(
      DropIfDamaged(open_->index, Decode(open_->pinned, open_->plane, draft->buffer->bytes.get() + draft->end)));
  v1::GetChunk* chunk = ChunkOf(open_->index, draft);
  chunk->set_bytes(chunk->bytes() + bytes);
  draft->end += bytes;
  if (++open_->plane == span_.last) open_.reset();
  return true;
}

void GetStream::AddPieceOfPlane(Draft* draft) {
  const uint64_t plane_bytes = PlaneBytes(open_->plane);
  const uint64_t bytes = std::min(message_bytes_, plane_bytes - open_->plane_sent);
  draft->buffer = open_->plane_buffer;
  draft->begin = open_->plane_sent;
  draft->end = draft->begin + bytes;
  v1::GetChunk* chunk = ChunkOf(open_->index, draft);
  chunk->set_bytes(chunk->bytes() + bytes);
  open_->plane_sent += bytes;
  if (open_->plane_sent < plane_bytes) return;
  open_->plane_buffer.reset();
  open_->plane_sent = 0;
  if (++open_->plane == span_.last) open_.reset();
}

absl::StatusOr<GetStream::PinnedBlock> GetStream::Pin(const BlockKey& key) const {
  PinnedBlock block;
  NQKV_ASSIGN_OR_RETURN(block.handle, environment_->store->Get(key, range_));
  const SpecFingerprint fingerprint = ToFingerprint(cache_->fingerprint());
  for (const PartPin& pin : block.handle.parts()) {
    const absl::StatusOr<BlockView> view = BlockView::Parse(pin.bytes());
    if (!view.ok()) return absl::DataLossError(absl::StrCat("a stored part is damaged: ", view.status().message()));
    const BlockHeader& header = view->header();
    if (header.fingerprint != fingerprint || header.layer_group != group_->layout.id || header.range != pin.range()) {
      return absl::DataLossError("a stored part is not what its key says");
    }
    block.parts.push_back(*view);
  }
  return block;
}

absl::Status GetStream::CheckDescriptions(const PinnedBlock& block) const {
  if (!include_planes_) return absl::OkStatus();
  uint64_t planes = 0;
  for (const BlockView& part : block.parts) {
    for (size_t i = 0; i < part.plane_count(); ++i) planes += IsUsed(part, part.plane(i)) ? 1 : 0;
  }
  constexpr uint64_t kPlanesMax = kChunksBytesMax / kPlaneInfoBytesMax;
  if (planes <= kPlanesMax) return absl::OkStatus();
  return FieldError("include_planes", absl::StrCat("the block was read from ", planes, " stored planes, at most ",
                                                   kPlanesMax, " are described: ask for fewer layers or heads"));
}

absl::Status GetStream::CheckPlanes(PinnedBlock* block) const {
  for (const BlockView& part : block->parts) {
    for (size_t i = 0; i < part.plane_count(); ++i) {
      const PlaneEntry plane = part.plane(i);
      if (IsUsed(part, plane)) NQKV_RETURN_IF_ERROR(part.CheckPlane(plane));
    }
  }
  block->checked = true;
  return absl::OkStatus();
}

absl::Status GetStream::Decode(const PinnedBlock& block, size_t plane, std::byte* target) const {
  const PlaneRangeRequest request = {.group = &group_->layout,
                                     .plane = plane,
                                     .needed = range_,
                                     .parts = block.parts,
                                     .dtype = DtypeOf(plane),
                                     .target = target,
                                     .checked = block.checked};
  const absl::Time start = absl::Now();
  absl::Status status = DecodePlaneRange(request);
  if (absl::IsFailedPrecondition(status)) return absl::InternalError(status.message());
  if (status.ok()) environment_->metrics->RecordDecode(PlaneBytes(plane), absl::Now() - start);
  return status;
}

bool GetStream::IsUsed(const BlockView& part, const PlaneEntry& plane) const {
  const PartRange& stored = part.header().range;
  return range_.layer_begin <= plane.layer && plane.layer < range_.layer_end &&
         std::max(stored.head_begin, range_.head_begin) < std::min(stored.head_end, range_.head_end);
}

void GetStream::FillResult(const PinnedBlock& block, v1::BlockGetResult* result) const {
  PlaneErrors worst;
  Provenance provenance = Provenance::kOriginal;
  uint64_t stored_bytes = 0;
  for (size_t p = 0; p < block.parts.size(); ++p) {
    const BlockView& part = block.parts[p];
    stored_bytes += block.handle.parts()[p].bytes().size();
    provenance = std::max(provenance, part.header().provenance);
    for (size_t i = 0; i < part.plane_count(); ++i) {
      const PlaneEntry plane = part.plane(i);
      if (!IsUsed(part, plane)) continue;
      worst.floor_error = std::max(worst.floor_error, plane.errors.floor_error);
      worst.token_norm_error = std::max(worst.token_norm_error, plane.errors.token_norm_error);
      if (include_planes_) FillPlaneInfo(part, plane, result->add_planes());
    }
  }
  ToProto(absl::OkStatus(), result->mutable_status());
  result->set_payload_bytes(block_bytes_);
  result->set_stored_bytes(stored_bytes);
  result->set_tier(v1::TIER_HOST);
  result->set_provenance(static_cast<v1::Provenance>(provenance));
  result->set_floor_error(worst.floor_error);
  result->set_token_norm_error(worst.token_norm_error);
}

void GetStream::FailBlock(uint32_t index, const absl::Status& status, Draft* draft) const {
  v1::GetChunk* chunk = ChunkOf(index, draft);
  ToProto(status, chunk->mutable_result()->mutable_status());
  draft->chunks_bytes += chunk->ByteSizeLong();
  CacheMetrics& metrics = cache_->metrics();
  (absl::IsNotFound(status) ? metrics.get_blocks_missed : metrics.get_blocks_failed)->Increment();
}

void GetStream::CountHit(const PinnedBlock& block) const {
  uint64_t stored_bytes = 0;
  for (const PartPin& pin : block.handle.parts()) stored_bytes += pin.bytes().size();
  cache_->metrics().get_blocks_hit->Increment();
  cache_->metrics().get_bytes->Increment(static_cast<double>(block_bytes_));
  cache_->metrics().get_stored_bytes->Increment(static_cast<double>(stored_bytes));
}

absl::Status GetStream::DropIfDamaged(uint32_t index, absl::Status status) const {
  if (!absl::IsDataLoss(status)) return status;
  environment_->store->DropDamaged(keys_[index]);
  environment_->metrics->RecordChecksumFailure();
  spdlog::error("cache '{}': dropped a damaged block: {}", cache_->name(), std::string(status.message()));
  return status;
}

std::shared_ptr<PayloadBuffer> GetStream::Allocate(uint64_t bytes, const std::shared_ptr<PayloadLease>& lease) {
  auto buffer = std::make_shared<PayloadBuffer>();
  buffer->bytes.reset(new std::byte[bytes]);  // Not cleared: decoding fills it.
  buffer->lease = lease;
  return buffer;
}

v1::GetChunk* GetStream::ChunkOf(uint32_t index, Draft* draft) {
  const int count = draft->fields.chunks_size();
  if (count > 0 && draft->fields.chunks(count - 1).index() == index) return draft->fields.mutable_chunks(count - 1);
  v1::GetChunk* chunk = draft->fields.add_chunks();
  chunk->set_index(index);
  return chunk;
}

OutgoingMessage GetStream::Seal(Draft draft) {
  OutgoingMessage message;
  message.head = draft.fields.SerializeAsString();
  const uint64_t bytes = draft.end - draft.begin;
  if (bytes == 0) return message;
  AppendVarint(v1::GetResponse::kPayloadFieldNumber << 3 | 2, &message.head);
  AppendVarint(bytes, &message.head);
  message.payload = {draft.buffer->bytes.get() + draft.begin, bytes};
  message.buffer = std::move(draft.buffer);
  return message;
}

}  // namespace nqkv
