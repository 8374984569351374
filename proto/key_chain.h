// The engine-neutral key scheme `nqkv-sha256-v1`: KEYS.md gives it to the byte, with test vectors.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace nqkv {

inline constexpr absl::string_view kKeyScheme = "nqkv-sha256-v1";

// A multimodal item that stands at tokens [token_begin, token_end) of the sequence.
struct MultimodalItem {
  std::string id;  // Digest of the content, at most 64 bytes.
  uint64_t token_begin = 0;
  uint64_t token_end = 0;
};

// What beside the tokens decides a block's content.
struct KeyInputs {
  std::string adapter_digest;         // Empty: the base model.
  std::string salt;                   // Empty: shared by all.
  std::vector<MultimodalItem> items;  // By token_begin.
};

// The 32-byte keys of the whole blocks of `tokens`, the head of the sequence first. Thread-safe.
// Preconditions: block_tokens > 0.
std::vector<std::string> ChainKeys(std::span<const uint32_t> tokens, uint32_t block_tokens,
                                   const KeyInputs& inputs = {});

// SHA-256 of `bytes`; by convention the `scope` of blocks with a cache salt.
std::string Sha256(absl::string_view bytes);

}  // namespace nqkv
