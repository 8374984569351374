// The codec nqkv4h: a head's strongest channels as q8, the rest rotated by a Hadamard transform and stored as nqkv4.
// FORMAT.md gives every byte.
//
// Called by codec.cc; users call EncodePlane and DecodePlane. The Reference functions define the result. All functions
// are thread-safe and allocate nothing.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "kernels/codec.h"
#include "kernels/nqkv4_codec.h"

namespace nqkv {

inline constexpr size_t kStrongChannelsMax = 8;

// The transform of a row, block by block. Each direction scales by a power of two, so that no rounding is added.
struct Rotation {
  size_t block = 0;  // Channels: the largest power of two that divides them all, at most 128.
  float forward = 0;
  float backward = 0;
  float energy = 0;  // Of the row over that of the rotated row.

  explicit Rotation(size_t channels);
};

// Which channels change their sign before the transform.
inline constexpr std::array<uint32_t, 4> kRotationSigns = {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344};
constexpr bool IsNegated(size_t channel) { return (kRotationSigns[channel / 32 % 4] >> (channel % 32) & 1u) != 0; }

// Where the parts of a head are; heads lie one behind the other.
struct Nqkv4hLayout {
  Nqkv4Layout rotated;
  size_t strong = 0;

  Nqkv4hLayout(const PlaneCodec& codec, const PlaneShape& shape)
      : rotated({.id = CodecId::kNqkv4, .scale_group = codec.scale_group}, shape), strong(codec.strong_channels) {}

  // From the start of the head.
  size_t codes_offset(size_t token) const { return rotated.codes_offset(0, token); }
  size_t scales_offset(size_t token) const { return rotated.scales_offset(0, token); }
  size_t strong_offset() const { return rotated.strip_bytes(); }
  size_t strong_scales_offset() const { return strong_offset() + strong * sizeof(uint16_t); }
  size_t places_offset(size_t token) const { return strong_offset() + strong * (2 * sizeof(uint16_t) + token); }
  size_t head_bytes() const { return places_offset(rotated.rows); }
};

// The `strong.size()` channels with the largest energies, ascending; of equals, the lower number is taken first.
// Energies are not NaN; there are at least as many as `strong` asks for.
void PickStrongChannels(std::span<const float> energies, std::span<uint16_t> strong);

// The strong channels as stored in a head, and how many of them a decoder may believe: those in front of the first that
// is not in order or not a channel.
struct StrongChannelList {
  std::array<uint16_t, kStrongChannelsMax> channels = {};
  size_t count = 0;
};
StrongChannelList ReadStrongChannels(const Nqkv4hLayout& layout, const std::byte* head);

// DATA_LOSS when a head's strong channels are out of order or no channels.
absl::Status CheckStrongChannels(const PlaneCodec& codec, const PlaneShape& shape, std::span<const std::byte> encoded);

// Precondition of all: args.codec.id is kNqkv4h, and the arguments are as codec.h says.
EncodeResult Nqkv4hEncodeReference(const EncodeArgs& args);
void Nqkv4hDecodeReference(const DecodeArgs& args);

// Need AVX2, FMA and F16C.
EncodeResult Nqkv4hEncodeAvx2(const EncodeArgs& args);
void Nqkv4hDecodeAvx2(const DecodeArgs& args);

// Need AVX-512 with F, BW, DQ, VL and VBMI.
EncodeResult Nqkv4hEncodeAvx512(const EncodeArgs& args);
void Nqkv4hDecodeAvx512(const DecodeArgs& args);

}  // namespace nqkv
