// The calls' messages as gRPC carries them: no byte of a payload is copied.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "google/protobuf/message_lite.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/slice.h"
#include "service/call_message.h"

namespace nqkv {

// Keeps the slices that hold the bytes.
class GrpcIncomingMessage final : public IncomingMessage {
 public:
  // Takes the bytes out of the buffer. Null when gRPC cannot unpack it.
  static std::unique_ptr<GrpcIncomingMessage> Create(grpc::ByteBuffer* buffer);

  std::span<const std::span<const std::byte>> pieces() const override { return pieces_; }

 private:
  // Goes last: gRPC 1.51 crashes when memory is short and a thread that is not its own drops the last hold on a slice.
  // A buffer brings the context that this needs.
  grpc::ByteBuffer buffer_;
  std::vector<grpc::Slice> slices_;
  std::vector<std::span<const std::byte>> pieces_;
};

// The buffer keeps the payload's memory until gRPC has sent or dropped it.
grpc::ByteBuffer ToByteBuffer(OutgoingMessage message);
grpc::ByteBuffer ToByteBuffer(const google::protobuf::MessageLite& message);

}  // namespace nqkv
