// Equal specs have equal fingerprints: 16 bytes that every encoded block carries.
#pragma once

#include <string>
#include <vector>

#include "nqkv/v1/kv_cache.pb.h"

namespace nqkv {

// The first 16 bytes of the SHA-256 of the spec's canonical form, which KEYS.md gives. An empty key scheme counts as
// "nqkv-sha256-v1". Thread-safe.
std::string SpecFingerprint16(const v1::CacheSpec& spec);

// Paths of the fields that differ, such as "layer_groups[0].planes[3].dtype (DTYPE_FLOAT16, asked for DTYPE_BFLOAT16)".
// Planes of a group that differ in the same way are one entry: "layer_groups[0].planes[0-159].dtype (...)". Empty
// exactly when the fingerprints are equal. Takes time linear in the sizes of the specs.
std::vector<std::string> DifferingFields(const v1::CacheSpec& present, const v1::CacheSpec& asked);

}  // namespace nqkv
