// The errors that an encoder measures, summed in the one order that FORMAT.md gives, so that every path of a codec ends
// with the same bits.
//
// A row is one token of one head. Its three energies are sums of squares over its channels in kLanes partial sums: lane
// j adds channels j, j + 8, j + 16, ... with fused multiply-adds; SumLanes adds the lanes up. A head's sums over its
// tokens are made alike: lane j adds tokens j, j + 8, j + 16, ...
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/block_layout.h"
#include "kernels/codec.h"

namespace nqkv {

inline constexpr size_t kLanes = 8;

inline float SumLanes(const float lanes[kLanes]) {
  const float a0 = lanes[0] + lanes[4], a1 = lanes[1] + lanes[5], a2 = lanes[2] + lanes[6], a3 = lanes[3] + lanes[7];
  return (a0 + a2) + (a1 + a3);
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

}  // namespace nqkv
