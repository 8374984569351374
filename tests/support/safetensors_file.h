// Builds safetensors files for tests, right ones and wrong ones.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"

namespace nqkv::testing {

// A file of this header and data.
inline std::string SafetensorsBytes(const std::string& header, const std::string& data) {
  const uint64_t header_bytes = header.size();
  std::string file(sizeof(header_bytes), '\0');
  std::memcpy(file.data(), &header_bytes, sizeof(header_bytes));
  return file + header + data;
}

class SafetensorsBuilder {
 public:
  SafetensorsBuilder& Add(const std::string& name, const std::string& dtype, const std::vector<uint64_t>& shape,
                          const std::string& bytes) {
    header_[name] = {{"dtype", dtype}, {"shape", shape}, {"data_offsets", {data_.size(), data_.size() + bytes.size()}}};
    data_ += bytes;
    return *this;
  }
  SafetensorsBuilder& Metadata(const std::string& key, const std::string& value) {
    header_["__metadata__"][key] = value;
    return *this;
  }
  std::string Build() const { return SafetensorsBytes(header_.dump(), data_); }

 private:
  nlohmann::json header_ = nlohmann::json::object();
  std::string data_;
};

// A capture of float16 noise around 0: the same for the same arguments.
inline std::string CaptureBytes(uint64_t tokens, uint32_t layers, uint64_t heads, uint64_t channels) {
  SafetensorsBuilder builder;
  std::string ids;
  for (uint64_t i = 0; i < tokens; ++i) {
    const int32_t id = static_cast<int32_t>(1000 + i * 7);
    ids.append(reinterpret_cast<const char*>(&id), sizeof(id));
  }
  builder.Add("tokens", "I32", {tokens}, ids).Metadata("model", "test/model").Metadata("text_source", "noise");
  uint32_t state = 1;
  for (uint32_t layer = 0; layer < layers; ++layer) {
    for (const char* role : {"key", "value"}) {
      std::string bytes;
      for (uint64_t i = 0; i < tokens * heads * channels; ++i) {
        state = state * 1664525u + 1013904223u;
        // Sign, exponents 2^-2 to 2^1, any mantissa.
        const auto half = static_cast<uint16_t>((state >> 16 & 0x83ff) | ((13 + (state >> 11 & 3)) << 10));
        bytes.append(reinterpret_cast<const char*>(&half), sizeof(half));
      }
      builder.Add("layers." + std::to_string(layer) + "." + role, "F16", {tokens, heads, channels}, bytes);
    }
  }
  return builder.Build();
}

}  // namespace nqkv::testing
