// Messages as the calls see them: bytes in pieces, with no transport's types.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "service/byte_budget.h"

namespace nqkv {

// A message that came: owns its bytes, which lie in one or more pieces.
class IncomingMessage {
 public:
  virtual ~IncomingMessage() = default;
  virtual std::span<const std::span<const std::byte>> pieces() const = 0;

  uint64_t bytes() const {
    uint64_t sum = 0;
    for (const std::span<const std::byte>& piece : pieces()) sum += piece.size();
    return sum;
  }
};

// A share of the budget together with the budget: a transport may drop a message after the call, even after the server.
struct PayloadLease {
  std::shared_ptr<ByteBudget> budget;
  ByteBudget::Lease lease;
};

// Payload memory that several messages may share.
struct PayloadBuffer {
  std::unique_ptr<std::byte[]> bytes;
  std::shared_ptr<PayloadLease> lease;
};

// A message to send: `head` is copied, the payload is not. Together they are the message's wire form.
struct OutgoingMessage {
  std::string head;
  std::shared_ptr<const PayloadBuffer> buffer;  // Null: no payload.
  std::span<const std::byte> payload;           // Within `buffer`.
};

}  // namespace nqkv
