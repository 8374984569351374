#include "client/get_stream.h"

#include <climits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/call_queue.h"
#include "client/convert.h"
#include "google/protobuf/wire_format_lite.h"
#include "grpcpp/support/proto_buffer_reader.h"
#include "kernels/status_macros.h"
#include "proto/rpc_status.h"

namespace nqkv::client {
namespace {

using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedInputStream;

constexpr char kMethod[] = "/nqkv.v1.KvCache/Get";
constexpr uint32_t kChunksTag = 1 << 3 | 2;
constexpr uint32_t kPayloadTag = 15 << 3 | 2;
// CodedInputStream counts in int.
constexpr uint32_t kPayloadBytesMax = INT_MAX;

absl::Status Malformed(absl::string_view what) { return absl::InternalError(absl::StrCat("reply: ", what)); }

}  // namespace

GetAssembler::GetAssembler(std::span<const GetTarget* const> targets, std::span<const PlanePiece> planes,
                           std::span<GetResult* const> results)
    : results_(results) {
  blocks_.reserve(targets.size());
  for (const GetTarget* target : targets) blocks_.push_back({.writer = TargetWriter(*target, planes)});
}

absl::Status GetAssembler::Add(google::protobuf::io::ZeroCopyInputStream* message) {
  CodedInputStream in(message);
  in.SetTotalBytesLimit(INT_MAX);
  std::vector<Span> spans;
  bool paid = false;
  while (const uint32_t tag = in.ReadTag()) {
    if (paid) return Malformed("payload is not the last field");
    if (tag == kChunksTag) {
      NQKV_RETURN_IF_ERROR(AddChunk(&in, &spans));
    } else if (tag == kPayloadTag) {
      NQKV_RETURN_IF_ERROR(AddPayload(&in, spans));
      paid = true;
    } else if (!WireFormatLite::SkipField(&in, tag)) {
      return Malformed("a field is cut short");
    }
  }
  if (!in.ConsumedEntireMessage()) return Malformed("a tag is cut short");
  if (paid) return absl::OkStatus();
  for (const Span& span : spans) {
    if (span.bytes > 0) return Malformed("chunks without a payload");
  }
  return absl::OkStatus();
}

absl::Status GetAssembler::AddChunk(CodedInputStream* in, std::vector<Span>* spans) {
  int bytes = 0;
  if (!in->ReadVarintSizeAsInt(&bytes)) return Malformed("a chunk's length is cut short");
  const CodedInputStream::Limit limit = in->PushLimit(bytes);
  v1::GetChunk chunk;
  if (!chunk.MergeFromCodedStream(in) || in->BytesUntilLimit() != 0) return Malformed("a chunk is not a GetChunk");
  in->PopLimit(limit);
  if (chunk.index() >= blocks_.size()) {
    return Malformed(absl::StrCat("a chunk of block ", chunk.index(), " of ", blocks_.size()));
  }
  if (chunk.has_result()) {
    NQKV_RETURN_IF_ERROR(Begin(chunk));
  } else if (!blocks_[chunk.index()].begun) {
    return Malformed(absl::StrCat("bytes of block ", chunk.index(), " before its result"));
  }
  spans->push_back({.index = chunk.index(), .bytes = chunk.bytes()});
  return absl::OkStatus();
}

absl::Status GetAssembler::Begin(const v1::GetChunk& chunk) {
  Block& block = blocks_[chunk.index()];
  if (block.begun) return Malformed(absl::StrCat("two results for block ", chunk.index()));
  GetResult& result = *results_[chunk.index()];
  result = FromProto(chunk.result());
  if (!result.status.ok() && result.payload_bytes > 0) {
    return Malformed(absl::StrCat("block ", chunk.index(), " has both an error and bytes"));
  }
  block.begun = true;
  block.expected = result.payload_bytes;
  if (!result.status.ok()) return absl::OkStatus();
  block.fits = block.writer.Fits(block.expected);
  if (!block.fits) {
    result.status = absl::OutOfRangeError(
        absl::StrCat("target: has ", block.writer.bytes(), " bytes, the block needs ", block.expected));
  }
  return absl::OkStatus();
}

absl::Status GetAssembler::AddPayload(CodedInputStream* in, const std::vector<Span>& spans) {
  uint32_t left = 0;
  if (!in->ReadVarint32(&left) || left > kPayloadBytesMax) return Malformed("the payload's length makes no sense");
  for (const Span& span : spans) {
    Block& block = blocks_[span.index];
    if (span.bytes > left) return Malformed("chunks and payload do not agree");
    if (span.bytes > block.expected - block.received) {
      return Malformed(absl::StrCat("more bytes of block ", span.index, " than its result says"));
    }
    const bool read = block.fits ? block.writer.Read(in, span.bytes) : in->Skip(static_cast<int>(span.bytes));
    if (!read) return Malformed("the payload is cut short");
    block.received += span.bytes;
    left -= static_cast<uint32_t>(span.bytes);
  }
  return left == 0 ? absl::OkStatus() : Malformed("chunks and payload do not agree");
}

namespace {

// The state of one call, driven by one thread through its own completion queue.
class GetCall {
 public:
  GetCall(Connection* connection, const Clock& clock, const GetStreamOptions& options, GetAssembler* assembler)
      : assembler_(assembler), request_(options.request), queue_(connection, options.deadline, clock) {
    SetDeadline(&context_, options.deadline, clock);
    stream_ = connection->generic().PrepareCall(&context_, kMethod, queue_.queue());
  }

  absl::Status Run() {
    stream_->StartCall(Tag());
    if (Wait() && Send()) Receive();
    stream_->Finish(&status_, Tag());
    Wait();
    return aborted_.ok() ? FromGrpc(status_) : aborted_;
  }

 private:
  // One operation at a time, so one tag is enough.
  void* Tag() { return this; }
  bool Wait() {
    void* tag = nullptr;
    bool ok = false;
    return queue_.Next(&tag, &ok) && ok;
  }

  bool Send() {
    grpc::ByteBuffer message;
    bool owned = false;
    const grpc::Status serialized = grpc::SerializationTraits<v1::GetRequest>::Serialize(request_, &message, &owned);
    if (!serialized.ok()) {
      aborted_ = FromGrpc(serialized);
      context_.TryCancel();
      return false;
    }
    stream_->WriteLast(message, grpc::WriteOptions(), Tag());
    return Wait();
  }

  void Receive() {
    for (;;) {
      grpc::ByteBuffer message;
      stream_->Read(&message, Tag());
      if (!Wait()) return;
      grpc::ProtoBufferReader reader(&message);
      aborted_ = reader.status().ok() ? assembler_->Add(&reader) : FromGrpc(reader.status());
      if (aborted_.ok()) continue;
      context_.TryCancel();
      return;
    }
  }

  GetAssembler* assembler_;
  const v1::GetRequest& request_;
  absl::Status aborted_;
  grpc::Status status_;
  CallQueue queue_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> stream_;
};

}  // namespace

absl::Status RunGetStream(Connection* connection, const Clock& clock, const GetStreamOptions& options,
                          std::span<const GetTarget* const> targets, std::span<GetResult* const> results,
                          std::vector<bool>* done) {
  GetAssembler assembler(targets, options.planes, results);
  GetCall call(connection, clock, options, &assembler);
  absl::Status status = call.Run();
  done->assign(targets.size(), false);
  size_t missing = 0;
  for (size_t i = 0; i < targets.size(); ++i) {
    (*done)[i] = assembler.complete(i);
    if (!(*done)[i]) ++missing;
  }
  if (status.ok() && missing > 0) {
    return Malformed(absl::StrCat("the stream ended before ", missing, " blocks were whole"));
  }
  return status;
}

}  // namespace nqkv::client
