#include "service/grpc_message.h"

#include <array>
#include <utility>

namespace nqkv {
namespace {

void ReleasePayload(void* holder) { delete static_cast<std::shared_ptr<const PayloadBuffer>*>(holder); }

}  // namespace

std::unique_ptr<GrpcIncomingMessage> GrpcIncomingMessage::Create(grpc::ByteBuffer* buffer) {
  auto message = std::make_unique<GrpcIncomingMessage>();
  message->buffer_.Swap(buffer);
  if (!message->buffer_.Dump(&message->slices_).ok()) return nullptr;
  // A short slice holds its bytes inside itself: take the addresses only where it stays.
  for (const grpc::Slice& slice : message->slices_) {
    message->pieces_.push_back({reinterpret_cast<const std::byte*>(slice.begin()), slice.size()});
  }
  return message;
}

grpc::ByteBuffer ToByteBuffer(OutgoingMessage message) {
  std::array<grpc::Slice, 2> slices = {grpc::Slice(message.head.data(), message.head.size())};
  if (message.payload.empty()) return grpc::ByteBuffer(slices.data(), 1);
  // gRPC's slices are mutable by type only.
  auto* bytes = const_cast<std::byte*>(message.payload.data());
  auto* holder = new std::shared_ptr<const PayloadBuffer>(std::move(message.buffer));
  slices[1] = grpc::Slice(bytes, message.payload.size(), &ReleasePayload, holder);
  return grpc::ByteBuffer(slices.data(), slices.size());
}

grpc::ByteBuffer ToByteBuffer(const google::protobuf::MessageLite& message) {
  const std::string bytes = message.SerializeAsString();
  const grpc::Slice slice(bytes.data(), bytes.size());
  return grpc::ByteBuffer(&slice, 1);
}

}  // namespace nqkv
