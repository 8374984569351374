// What a Get call sends: one block after the other, decoded straight into messages of the best size.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/block_decoder.h"
#include "kernels/block_format.h"
#include "nqkv/v1/kv_cache.pb.h"
#include "service/cache_registry.h"
#include "service/call_environment.h"
#include "service/call_message.h"
#include "storage/block_handle.h"
#include "storage/block_key.h"
#include "storage/lease_table.h"

namespace nqkv {

// Not thread-safe. Small blocks are packed, several a message, and are decoded before their result is written. A block
// larger than a message has all its checksums verified first, then goes out plane by plane. Each checksum is verified
// once.
class GetStream {
 public:
  // Checks the request. `environment` must outlive the stream. Errors are those of the Get rpc.
  static absl::StatusOr<std::unique_ptr<GetStream>> Open(const CallEnvironment* environment, const Tenant& tenant,
                                                         const v1::GetRequest& request);

  // Payload memory that one message may hold.
  uint64_t buffer_bytes_max() const;
  // Whether the next message takes memory of its own, and not a piece of what the one before took.
  bool needs_buffer() const { return !open_.has_value() || open_->plane_buffer == nullptr; }

  bool done() const { return next_key_ == keys_.size() && !open_.has_value(); }

  // The next message; `lease` is kept with its payload. Precondition: !done().
  absl::StatusOr<OutgoingMessage> Next(const std::shared_ptr<PayloadLease>& lease);

 private:
  struct PinnedBlock {
    BlockHandle handle;  // Owns what `parts` view.
    std::vector<BlockView> parts;
    bool checked = false;  // The CRCs of all planes that are used.
  };
  // A block that takes more than one message.
  struct OpenBlock {
    PinnedBlock pinned;
    uint32_t index = 0;
    size_t plane = 0;                             // Next to send, an index into the group's planes.
    std::shared_ptr<PayloadBuffer> plane_buffer;  // A plane that is larger than a message, on its way out.
    uint64_t plane_sent = 0;
  };
  // A message that is being filled.
  struct Draft {
    v1::GetResponse fields;
    std::shared_ptr<PayloadBuffer> buffer;
    uint64_t buffer_bytes = 0;  // Capacity.
    uint64_t begin = 0;         // The payload is [begin, end) of the buffer.
    uint64_t end = 0;
    size_t chunks_bytes = 0;  // Roughly what the fields take.
  };

  GetStream(const CallEnvironment* environment, std::shared_ptr<Cache> cache, const CacheGroup* group,
            const PartRange& range, const v1::GetRequest& request, std::optional<Dtype> dtype,
            std::vector<BlockKey> keys, LeaseTable::Hold lease);

  Dtype DtypeOf(size_t plane) const { return dtype_.value_or(group_->layout.planes[plane].dtype); }
  uint64_t PlaneBytes(size_t plane) const;

  // False: the message is full as it is.
  bool AddWholeBlock(const std::shared_ptr<PayloadLease>& lease, Draft* draft);
  bool OpenLargeBlock(Draft* draft);
  absl::StatusOr<bool> AddPlane(const std::shared_ptr<PayloadLease>& lease, Draft* draft);
  void AddPieceOfPlane(Draft* draft);

  // Pins and parses. NOT_FOUND, DATA_LOSS.
  absl::StatusOr<PinnedBlock> Pin(const BlockKey& key) const;
  // Of what include_planes adds: it must fit into a message.
  absl::Status CheckDescriptions(const PinnedBlock& block) const;
  absl::Status CheckPlanes(PinnedBlock* block) const;
  absl::Status Decode(const PinnedBlock& block, size_t plane, std::byte* target) const;
  bool IsUsed(const BlockView& part, const PlaneEntry& plane) const;
  void FillResult(const PinnedBlock& block, v1::BlockGetResult* result) const;
  void FailBlock(uint32_t index, const absl::Status& status, Draft* draft) const;
  void CountHit(const PinnedBlock& block) const;
  // Forgets a damaged block; other statuses are passed on.
  absl::Status DropIfDamaged(uint32_t index, absl::Status status) const;
  static std::shared_ptr<PayloadBuffer> Allocate(uint64_t bytes, const std::shared_ptr<PayloadLease>& lease);
  static v1::GetChunk* ChunkOf(uint32_t index, Draft* draft);
  static OutgoingMessage Seal(Draft draft);

  const CallEnvironment* const environment_;
  const std::shared_ptr<Cache> cache_;
  const CacheGroup* const group_;
  const PartRange range_;
  const PlaneSpan span_;
  const bool include_planes_;
  const std::optional<Dtype> dtype_;
  const std::vector<BlockKey> keys_;
  const LeaseTable::Hold lease_;  // None: the blocks are read without one.
  const uint64_t message_bytes_;
  uint64_t block_bytes_ = 0;  // Decoded; the same for every key.
  uint64_t plane_bytes_max_ = 0;
  size_t next_key_ = 0;
  std::optional<OpenBlock> open_;
};

}  // namespace nqkv
