// The codec nqkv4: NormalFloat quantization in groups that share an fp16 scale. FORMAT.md gives every byte.
//
// Called by codec.cc; users call EncodePlane and DecodePlane. The Reference functions define the result. All functions
// are thread-safe and allocate nothing.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "kernels/codec.h"

namespace nqkv {

// The sixteen NF4 levels, as fp16 bits. Code 7 is zero.
inline constexpr std::array<uint16_t, 16> kNqkv4Levels = {0xbc00, 0xb992, 0xb833, 0xb652, 0xb48d, 0xb1ea,
                                                          0xadd4, 0x0000, 0x2d18, 0x3126, 0x33e0, 0x3568,
                                                          0x370d, 0x3880, 0x39c9, 0x3c00};
inline constexpr uint8_t kNqkv4ZeroCode = 7;

// An element's code is the number of these that its place q = x * 127 / scale, rounded, is above: the midpoints between
// levels, on a grid of 1/127. No 16 neighbouring places hold more than two, which is what the vector path lives by.
inline constexpr std::array<int8_t, 15> kNqkv4Thresholds = {-108, -78, -59, -44, -30, -18, -6, 5,
                                                            15,   25,  37,  49,  63,  81,  109};

inline constexpr float kScaleRangeEnd = 65520.0f;  // What rounds to infinity in fp16 has no scale.

// Codes of a run of up to this many elements are interleaved: byte j holds elements j and j + n/2.
inline constexpr size_t kNqkv4Run = 64;

// Where the codes and scales of a plane are. In HEAD layout a "strip" is one head, whose rows are its tokens' channels;
// in ROW layout the plane is one strip, whose rows are the tokens' whole rows of heads * channels.
struct Nqkv4Layout {
  size_t strips = 0;
  size_t rows = 0;  // A strip.
  size_t row_elements = 0;
  size_t group = 0;   // Elements that share a scale; the row's last group may be shorter.
  size_t groups = 0;  // A row.

  Nqkv4Layout(const PlaneCodec& codec, const PlaneShape& shape);

  size_t row_code_bytes() const { return row_elements / 2; }
  size_t scales_offset() const { return rows * row_code_bytes(); }  // From the start of the strip.
  size_t strip_bytes() const { return rows * (row_code_bytes() + groups * sizeof(uint16_t)); }
  size_t codes_offset(size_t strip, size_t row) const { return strip * strip_bytes() + row * row_code_bytes(); }
  size_t scales_offset(size_t strip, size_t row) const {
    return strip * strip_bytes() + scales_offset() + row * groups * sizeof(uint16_t);
  }
};

// Where element `i` of a row is among the row's codes.
struct Nqkv4Place {
  size_t byte = 0;
  unsigned shift = 0;
};
inline Nqkv4Place PlaceOf(size_t i, size_t row_elements) {
  const size_t run_begin = i / kNqkv4Run * kNqkv4Run;
  const size_t half = std::min(kNqkv4Run, row_elements - run_begin) / 2;
  const size_t j = i - run_begin;
  return {.byte = run_begin / 2 + j % half, .shift = j < half ? 0u : 4u};
}

// Precondition of all: args.codec.id is kNqkv4, and the arguments are as codec.h says.
EncodeResult Nqkv4EncodeReference(const EncodeArgs& args);
void Nqkv4DecodeReference(const DecodeArgs& args);

// Need AVX2, FMA and F16C. HEAD layout only.
EncodeResult Nqkv4EncodeAvx2(const EncodeArgs& args);
void Nqkv4DecodeAvx2(const DecodeArgs& args);

// Need AVX-512 with F, BW, DQ, VL and VBMI. HEAD layout only.
EncodeResult Nqkv4EncodeAvx512(const EncodeArgs& args);
void Nqkv4DecodeAvx512(const DecodeArgs& args);

// What EncodeResult says of a plane that cannot be encoded: one more pass, which tells NaN from too large.
EncodeResult Unrepresentable(const EncodeArgs& args);

}  // namespace nqkv
