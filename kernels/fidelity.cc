#include "kernels/fidelity.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

namespace nqkv {

void HeadFidelity::Add(size_t token, const RowEnergies& row, float weight) {
  const size_t lane = token % kLanes;
  signal[lane] += row.signal;
  error[lane] += row.error;
  if (weight == 0) return;
  ++weighted_rows;
  weighted_error[lane] += row.error * weight;
  const float norm_ratio = std::sqrt(row.decoded * weight);
  token_norm_error = std::max(token_norm_error, std::fabs(norm_ratio - 1.0f));
}

float HeadFidelity::FloorError(float floor_energy) const {
  const float total = SumLanes(weighted_error);
  // The weighted signal energy is one a row by definition.
  if (total < static_cast<float>(weighted_rows) * 0x1p-20f || total == 0) return 0;
  return floor_energy > 0 ? total / floor_energy : std::numeric_limits<float>::infinity();
}

float RowEnergy(std::span<const float> values) {
  float lanes[kRowLanes] = {};
  for (size_t c = 0; c < values.size(); ++c)
    lanes[c % kRowLanes] = std::fma(values[c], values[c], lanes[c % kRowLanes]);
  return SumRow(lanes);
}

void HeadMeter::Add(size_t token, std::span<const float> source, float error_energy, float decoded_energy) {
  const RowEnergies row{RowEnergy(source), error_energy, decoded_energy};
  const float weight = RowWeight(row.signal);
  fidelity_.Add(token, row, weight);
  AddEnergies(source, weight);
}

void HeadMeter::AddEnergies(std::span<const float> source) { AddEnergies(source, RowWeight(RowEnergy(source))); }

void HeadMeter::AddEnergies(std::span<const float> source, float weight) {
  for (size_t c = 0; c < channels_; ++c) {
    channel_energies_[c] = std::fma(source[c] * weight, source[c], channel_energies_[c]);
  }
}

void HeadMeter::AddTo(PlaneFidelity& plane) const { plane.Add(fidelity_, FloorEnergy(channel_energies())); }

void PlaneFidelity::Add(const HeadFidelity& head, float floor_energy) {
  signal_ += SumLanes(head.signal);
  error_ += SumLanes(head.error);
  worst_.floor_error = std::max(worst_.floor_error, head.FloorError(floor_energy));
  worst_.token_norm_error = std::max(worst_.token_norm_error, head.token_norm_error);
}

PlaneErrors PlaneFidelity::errors() const {
  PlaneErrors errors = worst_;
  errors.nmse = signal_ > 0 ? static_cast<float>(error_ / signal_) : 0;
  return errors;
}

float FloorEnergy(std::span<const float> energies) {
  const auto is_above = [](float energy, int32_t bits) { return std::bit_cast<int32_t>(energy) > bits; };
  const auto count_above = [&](int32_t bits) {
    size_t count = 0;
    for (float energy : energies) count += is_above(energy, bits);
    return count;
  };
  const auto sum_up_to = [&](int32_t bits) {
    float lanes[kLanes] = {};
    for (size_t c = 0; c < energies.size(); ++c) lanes[c % kLanes] += is_above(energies[c], bits) ? 0.0f : energies[c];
    return SumLanes(lanes);
  };
  const float largest = *std::max_element(energies.begin(), energies.end());
  return SplitFloor(StrongChannels(energies.size()), std::bit_cast<int32_t>(largest), count_above, sum_up_to);
}

}  // namespace nqkv
