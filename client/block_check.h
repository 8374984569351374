// Compares blocks that came back from a server with what the reference codec makes of the capture.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "client/capture.h"
#include "client/nqkv.h"

namespace nqkv::client {

// What the checked planes of one role add up to.
struct RoleTotals {
  uint64_t planes = 0;
  uint64_t elements = 0;
  uint64_t raw_bytes = 0;
  double stored_bytes = 0;  // With the role's share of the blocks' headers and tables.
  double signal_energy = 0;
  double error_energy = 0;
  float floor_error = 0;                   // The worst plane.
  float token_norm_error = 0;              // The worst plane.
  double cosine = 1;                       // The worst token of the worst head; 1 where one of both is all zero.
  std::map<std::string, uint64_t> codecs;  // Planes by codec.

  double nmse() const { return signal_energy > 0 ? error_energy / signal_energy : 0; }
  double bits_an_element() const { return elements > 0 ? stored_bytes * 8 / static_cast<double>(elements) : 0; }
  void Add(const RoleTotals& other);
};

// Not thread-safe.
class BlockCheck {
 public:
  // `capture` must outlive it.
  explicit BlockCheck(const Capture* capture) : capture_(capture) {}

  // Checks one whole block: every byte of the payload, and each plane's stored size, CRC32C and errors, against the
  // reference codec run here on the capture. `result.planes` must be filled.
  //
  // Errors:
  //   DATA_LOSS  the first difference: block, layer, role, and what differs.
  absl::Status Check(size_t block, std::span<const std::byte> payload, const GetResult& result);

  const std::map<PlaneRole, RoleTotals>& totals() const { return totals_; }

 private:
  // One plane of the block, stored as `parts`; `payload` holds its bytes.
  absl::Status CheckPlane(size_t block, size_t plane, std::span<const std::byte> payload,
                          const std::vector<const PlaneInfo*>& parts, double overhead_bytes);
  // Encodes a part as its info says, compares, and decodes it to its place in expected_.
  absl::Status CheckPart(size_t block, size_t plane, const PlaneInfo& part, RoleTotals* totals);

  const Capture* capture_;
  std::map<PlaneRole, RoleTotals> totals_;
  std::vector<std::byte> encoded_;
  std::vector<std::byte> expected_;
};

}  // namespace nqkv::client
