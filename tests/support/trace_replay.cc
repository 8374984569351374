#include "tests/support/trace_replay.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/codec_plan.h"
#include "kernels/status_macros.h"
#include "storage/block_store.h"
#include "tests/support/policy_model.h"

namespace nqkv {
namespace {

GroupLayout LayoutOf(uint32_t tokens) {
  return {.id = 0,
          .block_tokens = static_cast<uint16_t>(tokens),
          .planes = {{.layer = 0, .role = PlaneRole::kKey, .heads = 1, .channels = 128},
                     {.layer = 0, .role = PlaneRole::kValue, .heads = 1, .channels = 128}}};
}

uint64_t BlockBytes(uint32_t tokens, CodecChoice codec) {
  const GroupLayout layout = LayoutOf(tokens);
  return CodecPlan({.codec = codec}, layout).EncodedBytesTypical(WholeRange(layout));
}

constexpr PartRange kWhole = {.layer_begin = 0, .layer_end = 1, .head_begin = 0, .head_end = 1};

// As large as a SHA-256, as keys are.
BlockKey KeyOf(uint32_t block) {
  char bytes[32] = {};
  std::memcpy(bytes, &block, sizeof(block));
  return *BlockKey::Create(0, 0, 0, {bytes, sizeof(bytes)});
}

StorageOptions OptionsFor(const ReplayOptions& options) {
  // More entries than blocks, so that memory is what runs out.
  const uint64_t bytes_per_slot = std::clamp<uint64_t>(std::bit_floor(options.block_bytes), 1024, 1024 * 1024);
  return {
      .host_bytes = options.host_bytes, .bytes_per_slot = bytes_per_slot, .eviction_policy = options.eviction_policy};
}

// Whether there was room.
absl::Status Put(BlockStore* store, const BlockKey& key, uint64_t bytes) {
  absl::StatusOr<Reservation> reservation = store->Reserve(key, kWhole, bytes);
  if (absl::IsAlreadyExists(reservation.status())) return absl::OkStatus();
  NQKV_RETURN_IF_ERROR(reservation.status());
  return store->Commit(*std::move(reservation), bytes, {});
}

ReplayResult Sum(const Trace& trace, uint64_t hit_blocks, uint64_t hit_tokens) {
  uint64_t tokens = 0;
  for (const TraceRequest& request : trace.requests) tokens += request.input_tokens;
  return {.block_hits = static_cast<double>(hit_blocks) / static_cast<double>(trace.accesses),
          .token_hits = static_cast<double>(hit_tokens) / static_cast<double>(std::max<uint64_t>(tokens, 1))};
}

}  // namespace

uint64_t RawBlockBytes(uint32_t tokens) { return BlockBytes(tokens, CodecChoice::kRaw); }

uint64_t Nqkv4BlockBytes(uint32_t tokens) { return BlockBytes(tokens, CodecChoice::kNqkv4); }

absl::StatusOr<ReplayResult> ReplayThroughStore(const Trace& trace, const ReplayOptions& options) {
  NQKV_ASSIGN_OR_RETURN(const std::unique_ptr<BlockStore> store, BlockStore::Create(OptionsFor(options)));
  uint64_t hit_blocks = 0;
  uint64_t hit_tokens = 0;
  std::vector<BlockKey> keys;
  for (const TraceRequest& request : trace.requests) {
    keys.clear();
    for (const uint32_t block : request.blocks) keys.push_back(KeyOf(block));
    const size_t matched = store->MatchPrefix(keys, kWhole, nullptr);
    hit_blocks += matched;
    hit_tokens += std::min<uint64_t>(matched * trace.block_tokens, request.input_tokens);
    for (size_t i = matched; i < keys.size(); ++i) NQKV_RETURN_IF_ERROR(Put(store.get(), keys[i], options.block_bytes));
    if (matched < keys.size()) store->Settle(keys);
  }
  NQKV_RETURN_IF_ERROR(store->CheckConsistency());
  ReplayResult result = Sum(trace, hit_blocks, hit_tokens);
  result.blocks_held = store->Stats().blocks;
  return result;
}

ReplayResult ReplayThroughModel(const Trace& trace, uint64_t capacity_blocks, double protected_share) {
  PolicyModel model(capacity_blocks, trace.unique_blocks, protected_share);
  uint64_t hit_blocks = 0;
  uint64_t hit_tokens = 0;
  for (const TraceRequest& request : trace.requests) {
    const size_t matched = model.Serve(request.blocks);
    hit_blocks += matched;
    hit_tokens += std::min<uint64_t>(matched * trace.block_tokens, request.input_tokens);
  }
  return Sum(trace, hit_blocks, hit_tokens);
}

absl::StatusOr<uint64_t> HostBytesFor(uint64_t blocks, uint64_t block_bytes) {
  uint64_t host_bytes = std::max<uint64_t>(blocks * block_bytes, StorageOptions::kHostBytesMin);
  // What slabs waste and the table takes differs a little with the size: a few tries come close enough.
  for (int attempt = 0; attempt < 4; ++attempt) {
    const ReplayOptions options = {.host_bytes = host_bytes, .block_bytes = block_bytes};
    NQKV_ASSIGN_OR_RETURN(const std::unique_ptr<BlockStore> store, BlockStore::Create(OptionsFor(options)));
    uint32_t stored = 0;
    for (; store->Stats().evicted_blocks_total == 0; ++stored) {
      NQKV_RETURN_IF_ERROR(Put(store.get(), KeyOf(stored), block_bytes));
    }
    host_bytes = static_cast<uint64_t>(static_cast<double>(host_bytes) * static_cast<double>(blocks) / (stored - 1));
  }
  return host_bytes;
}

}  // namespace nqkv
