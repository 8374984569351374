#include "service/request_parser.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "google/protobuf/io/zero_copy_stream.h"
#include "kernels/status_macros.h"

namespace nqkv {
namespace {

// Keys resolved, their presences, and the reply take less than twice what the parsed request does.
constexpr uint64_t kParsedShare = 3;

// Pieces as the parser wants them.
class PieceStream final : public google::protobuf::io::ZeroCopyInputStream {
 public:
  explicit PieceStream(std::span<const std::span<const std::byte>> pieces) : pieces_(pieces) {}

  bool Next(const void** data, int* size) override {
    while (piece_ < pieces_.size() && offset_ == pieces_[piece_].size()) {
      ++piece_;
      offset_ = 0;
    }
    if (piece_ == pieces_.size()) return false;
    const std::span<const std::byte> rest = pieces_[piece_].subspan(offset_);
    *data = rest.data();
    *size = static_cast<int>(std::min<size_t>(rest.size(), std::numeric_limits<int>::max()));
    Advance(static_cast<size_t>(*size));
    return true;
  }
  void BackUp(int count) override {
    offset_ -= static_cast<size_t>(count);
    passed_ -= count;
  }
  bool Skip(int count) override {
    const void* data = nullptr;
    int size = 0;
    while (count > 0) {
      if (!Next(&data, &size)) return false;
      if (size > count) BackUp(size - count);
      count -= std::min(size, count);
    }
    return true;
  }
  int64_t ByteCount() const override { return passed_; }

 private:
  void Advance(size_t bytes) {
    offset_ += bytes;
    passed_ += static_cast<int64_t>(bytes);
  }

  std::span<const std::span<const std::byte>> pieces_;
  size_t piece_ = 0;
  size_t offset_ = 0;
  int64_t passed_ = 0;
};

absl::StatusOr<ByteBudget::Lease> Acquire(const CallEnvironment& environment, ByteBudget* budget, uint64_t bytes) {
  absl::StatusOr<ByteBudget::Lease> lease = budget->Acquire(bytes);
  if (!lease.ok()) environment.metrics->RecordRejection(Rejection::kBytesInFlight);
  return lease;
}

}  // namespace

absl::StatusOr<ByteBudget::Lease> AdmitRequest(const CallEnvironment& environment, ByteBudget* budget,
                                               const IncomingMessage& message) {
  const uint64_t bytes = message.bytes();
  const uint64_t bytes_max = environment.limits.request_bytes_max;
  if (bytes > bytes_max) {
    return absl::ResourceExhaustedError(absl::StrCat("the request has ", bytes, " bytes, at most ", bytes_max,
                                                     " (--max_request_bytes); ask in several calls"));
  }
  return Acquire(environment, budget, bytes);
}

absl::StatusOr<ByteBudget::Lease> ParseRequest(const CallEnvironment& environment, ByteBudget* budget,
                                               const RequestShape& shape, const IncomingMessage& message,
                                               google::protobuf::MessageLite* request) {
  NQKV_ASSIGN_OR_RETURN(const uint64_t parsed_bytes, shape.Check(message.pieces()));
  NQKV_ASSIGN_OR_RETURN(ByteBudget::Lease lease, Acquire(environment, budget, kParsedShare * parsed_bytes));
  PieceStream stream(message.pieces());
  if (!request->ParseFromZeroCopyStream(&stream)) {
    return shape.Malformed("a string of it is not UTF-8");
  }
  return lease;
}

}  // namespace nqkv
