// Names one block: tenant, cache, layer group and the engine's key.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace nqkv {

using TenantId = uint16_t;
using CacheId = uint32_t;

// A plain value of fixed size: equal keys are equal bytes.
class BlockKey {
 public:
  static constexpr size_t kBytesMax = 64;

  // INVALID_ARGUMENT when `key` is empty or longer than kBytesMax; the message says which.
  static absl::StatusOr<BlockKey> Create(TenantId tenant, CacheId cache, uint16_t layer_group, absl::string_view key);

  // Whether it is one that Create gives, or else bytes that came from elsewhere.
  bool IsValid() const { return size_ >= 1 && size_ <= kBytesMax; }

  TenantId tenant() const { return tenant_; }
  CacheId cache() const { return cache_; }
  uint16_t layer_group() const { return layer_group_; }
  absl::string_view bytes() const { return {bytes_.data(), size_}; }

  bool operator==(const BlockKey& other) const {
    return cache_ == other.cache_ && layer_group_ == other.layer_group_ && tenant_ == other.tenant_ &&
           bytes() == other.bytes();
  }
  template <typename H>
  friend H AbslHashValue(H state, const BlockKey& key) {
    return H::combine(std::move(state), key.tenant_, key.cache_, key.layer_group_, key.bytes());
  }

 private:
  CacheId cache_ = 0;
  TenantId tenant_ = 0;
  uint16_t layer_group_ = 0;
  uint8_t size_ = 0;
  std::array<char, kBytesMax> bytes_ = {};
};

}  // namespace nqkv
