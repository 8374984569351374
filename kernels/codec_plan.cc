#include "kernels/codec_plan.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/block_format.h"
#include "kernels/q8_codec.h"
#include "kernels/status_macros.h"

namespace nqkv {

namespace {

constexpr PlaneCodec kRawCodec = {.id = CodecId::kRaw};
constexpr PlaneCodec kQ8Channel = {.id = CodecId::kQ8, .scale_group = kQ8ChannelGroup};
constexpr PlaneCodec kQ8Token = {.id = CodecId::kQ8, .scale_group = kQ8TokenGroup};

PlaneCodec Nqkv4(const CodecPolicy& policy) {
  return {.id = CodecId::kNqkv4, .scale_group = policy.scale_group, .layout = policy.layout};
}

PlaneCodec Nqkv4h(const CodecPolicy& policy, uint8_t strong_channels) {
  return {.id = CodecId::kNqkv4h, .scale_group = policy.scale_group, .strong_channels = strong_channels};
}

bool IsKey(PlaneRole role) { return role != PlaneRole::kValue; }

uint8_t StrongChannelsMax(const PlaneSpec& plane) { return plane.channels >= 128 ? 8 : plane.channels >= 64 ? 4 : 0; }

PlaneCodec Nqkv4hFor(const CodecPolicy& policy, const PlaneSpec& plane) {
  switch (plane.role) {
    case PlaneRole::kValue:
      return Nqkv4(policy);
    case PlaneRole::kRope:
      return kQ8Channel;
    default:
      return Nqkv4h(policy, StrongChannelsMax(plane));
  }
}

// Cheapest first.
std::vector<PlaneCodec> AutoLadder(const CodecPolicy& policy, const PlaneSpec& plane, uint16_t block_tokens,
                                   bool first_in_sequence) {
  std::vector<PlaneCodec> ladder;
  const bool careful = plane.layer == 0 || plane.role == PlaneRole::kRope || (first_in_sequence && IsKey(plane.role));
  if (!careful) {
    ladder = {Nqkv4(policy), Nqkv4h(policy, 0)};
    for (uint8_t strong = 4; IsKey(plane.role) && strong <= StrongChannelsMax(plane); strong += 4) {
      ladder.push_back(Nqkv4h(policy, strong));
    }
  }
  if (IsKey(plane.role)) ladder.push_back(kQ8Channel);
  ladder.push_back(kQ8Token);
  ladder.push_back(kRawCodec);
  const PlaneShape shape = {
      .tokens = block_tokens, .heads = plane.heads, .channels = plane.channels, .dtype = plane.dtype};
  std::stable_sort(ladder.begin(), ladder.end(), [&](const PlaneCodec& a, const PlaneCodec& b) {
    return EncodedBytes(a, shape) < EncodedBytes(b, shape);
  });
  // Of a few tokens, side data can take more than the plane itself.
  while (ladder.back() != kRawCodec) ladder.pop_back();
  return ladder;
}

// Header, table and the planes as `codec_of(plane)` encodes them.
template <typename CodecOf>
uint64_t BlockBytes(const GroupLayout& group, const PartRange& range, CodecOf codec_of) {
  const PlaneSpan span = PlanesIn(group, range);
  uint64_t end = PlanesOffset(span.last - span.first);
  for (size_t plane = span.first; plane < span.last; ++plane) {
    const uint64_t start = (end + kPlaneAlignment - 1) / kPlaneAlignment * kPlaneAlignment;
    end = start + EncodedBytes(codec_of(plane), ShapeOf(group, group.planes[plane], range));
  }
  return end;
}

bool IsBound(float bound) { return std::isfinite(bound) && bound > 0; }

size_t IndexOf(const std::vector<PlaneCodec>& ladder, const PlaneCodec& codec) {
  return static_cast<size_t>(std::find(ladder.begin(), ladder.end(), codec) - ladder.begin());
}

constexpr uint32_t StateOf(size_t rung, uint32_t blocks) { return static_cast<uint32_t>(rung) << 16 | blocks; }
constexpr size_t RungOf(uint32_t state) { return state >> 16; }
constexpr uint32_t BlocksOf(uint32_t state) { return state & 0xffffu; }

}  // namespace

std::vector<PlaneCodec> CodecLadder(const CodecPolicy& policy, const PlaneSpec& plane, uint16_t block_tokens,
                                    bool first_in_sequence) {
  switch (policy.codec) {
    case CodecChoice::kRaw:
      return {kRawCodec};
    case CodecChoice::kNqkv4:
      return {Nqkv4(policy), kRawCodec};
    case CodecChoice::kNqkv4h:
      return {Nqkv4hFor(policy, plane), kRawCodec};
    case CodecChoice::kQ8:
      return {IsKey(plane.role) ? kQ8Channel : kQ8Token, kRawCodec};
    default:
      return AutoLadder(policy, plane, block_tokens, first_in_sequence);
  }
}

absl::Status CodecPolicy::Validate() const {
  if (codec < CodecChoice::kAuto || codec > CodecChoice::kQ8) {
    return absl::InvalidArgumentError(absl::StrCat("codec: ", static_cast<int>(codec), " is not known"));
  }
  if (codec != CodecChoice::kRaw) {
    NQKV_RETURN_IF_ERROR(ValidatePlaneCodec(Nqkv4(*this)));
  }
  if (codec != CodecChoice::kNqkv4 && codec != CodecChoice::kRaw && layout == PlaneLayout::kRow) {
    return absl::InvalidArgumentError("layout: only the codec nqkv4 has the row layout");
  }
  if (!IsBound(floor_error_max)) return absl::InvalidArgumentError("floor_error_max: must be finite and above 0");
  if (!IsBound(token_norm_error_max)) {
    return absl::InvalidArgumentError("token_norm_error_max: must be finite and above 0");
  }
  return absl::OkStatus();
}

std::string CodecPolicy::Name() const {
  switch (codec) {
    case CodecChoice::kAuto:
      return "auto";
    case CodecChoice::kRaw:
      return "raw";
    case CodecChoice::kQ8:
      return "q8";
    case CodecChoice::kNqkv4h:
      return std::string(PlaneCodecName(Nqkv4h(*this, 0)));
    default:
      return std::string(PlaneCodecName(Nqkv4(*this)));
  }
}

const PlaneCodec& CodecPlan::NowOf(const Choice& choice) const {
  return LadderOf(choice)[RungOf(choice.state.load(std::memory_order_relaxed))];
}

CodecPlan::CodecPlan(const CodecPolicy& policy, GroupLayout group)
    : policy_(policy), group_(std::move(group)), choices_(std::make_unique<Choice[]>(2 * group_.planes.size())) {
  for (size_t plane = 0; plane < group_.planes.size(); ++plane) {
    for (const bool first : {false, true}) {
      const Ladder ladder = CodecLadder(policy_, group_.planes[plane], group_.block_tokens, first);
      const auto found = static_cast<size_t>(std::find(ladders_.begin(), ladders_.end(), ladder) - ladders_.begin());
      if (found == ladders_.size()) ladders_.push_back(ladder);
      ChoiceOf(plane, first).ladder = static_cast<uint32_t>(found);
    }
  }
}

uint64_t CodecPlan::PlaneBytes() { return 2 * sizeof(Choice); }

PlaneCodec CodecPlan::Choose(size_t plane, bool first_in_sequence) {
  Choice& choice = ChoiceOf(plane, first_in_sequence);
  uint32_t state = choice.state.load(std::memory_order_relaxed);
  while (BlocksOf(state) > 0) {
    if (choice.state.compare_exchange_weak(state, state - 1, std::memory_order_relaxed)) {
      return LadderOf(choice)[RungOf(state)];
    }
  }
  const size_t rung = RungOf(state);
  return LadderOf(choice)[rung == 0 ? 0 : rung - 1];
}

bool CodecPlan::Accept(size_t plane, const PlaneCodec& codec, const EncodeResult& result, bool first_in_sequence) {
  if (!result.finite) return false;  // A damaged block says nothing about the plane.
  Choice& choice = ChoiceOf(plane, first_in_sequence);
  const bool is_key = IsKey(group_.planes[plane].role);
  const float floor_error_max = is_key ? policy_.floor_error_max : policy_.value_floor_error_max();
  const bool within =
      result.errors.floor_error <= floor_error_max && result.errors.token_norm_error <= policy_.token_norm_error_max;
  if (policy_.codec != CodecChoice::kAuto) return result.in_scale_range;
  const size_t rung = IndexOf(LadderOf(choice), codec);
  const bool accepted = codec.id == CodecId::kRaw || (result.in_scale_range && within);
  if (!accepted) {
    choice.state.store(StateOf(rung + 1, kRetryBlocks - 1), std::memory_order_relaxed);
  } else if (rung < RungOf(choice.state.load(std::memory_order_relaxed))) {
    choice.state.store(StateOf(rung, 0), std::memory_order_relaxed);
  }
  return accepted;
}

PlaneCodec CodecPlan::Next(size_t plane, const PlaneCodec& codec, bool first_in_sequence) const {
  const Choice& choice = ChoiceOf(plane, first_in_sequence);
  const Ladder& ladder = LadderOf(choice);
  return ladder[IndexOf(ladder, codec) + 1];
}

uint64_t CodecPlan::EncodedBytesMin(const PartRange& range) const {
  return BlockBytes(group_, range, [this](size_t plane) { return LadderOf(ChoiceOf(plane, false)).front(); });
}

uint64_t CodecPlan::EncodedBytesTypical(const PartRange& range, bool first_in_sequence) const {
  return BlockBytes(group_, range, [&](size_t plane) { return NowOf(ChoiceOf(plane, first_in_sequence)); });
}

uint64_t CodecPlan::EncodedBytesMax(const PartRange& range) const {
  return BlockBytes(group_, range, [this](size_t plane) {
    // A plane of fp16 always has fp16 scales unless it is rotated, so under most fixed policies only NaN and Inf can
    // force it to raw.
    const PlaneCodec& codec = LadderOf(ChoiceOf(plane, false)).front();
    const bool always = policy_.codec != CodecChoice::kAuto && codec.id != CodecId::kNqkv4h &&
                        !policy_.allow_non_finite && group_.planes[plane].dtype == Dtype::kFloat16;
    return always ? codec : kRawCodec;
  });
}

}  // namespace nqkv
