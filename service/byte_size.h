// A number of bytes as people write it: "40GiB", "512MiB", "1048576".
#pragma once

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace nqkv {

struct ByteSize {
  uint64_t bytes = 0;
};

// The hooks that make it a flag. Units are B, KiB, MiB, GiB, TiB and, a thousand a step, KB, MB, GB, TB; fractions such
// as 1.5GiB are fine.
bool AbslParseFlag(absl::string_view text, ByteSize* size, std::string* error);
std::string AbslUnparseFlag(const ByteSize& size);

// "1.5 GiB": for messages, rounded.
std::string ShowBytes(uint64_t bytes);

}  // namespace nqkv
