// A captured KV cache: what a real model computed over a real text, as tests/quality/capture_kv.py writes it.
//
// A safetensors file with, for each layer i from 0 on, `layers.<i>.key` and `layers.<i>.value`, each
// [tokens][kv_heads][head_dim] of F16, BF16 or F32, and `tokens`, the token ids as I32 or I64.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/nqkv.h"
#include "client/safetensors.h"

namespace nqkv::client {

// Immutable and so thread-safe. Move-only.
class Capture {
 public:
  // Errors:
  //   NOT_FOUND         no such file.
  //   INVALID_ARGUMENT  not a capture; says what is missing or wrong.
  static absl::StatusOr<Capture> Load(const std::string& path, uint32_t block_tokens);
  static absl::StatusOr<Capture> FromSafetensors(Safetensors file, uint32_t block_tokens);

  // The file that comes with the program: $NQKV_CAPTURE, else share/nqkv or tests/data above the executable.
  static absl::StatusOr<std::string> DefaultPath();

  const CacheSpec& spec() const { return spec_; }
  const LayerGroup& group() const { return spec_.layer_groups.front(); }
  std::span<const uint32_t> tokens() const { return tokens_; }
  size_t block_count() const { return tokens_.size() / group().block_tokens; }
  uint64_t block_bytes() const { return block_bytes_; }
  std::string Metadata(const std::string& key) const { return file_.Metadata(key); }

  // One plane of a block, contiguous: [block_tokens][heads][channels]. Planes are numbered as in group().planes.
  std::span<const std::byte> Plane(size_t block, size_t plane) const;
  // The block, ready to put; points into the capture.
  PutBlock Block(size_t block, const std::string& key) const;

 private:
  explicit Capture(Safetensors file) : file_(std::move(file)) {}
  absl::Status ReadTokens();
  absl::Status ReadPlanes(uint32_t block_tokens);

  Safetensors file_;
  CacheSpec spec_;
  std::vector<uint32_t> tokens_;
  std::vector<const std::byte*> planes_;  // The first token of each.
  uint64_t block_bytes_ = 0;
};

}  // namespace nqkv::client
