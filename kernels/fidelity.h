// The errors that an encoder measures, summed in the one order that FORMAT.md gives, so that every path of a codec ends
// with the same bits.
//
// A row is one token of one head. Its three energies are sums of squares over its channels in kRowLanes partial sums:
// lane j adds channels j, j + 16, j + 32, ... with fused multiply-adds; SumRow adds the lanes up. A head's sums over
// its tokens have kLanes: lane j adds tokens j, j + 8, j + 16, ...; SumLanes adds them up.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/block_layout.h"
#include "kernels/codec.h"

namespace nqkv {

inline constexpr size_t kLanes = 8;
inline constexpr size_t kChannelsMax = 8192;  // Of a head.

inline float SumLanes(const float lanes[kLanes]) {
  const float a0 = lanes[0] + lanes[4], a1 = lanes[1] + lanes[5], a2 = lanes[2] + lanes[6], a3 = lanes[3] + lanes[7];
  return (a0 + a2) + (a1 + a3);
}

// Two registers' worth, because one chain of additions would keep a vector unit waiting for itself.
inline constexpr size_t kRowLanes = 2 * kLanes;

inline float SumRow(const float lanes[kRowLanes]) {
  float folded[kLanes];
  for (size_t j = 0; j < kLanes; ++j) folded[j] = lanes[j] + lanes[j + kLanes];
  return SumLanes(folded);
}

// The smallest row energy that has a weight: what is below cannot be divided by.
inline constexpr float kRowEnergyMin = 0x1p-126f;

// One over the row's energy: every token counts alike, whatever its norm.
inline float RowWeight(float signal_energy) { return signal_energy >= kRowEnergyMin ? 1.0f / signal_energy : 0.0f; }

struct RowEnergies {
  float signal = 0;   // Of the source.
  float error = 0;    // Of source - decoded.
  float decoded = 0;  // Of the decoded row.
};

// One head's rows.
struct HeadFidelity {
  float signal[kLanes] = {};
  float error[kLanes] = {};
  float weighted_error[kLanes] = {};
  float token_norm_error = 0;
  uint32_t weighted_rows = 0;

  void Add(size_t token, const RowEnergies& row, float weight);
  // `floor_energy`: FloorEnergy of the head's weighted channel energies.
  float FloorError(float floor_energy) const;
};

// Energy of a row's values, summed as said above.
float RowEnergy(std::span<const float> values);

// One plane's heads, in order.
class PlaneFidelity {
 public:
  void Add(const HeadFidelity& head, float floor_energy);
  PlaneErrors errors() const;

 private:
  double signal_ = 0;
  double error_ = 0;
  PlaneErrors worst_;
};

// Channels that the floor leaves out: a sixteenth, rounded up.
constexpr size_t StrongChannels(size_t channels) { return (channels + 15) / 16; }

// Sum of the channels' energies without the strongest StrongChannels(). Energies are not negative and not NaN; their
// number is a multiple of 8.
float FloorEnergy(std::span<const float> energies);

// Measures one head row by row. For the reference codecs: the vector paths have the same sums in registers.
class HeadMeter {
 public:
  explicit HeadMeter(size_t channels) : channels_(channels) {}

  // The next token's row, with the energies of source - decoded and of decoded.
  void Add(size_t token, std::span<const float> source, float error_energy, float decoded_energy);
  // What Add does to the channels' energies alone.
  void AddEnergies(std::span<const float> source);
  void AddTo(PlaneFidelity& plane) const;

  // Weighted, over the rows so far.
  std::span<const float> channel_energies() const { return {channel_energies_, channels_}; }

 private:
  void AddEnergies(std::span<const float> source, float weight);

  size_t channels_;
  HeadFidelity fidelity_;
  float channel_energies_[kChannelsMax] = {};
};

// FloorEnergy's search, over any way to go through the energies. They are not negative, so their bits order as they do.
// `largest_bits`: of the largest. `count_above(bits)`: how many are larger. `sum_up_to(bits)`: of those that are not.
template <typename CountAbove, typename SumUpTo>
[[gnu::always_inline]] inline float SplitFloor(size_t strong, int32_t largest_bits, CountAbove count_above,
                                               SumUpTo sum_up_to) {
  int32_t low = -1, high = largest_bits;  // More than `strong` are above `low`, `above` of them above `high`.
  size_t above = 0;
  while (above != strong && high - low > 1) {
    const int32_t middle = low + (high - low) / 2;
    const size_t count = count_above(middle);
    if (count > strong) {
      low = middle;
    } else {
      high = middle;
      above = count;
    }
  }
  if (above == strong) return sum_up_to(high);
  // Ties at the border: of the energies that equal `high` only as many are left out as are missing.
  const size_t kept_ties = count_above(high - 1) - strong;
  return sum_up_to(high - 1) + static_cast<float>(kept_ties) * std::bit_cast<float>(high);
}

}  // namespace nqkv
