#include "proto/key_chain.h"

#include <openssl/sha.h>

namespace nqkv {
namespace {

void AppendU32(std::string* out, uint32_t value) {
  for (int shift = 0; shift < 32; shift += 8) out->push_back(static_cast<char>(value >> shift & 0xff));
}

void AppendBytes(std::string* out, absl::string_view bytes) {
  AppendU32(out, static_cast<uint32_t>(bytes.size()));
  out->append(bytes.data(), bytes.size());
}

std::string RootKey(uint32_t block_tokens, const KeyInputs& inputs) {
  std::string input(kKeyScheme);
  input.push_back('\0');
  AppendU32(&input, block_tokens);
  AppendBytes(&input, inputs.adapter_digest);
  AppendBytes(&input, inputs.salt);
  return Sha256(input);
}

// The items that overlap the block, each with its place relative to the block's first token.
void AppendItems(std::string* out, const std::vector<MultimodalItem>& items, uint64_t begin, uint64_t end) {
  std::string overlapping;
  uint32_t count = 0;
  for (const MultimodalItem& item : items) {
    if (item.token_begin >= end || item.token_end <= begin) continue;
    ++count;
    AppendU32(&overlapping, static_cast<uint32_t>(item.token_begin - begin));  // Wraps for an item begun before.
    AppendBytes(&overlapping, item.id);
  }
  AppendU32(out, count);
  out->append(overlapping);
}

}  // namespace

std::string Sha256(absl::string_view bytes) {
  std::string digest(SHA256_DIGEST_LENGTH, '\0');
  SHA256(reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size(),
         reinterpret_cast<unsigned char*>(digest.data()));
  return digest;
}

std::vector<std::string> ChainKeys(std::span<const uint32_t> tokens, uint32_t block_tokens, const KeyInputs& inputs) {
  std::vector<std::string> keys;
  keys.reserve(tokens.size() / block_tokens);
  std::string parent = RootKey(block_tokens, inputs);
  for (uint64_t begin = 0; begin + block_tokens <= tokens.size(); begin += block_tokens) {
    std::string input = parent;
    for (uint32_t token : tokens.subspan(begin, block_tokens)) AppendU32(&input, token);
    AppendItems(&input, inputs.items, begin, begin + block_tokens);
    parent = Sha256(input);
    keys.push_back(parent);
  }
  return keys;
}

}  // namespace nqkv
