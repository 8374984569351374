// Any bytes are a safetensors file or are refused; what is accepted lies inside the file.
#include <cstdint>
#include <cstdlib>

#include "client/capture.h"
#include "client/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using nqkv::client::Capture;
  using nqkv::client::Safetensors;
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(data), size);
  absl::StatusOr<Safetensors> file = Safetensors::Parse(bytes);
  if (!file.ok()) return 0;
  for (const auto& [name, tensor] : file->tensors()) {
    if (tensor.bytes.data() < bytes.data() || tensor.bytes.data() + tensor.bytes.size() > bytes.data() + size) abort();
  }
  const absl::StatusOr<Capture> capture = Capture::FromSafetensors(*std::move(file), 4);
  if (!capture.ok()) return 0;
  unsigned sum = 0;
  for (size_t plane = 0; plane < capture->group().planes.size(); ++plane) {
    for (const std::byte byte : capture->Plane(capture->block_count() - 1, plane)) sum += static_cast<unsigned>(byte);
  }
  return sum == 0xffffffff ? 1 : 0;
}
