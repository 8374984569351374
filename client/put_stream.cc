#include "client/put_stream.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "client/call_queue.h"
#include "client/convert.h"
#include "proto/rpc_status.h"

namespace nqkv::client {
namespace {

constexpr char kMethod[] = "/nqkv.v1.KvCache/Put";

// The state of one call. One thread drives it through its own completion queue, so reads and writes overlap without
// locks: the server's results must be read while blocks are still being sent.
class PutCall {
 public:
  PutCall(Connection* connection, const Clock& clock, const PutStreamOptions& options, std::span<const PutItem> items,
          std::span<std::optional<PutResult>> results, BorrowedMemory* borrowed)
      : options_(options),
        results_(results),
        framer_(options.cache_id, options.shard_id, items, options.payload_bytes, borrowed),
        open_(results.size(), false),
        queue_(connection, options.deadline, clock) {
    for (const PutItem& item : items) open_[item.number] = true;
    unanswered_ = items.size();
    SetDeadline(&context_, options.deadline, clock);
    stream_ = connection->generic().PrepareCall(&context_, kMethod, queue_.queue());
  }

  absl::Status Run() {
    stream_->StartCall(Start(Op::kStart));
    while (pending_ > 0) {
      void* tag = nullptr;
      bool ok = false;
      if (!queue_.Next(&tag, &ok)) break;
      --pending_;
      Handle(static_cast<Op>(reinterpret_cast<uintptr_t>(tag)), ok);
    }
    return Result();
  }

 private:
  enum class Op : uintptr_t { kStart = 1, kRead, kWrite, kWritesDone, kFinish };

  void* Start(Op op) {
    ++pending_;
    return reinterpret_cast<void*>(static_cast<uintptr_t>(op));
  }

  void Handle(Op op, bool ok) {
    switch (op) {
      case Op::kStart:
        if (!ok) return Finish();
        writing_ = false;
        stream_->Read(&reply_, Start(Op::kRead));
        return Write();
      case Op::kWrite:
        writing_ = false;
        // Not ok: the call is over, which the read tells too.
        if (ok) Write();
        return;
      case Op::kRead:
        if (!ok) return Finish();
        TakeReply();
        stream_->Read(&reply_, Start(Op::kRead));
        return Write();
      case Op::kWritesDone:
      case Op::kFinish:
        return;
    }
  }

  void Write() {
    if (writing_ || closed_) return;
    if (framer_.done()) {
      closed_ = true;
      return stream_->WritesDone(Start(Op::kWritesDone));
    }
    const size_t room = options_.open_blocks_max > begun_ ? options_.open_blocks_max - begun_ : 0;
    if (room == 0 && framer_.at_block_start()) return;  // A result will make room.
    const grpc::ByteBuffer message = framer_.Next(room, &begun_);
    writing_ = true;
    stream_->Write(message, Start(Op::kWrite));
  }

  void TakeReply() {
    v1::PutResponse response;
    if (!grpc::SerializationTraits<v1::PutResponse>::Deserialize(&reply_, &response).ok()) {
      return Abort(absl::InternalError("reply: not a PutResponse"));
    }
    for (const v1::BlockPutResult& result : response.results()) {
      if (result.block() >= open_.size() || !open_[result.block()]) {
        return Abort(absl::InternalError(absl::StrCat("reply: a result for block ", result.block(), ", not open")));
      }
      open_[result.block()] = false;
      results_[result.block()] = FromProto(result);
      --unanswered_;
      if (begun_ > 0) --begun_;
    }
  }

  void Abort(absl::Status status) {
    if (aborted_.ok()) aborted_ = std::move(status);
    closed_ = true;
    context_.TryCancel();
  }

  void Finish() {
    closed_ = true;
    stream_->Finish(&status_, Start(Op::kFinish));
  }

  absl::Status Result() {
    if (!aborted_.ok()) return aborted_;
    if (!status_.ok()) return FromGrpc(status_);
    if (unanswered_ > 0) {
      return absl::InternalError(absl::StrCat("reply: the stream ended without a result for ", unanswered_, " blocks"));
    }
    return absl::OkStatus();
  }

  const PutStreamOptions& options_;
  std::span<std::optional<PutResult>> results_;
  PutFramer framer_;
  std::vector<bool> open_;  // By number: sent or to be sent, and not answered.
  size_t unanswered_ = 0;
  size_t begun_ = 0;  // Begun on the wire and not answered.
  int pending_ = 0;   // Operations that the queue owes us.
  bool writing_ = true;
  bool closed_ = false;
  absl::Status aborted_;
  grpc::Status status_;
  grpc::ByteBuffer reply_;
  CallQueue queue_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> stream_;
};

}  // namespace

absl::Status RunPutStream(Connection* connection, const Clock& clock, const PutStreamOptions& options,
                          std::span<const PutItem> items, std::span<std::optional<PutResult>> results) {
  BorrowedMemory borrowed;
  absl::Status status;
  {
    PutCall call(connection, clock, options, items, results, &borrowed);
    status = call.Run();
  }
  if (!borrowed.WaitUntilReturned(CallQueue::kGraceTime)) connection->Break();
  return status;  // After the wait for the rest, in the destructor.
}

}  // namespace nqkv::client
