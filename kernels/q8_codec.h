// The codec q8: eight bits an element and an fp16 scale, for each channel of a head over all tokens or for each group
// of 128 in a token. FORMAT.md gives every byte.
//
// Called by codec.cc; users call EncodePlane and DecodePlane. The Reference functions define the result. All functions
// are thread-safe and allocate nothing.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/codec.h"
#include "kernels/float_format.h"

namespace nqkv {

inline constexpr uint16_t kQ8ChannelGroup = 0;  // PlaneCodec::scale_group of the form with a scale a channel.
inline constexpr uint16_t kQ8TokenGroup = 128;

// Where the places and scales of a head are; heads lie one behind the other.
struct Q8Layout {
  size_t tokens = 0;
  size_t channels = 0;
  bool by_channel = false;
  size_t groups = 0;  // A token's, in the token form.

  Q8Layout(const PlaneCodec& codec, const PlaneShape& shape);

  size_t scale_count() const { return by_channel ? channels : tokens * groups; }
  size_t scales_offset() const { return tokens * channels; }  // From the start of the head.
  size_t head_bytes() const { return tokens * channels + scale_count() * sizeof(uint16_t); }
};

// No encoder writes infinity or NaN as a scale; a reader takes them for 0, so that no such number ever comes out.
constexpr float ReadScale(uint16_t bits) { return (bits & 0x7c00u) == 0x7c00u ? 0.0f : Float16ToFloat(bits); }

inline constexpr float kOneOver127 = 0x1.020408p-7f;  // The nearest fp32 number.
// What one place is worth.
constexpr float Q8Step(uint16_t scale_bits) { return ReadScale(scale_bits) * kOneOver127; }
constexpr float Q8Inverse(uint16_t scale_bits) { return scale_bits == 0 ? 0.0f : 127.0f / Float16ToFloat(scale_bits); }
int8_t Q8Place(float x, float inverse);

// Precondition of all: args.codec.id is kQ8, and the arguments are as codec.h says.
EncodeResult Q8EncodeReference(const EncodeArgs& args);
void Q8DecodeReference(const DecodeArgs& args);

// Need AVX2, FMA and F16C.
EncodeResult Q8EncodeAvx2(const EncodeArgs& args);
void Q8DecodeAvx2(const DecodeArgs& args);

// Need AVX-512 with F, BW, DQ, VL and VBMI.
EncodeResult Q8EncodeAvx512(const EncodeArgs& args);
void Q8DecodeAvx512(const DecodeArgs& args);

}  // namespace nqkv
