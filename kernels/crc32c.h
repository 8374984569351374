// CRC32C (Castagnoli, reflected, initial and final all ones): the one of iSCSI and RFC 3720. Of "123456789": e3069283.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace nqkv {

// Of the bytes that `crc` is of, followed by `bytes`.
uint32_t ExtendCrc32c(uint32_t crc, std::span<const std::byte> bytes);

inline uint32_t Crc32c(std::span<const std::byte> bytes) { return ExtendCrc32c(0, bytes); }

}  // namespace nqkv
