// Which block to forget next.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "absl/strings/string_view.h"

namespace nqkv {

// Names a block: the slot of its first part.
using BlockId = uint32_t;
inline constexpr BlockId kNoBlock = UINT32_MAX;

// What a policy keeps of one block. The links of all blocks are one array that the policies of all stripes share, so a
// block costs its link and no allocation.
struct EvictionLink {
  BlockId newer = kNoBlock;
  BlockId older = kNoBlock;
  uint64_t used = 0;  // When it was used last, by the index's logical clock.
};

// The order of one stripe's blocks. Not thread-safe: the stripe's lock guards it.
class EvictionPolicy {
 public:
  struct Victim {
    BlockId block = kNoBlock;
    uint64_t used = 0;  // Comparable between the policies of all stripes.
  };

  virtual ~EvictionPolicy() = default;

  // The larger `now` is the more recent. Calls that run at once may come out of order.
  virtual void Insert(BlockId block, uint64_t now) = 0;
  virtual void Touch(BlockId block, uint64_t now) = 0;
  virtual void Remove(BlockId block) = 0;
  // `block` goes on under another name, at the same place.
  virtual void Rename(BlockId block, BlockId name) = 0;

  // The block to forget next, not removed; none when the policy holds none.
  virtual std::optional<Victim> Next() const = 0;

  // Blocks held, by walking them; for checks.
  virtual uint64_t CountBlocks() const = 0;
};

bool IsEvictionPolicy(absl::string_view name);

// Precondition: IsEvictionPolicy(name). `links` has one entry a block id and outlives the policy.
std::unique_ptr<EvictionPolicy> MakeEvictionPolicy(absl::string_view name, std::span<EvictionLink> links);

}  // namespace nqkv
