// Which codec each plane of a cache gets.
//
// AUTO takes for each plane the cheapest codec whose measured error is within the bound. What it found is remembered
// per (layer, role): while a plane is over the bound it is stored in the better codec at once, and the cheaper one is
// tried again for 1 block in 64. So a block costs one encode a plane, two when the memory turns out wrong.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "kernels/block_layout.h"
#include "kernels/codec.h"

namespace nqkv {

enum class CodecChoice : uint8_t { kAuto = 1, kRaw = 2, kNqkv4 = 3 };

struct CodecPolicy {
  CodecChoice codec = CodecChoice::kAuto;
  uint16_t scale_group = 64;
  PlaneLayout layout = PlaneLayout::kHead;
  float floor_error_max = 0.02f;
  float token_norm_error_max = 0.10f;
  bool allow_non_finite = false;

  // INVALID_ARGUMENT naming the field.
  absl::Status Validate() const;
  // "auto", "raw", "nqkv4-g64", "nqkv4-row-g256".
  std::string Name() const;
  bool operator==(const CodecPolicy&) const = default;
};

// Thread-safe.
class CodecPlan {
 public:
  static constexpr uint32_t kRetryBlocks = 64;

  CodecPlan(const CodecPolicy& policy, GroupLayout group);

  const CodecPolicy& policy() const { return policy_; }
  const GroupLayout& group() const { return group_; }

  // The codec to encode `group().planes[plane]` with now.
  PlaneCodec Choose(size_t plane);
  // Whether a plane encoded so may be stored. AUTO remembers the answer; the fixed policies always accept what is
  // finite.
  bool Accept(size_t plane, const PlaneCodec& codec, const EncodeResult& result);

  // Bounds of a whole encoded block of this part, header and table included, and what memory makes of it now.
  uint64_t EncodedBytesMin(const PartRange& range) const;
  uint64_t EncodedBytesTypical(const PartRange& range) const;
  uint64_t EncodedBytesMax(const PartRange& range) const;

 private:
  CodecPolicy policy_;
  GroupLayout group_;
  std::unique_ptr<std::atomic<uint32_t>[]> blocks_until_retry_;  // A plane; 0: the cheap codec holds.
};

}  // namespace nqkv
