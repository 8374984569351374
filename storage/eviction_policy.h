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
  uint32_t weight : 30 = 0;
  uint32_t segment : 2 = 0;  // Of the policy's lists, the one that holds it.
};

// The order of one stripe's blocks. Not thread-safe: the stripe's lock guards it.
class EvictionPolicy {
 public:
  struct Victim {
    BlockId block = kNoBlock;
    uint64_t used = 0;          // Comparable between the policies of all stripes.
    bool is_protected = false;  // The policy would rather keep it, however old it is.
  };
  static constexpr uint32_t kWeightMax = (1u << 30) - 1;

  virtual ~EvictionPolicy() = default;

  // `weight` is what the block takes of the memory, in any unit. The larger `now` is the more recent. Calls that run at
  // once may come out of order.
  virtual void Insert(BlockId block, uint32_t weight, uint64_t now) = 0;
  // The block was wanted again.
  virtual void Touch(BlockId block, uint64_t now) = 0;
  // The block belongs to what is in use now, which says nothing of whether it will be wanted again.
  virtual void Settle(BlockId block, uint64_t now) = 0;
  // The block will hardly be wanted again: it goes before all others.
  virtual void Demote(BlockId block) = 0;
  virtual void Remove(BlockId block) = 0;
  // `block` goes on under another name, at the same place.
  virtual void Rename(BlockId block, BlockId name) = 0;
  // `block` weighs something else from now on.
  virtual void Reweigh(BlockId block, uint32_t weight) = 0;

  // The block to forget next, not removed; none when the policy holds none.
  virtual std::optional<Victim> Next() const = 0;

  // Of all blocks, and of those that are protected. The index sees to it, over all stripes, that the latter is at most
  // a kProtectedShare-th of the former: a share for each stripe would tear chains apart whose blocks are spread.
  static constexpr uint64_t kProtectedShare = 5;
  virtual uint64_t weight() const = 0;
  virtual uint64_t protected_weight() const { return 0; }
  // The protected block that was used the longest ago; none when none is protected.
  virtual std::optional<Victim> OldestProtected() const { return std::nullopt; }
  // That block is protected no more, and counts as used now. Precondition: there is one.
  virtual void Unprotect(uint64_t now) { static_cast<void>(now); }

  // Blocks held, by walking them; for checks.
  virtual uint64_t CountBlocks() const = 0;
};

bool IsEvictionPolicy(absl::string_view name);
// "lru and slru", for messages.
absl::string_view EvictionPolicyNames();

// Precondition: IsEvictionPolicy(name). `links` has one entry a block id and outlives the policy.
std::unique_ptr<EvictionPolicy> MakeEvictionPolicy(absl::string_view name, std::span<EvictionLink> links);

}  // namespace nqkv
