// Reads safetensors files: https://github.com/huggingface/safetensors#format.
//
// Files come from outside, so everything is checked before it is used: sizes, shapes, offsets, and that the tensors
// tile the data without gaps or overlaps. Time and memory are linear in the header, which is at most kHeaderBytesMax.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace nqkv::client {

struct Tensor {
  std::string dtype;  // As in the file: "F16", "I32", ...
  std::vector<uint64_t> shape;
  std::span<const std::byte> bytes;
};

// Immutable and so thread-safe. Move-only.
class Safetensors {
 public:
  static constexpr uint64_t kHeaderBytesMax = 16 << 20;

  // Maps the file; it must not be shortened meanwhile.
  //
  // Errors:
  //   NOT_FOUND, PERMISSION_DENIED  the file cannot be opened.
  //   INVALID_ARGUMENT              no safetensors file; says what is wrong with it.
  static absl::StatusOr<Safetensors> Open(const std::string& path);

  // Of bytes that the caller keeps alive. Errors: INVALID_ARGUMENT.
  static absl::StatusOr<Safetensors> Parse(std::span<const std::byte> file);

  Safetensors(Safetensors&&) noexcept = default;
  Safetensors& operator=(Safetensors&&) noexcept = default;

  // Null when there is no such tensor.
  const Tensor* Find(const std::string& name) const;
  const std::map<std::string, Tensor>& tensors() const { return tensors_; }
  // Empty when there is no such entry.
  std::string Metadata(const std::string& key) const;

 private:
  Safetensors() = default;

  std::map<std::string, Tensor> tensors_;
  std::map<std::string, std::string> metadata_;
  std::shared_ptr<void> mapping_;  // Unmaps. Empty after Parse.
};

}  // namespace nqkv::client
