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

namespace {

// Energies are not negative, so their bits order as they do.
size_t CountAbove(std::span<const float> energies, int32_t bits) {
  size_t count = 0;
  for (float energy : energies) count += std::bit_cast<int32_t>(energy) > bits;
  return count;
}

}  // namespace

float FloorEnergy(std::span<const float> energies) {
  const size_t strong = StrongChannels(energies.size());
  // The smallest bits with at most `strong` energies above them; exact search, since the sum must not depend on luck.
  int32_t low = -1;  // More than `strong` above, or every energy.
  int32_t high = std::bit_cast<int32_t>(*std::max_element(energies.begin(), energies.end()));
  size_t above = 0;  // Energies above `high`.
  while (above != strong && high - low > 1) {
    const int32_t middle = low + (high - low) / 2;
    const size_t count = CountAbove(energies, middle);
    if (count > strong) {
      low = middle;
    } else {
      high = middle;
      above = count;
    }
  }
  // Ties at the border: of the energies that equal `high` only as many are left out as are missing.
  const bool tied = above != strong;
  const size_t kept_ties = tied ? CountAbove(energies, high - 1) - strong : 0;
  const int32_t kept_max = tied ? high - 1 : high;
  float lanes[kLanes] = {};
  for (size_t c = 0; c < energies.size(); ++c) {
    lanes[c % kLanes] += std::bit_cast<int32_t>(energies[c]) > kept_max ? 0.0f : energies[c];
  }
  return SumLanes(lanes) + static_cast<float>(kept_ties) * std::bit_cast<float>(high);
}

}  // namespace nqkv
