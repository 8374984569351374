#include "client/target_writer.h"

#include <algorithm>

namespace nqkv::client {
namespace {

uint64_t BytesOf(const GetTarget& target, std::span<const PlanePiece> planes) {
  if (planes.empty()) return target.bytes;
  uint64_t bytes = 0;
  for (const PlanePiece& plane : planes) bytes += plane.bytes();
  return bytes;
}

}  // namespace

TargetWriter::TargetWriter(const GetTarget& target, std::span<const PlanePiece> planes)
    : target_(target),
      planes_(target.planes.empty() ? std::span<const PlanePiece>() : planes),
      bytes_(BytesOf(target, planes_)) {}

bool TargetWriter::Read(google::protobuf::io::CodedInputStream* in, uint64_t bytes) {
  while (bytes > 0) {
    const std::span<std::byte> run = NextRun();
    const uint64_t taken = std::min<uint64_t>(bytes, run.size());
    if (!in->ReadRaw(run.data(), static_cast<int>(taken))) return false;
    Advance(taken);
    bytes -= taken;
  }
  return true;
}

std::span<std::byte> TargetWriter::NextRun() const {
  if (planes_.empty()) return {static_cast<std::byte*>(target_.data) + offset_, bytes_ - offset_};
  const PlanePiece& plane = planes_[plane_];
  const PlaneTarget& target = target_.planes[plane_];
  const uint64_t head_bytes = uint64_t{plane.spec.channels} * DtypeBytes(plane.spec.dtype);
  const uint64_t token_bytes = plane.token_bytes();
  const ptrdiff_t head_stride = target.head_stride != 0 ? target.head_stride : static_cast<ptrdiff_t>(head_bytes);
  const ptrdiff_t token_stride =
      target.token_stride != 0 ? target.token_stride : head_stride * static_cast<ptrdiff_t>(plane.heads);
  // The longest unit that has no gaps inside: a head's row, a token's row or the plane.
  uint64_t run_bytes = head_bytes;
  if (plane.heads == 1 || head_stride == static_cast<ptrdiff_t>(head_bytes)) run_bytes = token_bytes;
  if (run_bytes == token_bytes && (plane.tokens == 1 || token_stride == static_cast<ptrdiff_t>(token_bytes))) {
    run_bytes = plane.bytes();
  }
  const uint64_t inside = offset_ % run_bytes;
  const uint64_t begin = offset_ - inside;
  const auto token = static_cast<ptrdiff_t>(begin / token_bytes);
  const auto head = static_cast<ptrdiff_t>(begin % token_bytes / head_bytes);
  std::byte* run = static_cast<std::byte*>(target.data) + token * token_stride + head * head_stride;
  return {run + inside, run_bytes - inside};
}

void TargetWriter::Advance(uint64_t bytes) {
  offset_ += bytes;
  if (planes_.empty() || offset_ < planes_[plane_].bytes()) return;
  ++plane_;
  offset_ = 0;
}

}  // namespace nqkv::client
