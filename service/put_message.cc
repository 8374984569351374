#include "service/put_message.h"

#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/status_macros.h"
#include "service/request_shape.h"

namespace nqkv {
namespace {

// A chunk takes some 20 times more memory parsed than on the wire, so what comes before the payload is bounded.
constexpr size_t kFieldBytesMax = size_t{1} << 20;
constexpr uint64_t kPayloadTag = 15 << 3 | 2;

absl::Status Malformed(absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("malformed message: ", what));
}

// Walks over pieces as if they were one, and keeps what it passed.
class FieldReader {
 public:
  explicit FieldReader(std::span<const std::span<const std::byte>> pieces) : pieces_(pieces) { SkipEmpty(); }

  bool at_end() const { return piece_ == pieces_.size(); }
  const std::string& passed() const { return passed_; }

  absl::StatusOr<uint64_t> Varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      if (at_end()) return Malformed("it ends inside a number");
      const uint8_t byte = static_cast<uint8_t>(pieces_[piece_][offset_]);
      NQKV_RETURN_IF_ERROR(Pass(1));
      value |= uint64_t{byte & 0x7fu} << shift;
      if ((byte & 0x80) == 0) return value;
    }
    return Malformed("a number of more than 10 bytes");
  }

  absl::Status Pass(uint64_t count) {
    if (count > kFieldBytesMax - passed_.size()) {
      return Malformed(absl::StrCat("more than ", kFieldBytesMax, " bytes before the payload"));
    }
    while (count > 0) {
      if (at_end()) return Malformed("it ends inside a field");
      const std::span<const std::byte> rest = pieces_[piece_].subspan(offset_);
      const size_t taken = std::min<uint64_t>(count, rest.size());
      passed_.append(reinterpret_cast<const char*>(rest.data()), taken);
      Advance(taken);
      count -= taken;
    }
    return absl::OkStatus();
  }

  // Forgets the last `count` passed bytes: the payload's tag is not a field for the parser.
  void Unpass(size_t count) { passed_.resize(passed_.size() - count); }
  size_t passed_bytes() const { return passed_.size(); }

  // All that is left.
  void TakeRest(PutMessage* message) {
    while (!at_end()) {
      const std::span<const std::byte> rest = pieces_[piece_].subspan(offset_);
      message->payload.push_back(rest);
      message->payload_bytes += rest.size();
      Advance(rest.size());
    }
  }

 private:
  void Advance(size_t count) {
    offset_ += count;
    SkipEmpty();
  }
  void SkipEmpty() {
    while (!at_end() && offset_ == pieces_[piece_].size()) {
      ++piece_;
      offset_ = 0;
    }
  }

  std::span<const std::span<const std::byte>> pieces_;
  size_t piece_ = 0;
  size_t offset_ = 0;
  std::string passed_;
};

absl::Status PassValue(FieldReader& reader, uint64_t wire_type) {
  switch (wire_type) {
    case 0:
      return reader.Varint().status();
    case 1:
      return reader.Pass(8);
    case 2: {
      NQKV_ASSIGN_OR_RETURN(const uint64_t length, reader.Varint());
      return reader.Pass(length);
    }
    case 5:
      return reader.Pass(4);
    default:
      return Malformed(absl::StrCat("wire type ", wire_type));
  }
}

absl::Status TakePayload(FieldReader& reader, PutMessage* message) {
  NQKV_ASSIGN_OR_RETURN(const uint64_t length, reader.Varint());
  reader.TakeRest(message);
  if (message->payload_bytes == length) return absl::OkStatus();
  if (message->payload_bytes > length) return Malformed("`payload` must be the last field");
  return Malformed(absl::StrCat("the payload has ", message->payload_bytes, " of ", length, " bytes"));
}

}  // namespace

absl::StatusOr<PutMessage> ParsePutMessage(std::span<const std::span<const std::byte>> pieces) {
  PutMessage message;
  FieldReader reader(pieces);
  while (!reader.at_end()) {
    const size_t before = reader.passed_bytes();
    NQKV_ASSIGN_OR_RETURN(const uint64_t tag, reader.Varint());
    if (tag == kPayloadTag) {
      NQKV_RETURN_IF_ERROR(TakePayload(reader, &message));
      reader.Unpass(reader.passed_bytes() - before);
      break;
    }
    NQKV_RETURN_IF_ERROR(PassValue(reader, tag & 7));
  }
  const std::span<const std::byte> fields = std::as_bytes(std::span(reader.passed()));
  NQKV_RETURN_IF_ERROR(PutShape().Check({&fields, 1}).status());
  if (!message.fields.ParseFromString(reader.passed())) return PutShape().Malformed("a string of it is not UTF-8");
  return message;
}

}  // namespace nqkv
