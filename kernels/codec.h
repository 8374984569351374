// Raw plane <-> encoded plane, on the CPU. FORMAT.md gives every byte.
//
// EncodePlane and DecodePlane run the fastest path that the processor has; the Reference functions define the result,
// and every path must equal them bit for bit, errors and checksums included. All functions are thread-safe (they keep
// no state), allocate nothing that grows with the plane except where said, and never read or write outside their
// arguments.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "kernels/block_layout.h"
#include "kernels/crc32c.h"

namespace nqkv {

// Numbers are part of the block format and equal those of the wire contract.
enum class CodecId : uint8_t { kRaw = 2, kNqkv4 = 3, kNqkv4h = 4, kQ8 = 5 };
enum class PlaneLayout : uint8_t { kHead = 1, kRow = 2 };

// How one plane is encoded.
struct PlaneCodec {
  CodecId id = CodecId::kRaw;
  // kNqkv4, kNqkv4h: 64, 128 or 256; kRow has 256 only. kQ8: 0 for a scale a channel, 128 for groups in a token. kRaw:
  // 0.
  uint16_t scale_group = 0;
  PlaneLayout layout = PlaneLayout::kHead;  // kRow: groups run along a token's row of all heads. kNqkv4 only.
  uint8_t strong_channels = 0;              // kNqkv4h: 0, 4 or 8 of a head, at most a sixteenth of its channels.

  bool operator==(const PlaneCodec&) const = default;
};

// All that FORMAT.md knows.
inline constexpr std::array kPlaneCodecs = std::to_array<PlaneCodec>({
    {CodecId::kRaw},
    {CodecId::kNqkv4, 64},
    {CodecId::kNqkv4, 128},
    {CodecId::kNqkv4, 256},
    {CodecId::kNqkv4, 256, PlaneLayout::kRow},
    {CodecId::kNqkv4h, 64},
    {CodecId::kNqkv4h, 64, PlaneLayout::kHead, 4},
    {CodecId::kNqkv4h, 64, PlaneLayout::kHead, 8},
    {CodecId::kNqkv4h, 128},
    {CodecId::kNqkv4h, 128, PlaneLayout::kHead, 4},
    {CodecId::kNqkv4h, 128, PlaneLayout::kHead, 8},
    {CodecId::kNqkv4h, 256},
    {CodecId::kNqkv4h, 256, PlaneLayout::kHead, 4},
    {CodecId::kNqkv4h, 256, PlaneLayout::kHead, 8},
    {CodecId::kQ8, 0},
    {CodecId::kQ8, 128},
});

// "raw", "nqkv4-g64", "nqkv4-row-g256", "nqkv4h-g64-k4", "q8-channel", "q8-token"; "unknown" for none of kPlaneCodecs.
absl::string_view PlaneCodecName(const PlaneCodec& codec);

// INVALID_ARGUMENT when the codec's numbers are none that FORMAT.md knows.
absl::Status ValidatePlaneCodec(const PlaneCodec& codec);
// Also when the plane has too few channels for it.
absl::Status ValidatePlaneCodec(const PlaneCodec& codec, uint32_t channels);

// Exact size of the encoded plane.
uint64_t EncodedBytes(const PlaneCodec& codec, const PlaneShape& shape);

// What encoding did to a plane; FORMAT.md, "Errors", defines each to the order of its sums.
struct PlaneErrors {
  float floor_error = 0;  // Worst head: token-weighted error energy over the energy without the strongest channels.
  float token_norm_error = 0;  // Worst token and head: |norm(decoded) / norm(source) - 1|.
  float nmse = 0;              // Error energy over signal energy.
};

// Shapes are within the format's limits: 1 to 1024 tokens and heads, 8 to 8192 channels, a multiple of 8.
struct EncodeArgs {
  const std::byte* source = nullptr;  // Element (t, h, d) at t * token_stride + h * head_stride + d * DtypeBytes.
  ptrdiff_t token_stride = 0;         // Bytes.
  ptrdiff_t head_stride = 0;          // Bytes.
  PlaneShape shape;
  PlaneCodec codec;
  std::span<std::byte> encoded;  // Exactly EncodedBytes(codec, shape) bytes.
  // False: errors and crc32c stay 0. For measuring what they cost; what is stored always has them.
  bool measure = true;
};

struct EncodeResult {
  PlaneErrors errors;
  uint32_t crc32c = 0;  // Of `encoded`.
  bool finite = true;  // False: the source holds NaN or Inf. kRaw has stored it; the others left `encoded` unspecified.
  bool in_scale_range = true;  // False: an absmax is beyond fp16; `encoded` is unspecified.
};

EncodeResult EncodePlane(const EncodeArgs& args);
EncodeResult EncodePlaneReference(const EncodeArgs& args);

struct DecodeArgs {
  std::span<const std::byte> encoded;  // Exactly EncodedBytes(codec, shape) bytes.
  PlaneShape shape;                    // Of the whole encoded plane.
  PlaneCodec codec;
  uint32_t head_begin = 0;  // Heads of the plane to decode: [head_begin, head_end).
  uint32_t head_end = 0;
  Dtype dtype = Dtype::kFloat16;  // Of the destination.
  std::byte* target = nullptr;    // Element (t, h, d) at t * token_stride + (h - head_begin) * head_stride + ...
  ptrdiff_t token_stride = 0;     // Bytes.
  ptrdiff_t head_stride = 0;      // Bytes.
  // The target belongs to an output so large that it will not be in the cache when it is read: write around the cache.
  bool streaming = false;
};

// DATA_LOSS when the bytes of a plane contradict themselves, though their checksum holds. Every encoder's output
// passes.
absl::Status CheckEncodedPlane(const PlaneCodec& codec, const PlaneShape& shape, std::span<const std::byte> encoded);

// Any bytes decode to something: callers check the CRC first. Preconditions: sizes as said, codec valid.
void DecodePlane(const DecodeArgs& args);
void DecodePlaneReference(const DecodeArgs& args);

// "avx512", "avx2" or "scalar": the path that EncodePlane and DecodePlane run here.
absl::string_view CodecPathName();

}  // namespace nqkv
