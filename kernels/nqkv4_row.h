// One row of nqkv4 by the letter of FORMAT.md, for the reference codecs. Pure functions.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/float_format.h"
#include "kernels/nqkv4_codec.h"

namespace nqkv {

inline uint8_t Nqkv4CodeOf(float scaled) {
  const float place = std::nearbyint(scaled);
  uint8_t code = 0;
  for (int8_t threshold : kNqkv4Thresholds) code += place > threshold;
  return code;
}

// `source[i]` is element i of the row. False when it holds what has no fp16 scale.
template <typename Source>
bool Nqkv4EncodeRow(const Source& source, const Nqkv4Layout& layout, std::byte* codes, std::byte* scales) {
  std::memset(codes, 0, layout.row_code_bytes());
  for (size_t g = 0; g < layout.groups; ++g) {
    const size_t begin = g * layout.group, end = std::min(begin + layout.group, layout.row_elements);
    float absmax = 0;
    for (size_t i = begin; i < end; ++i) {
      const float magnitude = std::fabs(source[i]);
      if (!(magnitude < kScaleRangeEnd)) return false;
      absmax = std::max(absmax, magnitude);
    }
    const uint16_t scale = FloatToFloat16(absmax);
    std::memcpy(scales + g * sizeof(scale), &scale, sizeof(scale));
    const float inverse = scale == 0 ? 0.0f : 127.0f / Float16ToFloat(scale);
    for (size_t i = begin; i < end; ++i) {
      const Nqkv4Place place = PlaceOf(i, layout.row_elements);
      codes[place.byte] |= static_cast<std::byte>(Nqkv4CodeOf(source[i] * inverse) << place.shift);
    }
  }
  return true;
}

// The exact product of level and scale: both have 11 significant bits. `read_scale` turns a scale's bits into fp32.
inline float Nqkv4DecodeElement(size_t i, const Nqkv4Layout& layout, const std::byte* codes, const std::byte* scales,
                                float (*read_scale)(uint16_t) = &Float16ToFloat) {
  const Nqkv4Place place = PlaceOf(i, layout.row_elements);
  uint16_t scale;
  std::memcpy(&scale, scales + i / layout.group * sizeof(scale), sizeof(scale));
  const auto code = static_cast<unsigned>(codes[place.byte] >> place.shift) & 15u;
  return Float16ToFloat(kNqkv4Levels[code]) * read_scale(scale);
}

}  // namespace nqkv
