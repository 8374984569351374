#include "service/block_writer.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/status_macros.h"
#include "proto/rpc_status.h"
#include "service/convert.h"

namespace nqkv {
namespace {

constexpr size_t kScopeBytesMax = 32;
constexpr uint64_t kTokenStartMax = (uint64_t{1} << 48) - 1;
// A reader holds a pin for milliseconds, a writer a reservation.
constexpr absl::Duration kRetryDelay = absl::Milliseconds(50);

absl::Status CheckBegin(const v1::PutBegin& begin) {
  if (begin.key().empty() || begin.key().size() > BlockKey::kBytesMax) {
    return FieldError("begin.key",
                      absl::StrCat(begin.key().size(), " bytes, 1 to ", BlockKey::kBytesMax, " make a key"));
  }
  if (begin.scope().size() > kScopeBytesMax) {
    return FieldError("begin.scope", absl::StrCat(begin.scope().size(), " bytes, at most ", kScopeBytesMax));
  }
  if (begin.token_start() > kTokenStartMax) {
    return FieldError("begin.token_start", absl::StrCat(begin.token_start(), ", at most ", kTokenStartMax));
  }
  return absl::OkStatus();
}

Provenance ProvenanceFromProto(v1::Provenance provenance) {
  return provenance == v1::PROVENANCE_UNSPECIFIED ? Provenance::kOriginal : static_cast<Provenance>(provenance);
}

absl::Status CheckSize(const BlockStore& store, uint64_t bytes) {
  if (bytes <= store.part_bytes_max()) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat("the block takes ", bytes, " bytes, more than the ",
                                                   store.part_bytes_max(),
                                                   " that the store can ever hold in one piece (--host_bytes)"));
}

}  // namespace

absl::StatusOr<BlockWriter> BlockWriter::Begin(const CallEnvironment& environment, const Caller& caller,
                                               const Cache& cache, const Shard& shard, const v1::PutBegin& begin) {
  NQKV_RETURN_IF_ERROR(CheckBegin(begin));
  NQKV_ASSIGN_OR_RETURN(const CacheGroup* group, cache.FindGroup(begin.layer_group(), "begin.layer_group"));
  NQKV_ASSIGN_OR_RETURN(
      const PartRange range,
      PartFromProto(begin.has_layers() ? &begin.layers() : nullptr, begin.has_heads() ? &begin.heads() : nullptr,
                    shard.parts[cache.IndexOf(*group)], group->layout, "begin"));
  const uint64_t raw_bytes = RawBytes(group->layout, range);
  if (begin.payload_bytes() != raw_bytes) {
    return FieldError("begin.payload_bytes",
                      absl::StrCat(begin.payload_bytes(), ", but the spec makes it ", raw_bytes, " for this range"));
  }
  NQKV_ASSIGN_OR_RETURN(const BlockKey key,
                        BlockKey::Create(cache.tenant().id, cache.id(), group->layout.id, begin.key()));
  NQKV_RETURN_IF_ERROR(
      CheckSize(*environment.store, group->plan->EncodedBytesTypical(range, begin.first_in_sequence())));
  NQKV_RETURN_IF_ERROR(environment.store->CheckRoom(key, range));
  const BlockHeader header = {.fingerprint = ToFingerprint(cache.fingerprint()),
                              .layer_group = group->layout.id,
                              .tokens = group->layout.block_tokens,
                              .range = range,
                              .provenance = ProvenanceFromProto(begin.provenance()),
                              .measurer = Measurer::kServer,
                              .first_in_sequence = begin.first_in_sequence(),
                              .token_start = begin.token_start()};
  PartInfo info = {
      .raw_bytes = raw_bytes, .scope = begin.scope(), .provenance = static_cast<uint8_t>(header.provenance)};
  return BlockWriter(environment, caller, cache, *group, key, header, std::move(info));
}

BlockWriter::BlockWriter(const CallEnvironment& environment, const Caller& caller, const Cache& cache,
                         const CacheGroup& group, const BlockKey& key, const BlockHeader& header, PartInfo info)
    : environment_(&environment),
      caller_(&caller),
      cache_(&cache),
      group_(&group),
      key_(key),
      range_(header.range),
      info_(std::move(info)),
      encoder_(std::make_unique<BlockEncoder>(group.plan.get(), header)),
      bytes_missing_(info_.raw_bytes) {}

absl::Status BlockWriter::Write(std::span<const std::byte> bytes) {
  bytes_missing_ -= bytes.size();
  while (!bytes.empty()) {
    const size_t plane_bytes = encoder_->next_shape().raw_bytes();
    if (scratch_bytes_ == 0 && bytes.size() >= plane_bytes) {
      NQKV_RETURN_IF_ERROR(EncodePlane(bytes.data()));
      bytes = bytes.subspan(plane_bytes);
      continue;
    }
    NQKV_RETURN_IF_ERROR(FillScratch(&bytes, plane_bytes));
    if (scratch_bytes_ < plane_bytes) break;
    NQKV_RETURN_IF_ERROR(EncodePlane(scratch_.get()));
    scratch_bytes_ = 0;
  }
  return absl::OkStatus();
}

absl::Status BlockWriter::FillScratch(std::span<const std::byte>* bytes, size_t plane_bytes) {
  if (scratch_lease_.bytes() < plane_bytes) {
    scratch_lease_.Reset();
    absl::StatusOr<ByteBudget::Lease> lease = caller_->payload->Acquire(plane_bytes);
    scratch_refused_ = !lease.ok();
    if (!lease.ok()) return lease.status();
    scratch_lease_ = *std::move(lease);
    scratch_.reset(new std::byte[plane_bytes]);  // Not cleared: it is filled before it is read.
  }
  const size_t taken = std::min(bytes->size(), plane_bytes - scratch_bytes_);
  std::memcpy(scratch_.get() + scratch_bytes_, bytes->data(), taken);
  scratch_bytes_ += taken;
  *bytes = bytes->subspan(taken);
  return absl::OkStatus();
}

absl::Status BlockWriter::EncodePlane(const std::byte* source) {
  if (!reservation_.valid()) {
    NQKV_ASSIGN_OR_RETURN(reservation_, Reserve(encoder_->bytes_typical()));
  }
  const PlaneShape shape = encoder_->next_shape();
  const ptrdiff_t head_stride = static_cast<ptrdiff_t>(shape.channels * DtypeBytes(shape.dtype));
  const ptrdiff_t token_stride = head_stride * shape.heads;
  const absl::Time start = absl::Now();
  absl::Status status = encoder_->Add(source, token_stride, head_stride, reservation_.bytes());
  while (absl::IsResourceExhausted(status)) {
    NQKV_RETURN_IF_ERROR(Grow());
    status = encoder_->Add(source, token_stride, head_stride, reservation_.bytes());
  }
  NQKV_RETURN_IF_ERROR(status);
  environment_->metrics->RecordEncode(shape.raw_bytes(), absl::Now() - start);
  environment_->metrics->RecordEncodedPlane(encoder_->planes().back());
  return absl::OkStatus();
}

// Takes the bytes from what the caller may have reserved, then from the store. A block that is larger than all that a
// caller may have reserved takes all of it, so that it is written when nothing else is.
absl::StatusOr<Reservation> BlockWriter::Reserve(uint64_t bytes) {
  NQKV_RETURN_IF_ERROR(CheckSize(*environment_->store, bytes));
  reserved_lease_.Reset();
  std::optional<ByteBudget::Lease> lease =
      caller_->reserved->TryAcquire(std::min(bytes, caller_->reserved->lease_bytes_max()));
  if (!lease.has_value()) {
    environment_->metrics->RecordRejection(Rejection::kBytesReserved);
    return WithRetry(
        absl::ResourceExhaustedError(absl::StrCat("too many bytes are reserved for blocks that are not whole: ", bytes,
                                                  " more do not fit beside what is held of ",
                                                  caller_->reserved->limit_bytes(), " (--reserved_bytes_max)")),
        kRetryDelay);
  }
  reserved_lease_ = *std::move(lease);
  absl::StatusOr<Reservation> reservation = environment_->store->Reserve(key_, range_, bytes);
  if (reservation.ok() || !absl::IsResourceExhausted(reservation.status())) return reservation;
  NQKV_RETURN_IF_ERROR(environment_->store->CheckRoom(key_, range_));  // Waiting does not help against too many parts.
  environment_->metrics->RecordRejection(Rejection::kStoreFull);
  return WithRetry(absl::ResourceExhaustedError(absl::StrCat("the store is full: ", reservation.status().message())),
                   kRetryDelay);
}

// A plane needed more than what memory made of it: at most a few times a block, since each step doubles.
absl::Status BlockWriter::Grow() {
  const uint64_t doubled = 2 * reservation_.bytes().size();
  const uint64_t most = group_->plan->EncodedBytesMax(range_);
  const uint64_t bytes = std::max<uint64_t>(encoder_->bytes_needed(), std::min(doubled, most));
  NQKV_ASSIGN_OR_RETURN(Reservation larger, Reserve(bytes));
  std::memcpy(larger.bytes().data(), reservation_.bytes().data(), encoder_->bytes_used());
  reservation_ = std::move(larger);
  return absl::OkStatus();
}

absl::Status BlockWriter::Commit(v1::BlockPutResult* result) {
  const BlockEncoder::Summary summary = encoder_->Finish(reservation_.bytes());
  info_.floor_error = summary.worst.floor_error;
  info_.token_norm_error = summary.worst.token_norm_error;
  const uint64_t stored_bytes = encoder_->bytes_used();
  NQKV_RETURN_IF_ERROR(environment_->store->Commit(std::move(reservation_), stored_bytes, info_));
  environment_->waiters->OnStored(key_);
  result->set_raw_bytes(info_.raw_bytes);
  result->set_stored_bytes(stored_bytes);
  result->set_floor_error(info_.floor_error);
  result->set_token_norm_error(info_.token_norm_error);
  result->set_raw_planes(summary.fallback_planes);
  environment_->metrics->RecordFallbackPlanes(summary.fallback_planes);
  cache_->metrics().put_raw_bytes->Increment(static_cast<double>(info_.raw_bytes));
  cache_->metrics().put_stored_bytes->Increment(static_cast<double>(stored_bytes));
  return absl::OkStatus();
}

}  // namespace nqkv
