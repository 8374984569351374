#include "storage/block_key.h"

#include "absl/strings/str_cat.h"

namespace nqkv {

absl::StatusOr<BlockKey> BlockKey::Create(TenantId tenant, CacheId cache, uint16_t layer_group, absl::string_view key) {
  if (key.empty()) return absl::InvalidArgumentError("key is empty");
  if (key.size() > kBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat("key has ", key.size(), " bytes; at most ", kBytesMax));
  }
  BlockKey block_key;
  block_key.cache_ = cache;
  block_key.tenant_ = tenant;
  block_key.layer_group_ = layer_group;
  block_key.size_ = static_cast<uint8_t>(key.size());
  std::memcpy(block_key.bytes_.data(), key.data(), key.size());
  return block_key;
}

}  // namespace nqkv
