// Which codec each plane of a cache gets.
//
// AUTO takes for each plane the cheapest codec whose measured error is within the bound. A plane's codecs are tried
// from the cheapest on; what was accepted is remembered per (layer, role), so that later blocks begin there, and the
// next cheaper one is tried again for 1 block in 64, and at once after it was accepted. So a block costs one encode a
// plane, two when the memory turns out wrong.
//
// Blocks that begin a sequence hold the attention sinks, whose logits suffer most, and layer 0 costs most quality for
// its bytes: AUTO begins with q8 for those keys and for all of layer 0, and remembers first blocks by themselves.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "kernels/block_layout.h"
#include "kernels/codec.h"

namespace nqkv {

// Numbers equal those of the wire contract.
enum class CodecChoice : uint8_t { kAuto = 1, kRaw = 2, kNqkv4 = 3, kNqkv4h = 4, kQ8 = 5 };

struct CodecPolicy {
  CodecChoice codec = CodecChoice::kAuto;
  uint16_t scale_group = 64;  // Of nqkv4 and nqkv4h; q8 has its own.
  PlaneLayout layout = PlaneLayout::kHead;
  // AUTO's, of keys. Attention over clean keys under nqkv4 is within both; tests/kernels/fidelity_bound_test.cc
  // measures that what damages attention twice as much is not.
  float floor_error_max = 0.0125f;
  float token_norm_error_max = 0.10f;

  // Of values, whose errors attention averages, where those of keys go through its exponential.
  float value_floor_error_max() const { return 1.6f * floor_error_max; }

  bool allow_non_finite = false;

  // INVALID_ARGUMENT naming the field.
  absl::Status Validate() const;
  // "auto", "raw", "nqkv4-g64", "nqkv4-row-g256", "nqkv4h-g64", "q8".
  std::string Name() const;
  bool operator==(const CodecPolicy&) const = default;
};

// The codecs that `policy` has for a plane, in the order in which they are tried. `first_in_sequence`: of a block that
// begins a sequence. Never empty; the last one is raw, which takes everything.
std::vector<PlaneCodec> CodecLadder(const CodecPolicy& policy, const PlaneSpec& plane, uint16_t block_tokens,
                                    bool first_in_sequence);

// Thread-safe.
class CodecPlan {
 public:
  static constexpr uint32_t kRetryBlocks = 64;

  CodecPlan(const CodecPolicy& policy, GroupLayout group);

  // Memory that a plan takes for each plane of its group, its layout apart.
  static uint64_t PlaneBytes();

  const CodecPolicy& policy() const { return policy_; }
  const GroupLayout& group() const { return group_; }

  // The codec to encode `group().planes[plane]` with now.
  PlaneCodec Choose(size_t plane, bool first_in_sequence = false);
  // Whether a plane encoded so may be stored. AUTO remembers the answer; the fixed policies always accept what is
  // finite and has scales.
  bool Accept(size_t plane, const PlaneCodec& codec, const EncodeResult& result, bool first_in_sequence = false);
  // What to try when `codec` was not accepted. Precondition: it is not raw.
  PlaneCodec Next(size_t plane, const PlaneCodec& codec, bool first_in_sequence = false) const;

  // Bounds of a whole encoded block of this part, header and table included, and what memory makes of it now.
  uint64_t EncodedBytesMin(const PartRange& range) const;
  uint64_t EncodedBytesTypical(const PartRange& range, bool first_in_sequence = false) const;
  uint64_t EncodedBytesMax(const PartRange& range) const;

 private:
  using Ladder = std::vector<PlaneCodec>;

  // A plane's codecs and which of them holds.
  struct Choice {
    uint32_t ladder = 0;  // An index into ladders_.
    // The rung that holds, and in the low half how many blocks get it before the one below is tried again.
    std::atomic<uint32_t> state = 0;
  };

  const Ladder& LadderOf(const Choice& choice) const { return ladders_[choice.ladder]; }
  const PlaneCodec& NowOf(const Choice& choice) const;

  Choice& ChoiceOf(size_t plane, bool first_in_sequence) const {
    return choices_[2 * plane + (first_in_sequence ? 1 : 0)];
  }

  CodecPolicy policy_;
  GroupLayout group_;
  std::vector<Ladder> ladders_;        // Each once: a model has few kinds of planes.
  std::unique_ptr<Choice[]> choices_;  // Two a plane: for most blocks, and for those that begin a sequence.
};

}  // namespace nqkv
