#include "storage/options.h"

#include <bit>

#include "absl/strings/str_cat.h"
#include "storage/eviction_policy.h"

namespace nqkv {

absl::Status StorageOptions::Validate() const {
  if (host_bytes < kHostBytesMin) {
    return absl::InvalidArgumentError(absl::StrCat("host_bytes is ", host_bytes, "; at least ", kHostBytesMin));
  }
  if (warm_restart && arena_path.empty()) {
    return absl::InvalidArgumentError("warm_restart needs an arena_path: memory without a file ends with its process");
  }
  if (!std::has_single_bit(bytes_per_slot) || bytes_per_slot < 1024 || bytes_per_slot > 1024 * 1024) {
    return absl::InvalidArgumentError(
        absl::StrCat("bytes_per_slot is ", bytes_per_slot, "; a power of two from 1024 to 1048576"));
  }
  if (!std::has_single_bit(index_stripes) || index_stripes > 1024) {
    return absl::InvalidArgumentError(
        absl::StrCat("index_stripes is ", index_stripes, "; a power of two from 1 to 1024"));
  }
  if (!IsEvictionPolicy(eviction_policy)) {
    return absl::InvalidArgumentError(
        absl::StrCat("eviction_policy is \"", eviction_policy, "\"; ", EvictionPolicyNames(), " are known"));
  }
  return absl::OkStatus();
}

}  // namespace nqkv
