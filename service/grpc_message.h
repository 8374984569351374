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
  // Null when gRPC cannot unpack the buffer.
  static std::unique_ptr<GrpcIncomingMessage> Create(const grpc::ByteBuffer& buffer);

  std::span<const std::span<const std::byte>> pieces() const override { return pieces_; }

 private:
  std::vector<grpc::Slice> slices_;
  std::vector<std::span<const std::byte>> pieces_;
};

// The buffer keeps the payload's memory until gRPC has sent or dropped it.
grpc::ByteBuffer ToByteBuffer(OutgoingMessage message);
grpc::ByteBuffer ToByteBuffer(const google::protobuf::MessageLite& message);

// False when the bytes are no such message.
bool ParseByteBuffer(const grpc::ByteBuffer& buffer, google::protobuf::MessageLite* message);

}  // namespace nqkv
