#include "service/request_shape.h"

#include <algorithm>
#include <array>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "google/protobuf/message.h"
#include "kernels/status_macros.h"
#include "nqkv/v1/kv_cache.pb.h"
#include "proto/rpc_status.h"

namespace nqkv {

namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;

constexpr int kVarint = 0;
constexpr int kFixed64 = 1;
constexpr int kLengthDelimited = 2;
constexpr int kFixed32 = 5;
constexpr int kVarintBytesMax = 10;
constexpr int kSizeBytesMax = 5;        // Of a tag or a length: the parser takes no more.
constexpr uint64_t kHeapBytes = 16;     // What an allocation costs beside what was asked for.
constexpr uint64_t kPointerBytes = 16;  // A place in an array that doubles when it is full.
constexpr uint64_t kStringBytes = sizeof(std::string);

int WireTypeOf(const FieldDescriptor* field) {
  switch (field->type()) {
    case FieldDescriptor::TYPE_DOUBLE:
    case FieldDescriptor::TYPE_FIXED64:
    case FieldDescriptor::TYPE_SFIXED64:
      return kFixed64;
    case FieldDescriptor::TYPE_FLOAT:
    case FieldDescriptor::TYPE_FIXED32:
    case FieldDescriptor::TYPE_SFIXED32:
      return kFixed32;
    case FieldDescriptor::TYPE_STRING:
    case FieldDescriptor::TYPE_BYTES:
    case FieldDescriptor::TYPE_MESSAGE:
      return kLengthDelimited;
    default:
      return kVarint;
  }
}

uint64_t ItemBytes(const FieldDescriptor* field) {
  if (field->cpp_type() == FieldDescriptor::CPPTYPE_STRING) return kPointerBytes + kStringBytes + kHeapBytes;
  if (field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE) return field->is_repeated() ? 2 * sizeof(uint64_t) : 0;
  const auto* prototype = google::protobuf::MessageFactory::generated_factory()->GetPrototype(field->message_type());
  return kPointerBytes + prototype->SpaceUsedLong() + kHeapBytes;
}

// Reads over pieces as if they were one.
class PieceReader {
 public:
  explicit PieceReader(std::span<const std::span<const std::byte>> pieces) : pieces_(pieces) {
    for (const std::span<const std::byte>& piece : pieces) size_ += piece.size();
    SkipEmpty();
  }

  uint64_t size() const { return size_; }
  uint64_t position() const { return position_; }

  // False when it does not end before `end`, or takes more than `bytes_max` bytes.
  bool Varint(uint64_t end, int bytes_max, uint64_t* value) {
    *value = 0;
    for (int i = 0; i < bytes_max && position_ < end; ++i) {
      const uint8_t byte = static_cast<uint8_t>(pieces_[piece_][offset_]);
      Advance(1);
      *value |= uint64_t{byte & 0x7fu} << (7 * i);
      if ((byte & 0x80) == 0) return true;
    }
    return false;
  }

  // Precondition: that many bytes are left.
  void Skip(uint64_t bytes) {
    while (bytes > 0) {
      const size_t taken = std::min<uint64_t>(bytes, pieces_[piece_].size() - offset_);
      Advance(taken);
      bytes -= taken;
    }
  }

 private:
  void Advance(size_t bytes) {
    position_ += bytes;
    offset_ += bytes;
    SkipEmpty();
  }
  void SkipEmpty() {
    while (piece_ < pieces_.size() && offset_ == pieces_[piece_].size()) {
      ++piece_;
      offset_ = 0;
    }
  }

  std::span<const std::span<const std::byte>> pieces_;
  uint64_t size_ = 0;
  uint64_t position_ = 0;
  size_t piece_ = 0;
  size_t offset_ = 0;
};

}  // namespace

// One walk over one message. Types do not contain themselves, so it goes no deeper than the contract.
class ShapeWalk {
 public:
  ShapeWalk(const RequestShape& shape, std::span<const std::span<const std::byte>> pieces)
      : shape_(shape), reader_(pieces), counts_(shape.counters_) {}

  absl::StatusOr<uint64_t> Run() {
    NQKV_RETURN_IF_ERROR(WalkMessage(*shape_.root_, reader_.size()));
    return parsed_bytes_;
  }

 private:
  using Field = RequestShape::Field;
  using Type = RequestShape::Type;

  absl::Status WalkMessage(const Type& type, uint64_t end) {
    while (reader_.position() < end) {
      uint64_t tag = 0;
      if (!reader_.Varint(end, kSizeBytesMax, &tag)) return Malformed("it ends inside a field number");
      const uint64_t number = tag >> 3;
      if (number == 0 || number > FieldDescriptor::kMaxNumber) {
        return Malformed(absl::StrCat("field number ", number));
      }
      if (number >= type.fields.size() || type.fields[number].name.empty()) return Unknown(number);
      NQKV_RETURN_IF_ERROR(WalkField(type.fields[number], static_cast<int>(tag & 7), end));
    }
    return absl::OkStatus();
  }

  absl::Status WalkField(const Field& field, int wire_type, uint64_t end) {
    const bool is_packed = field.is_packable && wire_type == kLengthDelimited;
    if (wire_type != field.wire_type && !is_packed) {
      return Malformed(absl::StrCat(PathTo(field), " has wire type ", wire_type, ", not ", field.wire_type));
    }
    if (wire_type != kLengthDelimited) {
      NQKV_RETURN_IF_ERROR(Count(field));
      return SkipNumber(field, end);
    }
    uint64_t bytes = 0;
    if (!reader_.Varint(end, kSizeBytesMax, &bytes) || bytes > end - reader_.position()) return CutShort(field);
    const uint64_t field_end = reader_.position() + bytes;
    if (is_packed) return WalkPacked(field, field_end);
    NQKV_RETURN_IF_ERROR(Count(field));
    if (field.message != nullptr) {
      path_.push_back(field.name);
      NQKV_RETURN_IF_ERROR(WalkMessage(*field.message, field_end));
      path_.pop_back();
      return absl::OkStatus();
    }
    parsed_bytes_ += bytes;
    reader_.Skip(bytes);
    return absl::OkStatus();
  }

  absl::Status WalkPacked(const Field& field, uint64_t end) {
    while (reader_.position() < end) {
      NQKV_RETURN_IF_ERROR(Count(field));
      NQKV_RETURN_IF_ERROR(SkipNumber(field, end));
    }
    return absl::OkStatus();
  }

  absl::Status SkipNumber(const Field& field, uint64_t end) {
    if (field.wire_type == kVarint) {
      uint64_t ignored = 0;
      return reader_.Varint(end, kVarintBytesMax, &ignored) ? absl::OkStatus() : CutShort(field);
    }
    const uint64_t bytes = field.wire_type == kFixed64 ? 8 : 4;
    if (bytes > end - reader_.position()) return CutShort(field);
    reader_.Skip(bytes);
    return absl::OkStatus();
  }

  absl::Status Count(const Field& field) {
    parsed_bytes_ += field.item_bytes;
    if (field.counter == 0 || ++counts_[field.counter] <= field.items_max) return absl::OkStatus();
    return FieldError(PathTo(field), absl::StrCat("more than ", field.items_max, " of them in one message"));
  }

  std::string PathTo(const Field& field) const {
    return path_.empty() ? std::string(field.name) : absl::StrCat(absl::StrJoin(path_, "."), ".", field.name);
  }
  absl::Status Malformed(absl::string_view what) const { return shape_.Malformed(what); }
  absl::Status CutShort(const Field& field) const { return Malformed(absl::StrCat("it ends inside ", PathTo(field))); }
  absl::Status Unknown(uint64_t number) const {
    return UnknownField(path_.empty() ? shape_.name_ : absl::StrJoin(path_, "."), number);
  }

  const RequestShape& shape_;
  PieceReader reader_;
  std::vector<uint64_t> counts_;
  std::vector<absl::string_view> path_;
  uint64_t parsed_bytes_ = 0;
};

RequestShape::RequestShape(const Descriptor* request, std::span<const ItemLimit> limits) : name_(request->name()) {
  root_ = AddType(request, limits);
}

const RequestShape::Type* RequestShape::AddType(const Descriptor* type, std::span<const ItemLimit> limits) {
  const auto found = types_.find(type);
  if (found != types_.end()) return found->second.get();
  auto added = std::make_unique<Type>();
  for (int i = 0; i < type->field_count(); ++i) {
    const FieldDescriptor* field = type->field(i);
    const size_t number = static_cast<size_t>(field->number());
    if (added->fields.size() <= number) added->fields.resize(number + 1);
    added->fields[number] = MakeField(field, limits);
  }
  return types_.emplace(type, std::move(added)).first->second.get();
}

RequestShape::Field RequestShape::MakeField(const FieldDescriptor* field, std::span<const ItemLimit> limits) {
  Field made = {.name = field->name(),
                .wire_type = WireTypeOf(field),
                .is_packable = field->is_packable(),
                .item_bytes = ItemBytes(field)};
  if (field->message_type() != nullptr) made.message = AddType(field->message_type(), limits);
  if (!field->is_repeated()) return made;
  made.counter = counters_++;
  made.items_max = kItemsMax;
  for (const ItemLimit& limit : limits) {
    if (limit.field == field->full_name()) made.items_max = limit.items_max;
  }
  return made;
}

absl::Status RequestShape::Malformed(absl::string_view why) const {
  const absl::string_view article = name_[0] == 'O' ? "an " : "a ";
  return absl::InvalidArgumentError(absl::StrCat("malformed message: not ", article, name_, ": ", why));
}

absl::StatusOr<uint64_t> RequestShape::Check(std::span<const std::span<const std::byte>> pieces) const {
  return ShapeWalk(*this, pieces).Run();
}

namespace {
// All that convert.cc lets a spec have.
constexpr ItemLimit kSpecItems[] = {{"nqkv.v1.LayerGroup.planes", uint64_t{64} * 2'048}};
}  // namespace

RequestShape ShapeOf(Rpc rpc, const ServiceLimits& limits) {
  switch (rpc) {
    case Rpc::kOpenCache:
      return RequestShape(v1::OpenCacheRequest::descriptor(), kSpecItems);
    case Rpc::kLookup: {
      const ItemLimit items[] = {{"nqkv.v1.LookupRequest.queries", ServiceLimits::kLookupQueriesMax},
                                 {"nqkv.v1.KeyChain.keys", limits.lookup_keys_max}};
      return RequestShape(v1::LookupRequest::descriptor(), items);
    }
    case Rpc::kGet: {
      const ItemLimit items[] = {{"nqkv.v1.KeyChain.keys", limits.get_keys_max}};
      return RequestShape(v1::GetRequest::descriptor(), items);
    }
    case Rpc::kDelete: {
      const ItemLimit items[] = {{"nqkv.v1.DeleteRequest.keys", limits.delete_keys_max}};
      return RequestShape(v1::DeleteRequest::descriptor(), items);
    }
    case Rpc::kTouch: {
      const ItemLimit items[] = {{"nqkv.v1.TouchRequest.keys", limits.delete_keys_max}};
      return RequestShape(v1::TouchRequest::descriptor(), items);
    }
    case Rpc::kRelease:
      return RequestShape(v1::ReleaseRequest::descriptor());
    case Rpc::kSession:
      return RequestShape(v1::SessionRequest::descriptor());
    default:
      return RequestShape(v1::ClearRequest::descriptor());
  }
}

const RequestShape& PutShape() {
  // A message has at most 1 MiB before its payload, and PutStream bounds the blocks.
  static constexpr ItemLimit kItems[] = {{"nqkv.v1.PutRequest.chunks", uint64_t{1} << 20}};
  static const RequestShape shape(v1::PutRequest::descriptor(), kItems);
  return shape;
}

}  // namespace nqkv
