#include "kernels/nqkv4_codec.h"

#include <cmath>
#include <cstring>

#include "kernels/fidelity.h"
#include "kernels/float_format.h"
#include "kernels/raw_codec.h"

namespace nqkv {

Nqkv4Layout::Nqkv4Layout(const PlaneCodec& codec, const PlaneShape& shape) : group(codec.scale_group) {
  const bool row_layout = codec.layout == PlaneLayout::kRow;
  strips = row_layout ? 1 : shape.heads;
  rows = shape.tokens;
  row_elements = row_layout ? size_t{shape.heads} * shape.channels : shape.channels;
  groups = (row_elements + group - 1) / group;
}

namespace {

constexpr size_t kChannelsMax = 8192;
constexpr float kScaleRangeEnd = 65520.0f;  // What rounds to infinity in fp16.

// Elements of a strip's row lie in heads of `channels`; in HEAD layout there is one head, the strip.
struct SourceRow {
  const std::byte* data;
  const EncodeArgs& args;

  float operator[](size_t i) const {
    const size_t head = i / args.shape.channels, channel = i % args.shape.channels;
    return LoadElement(data + static_cast<ptrdiff_t>(head) * args.head_stride, channel, args.shape.dtype);
  }
};

SourceRow RowOf(const EncodeArgs& args, size_t strip, size_t row) {
  const std::byte* data = args.source + static_cast<ptrdiff_t>(row) * args.token_stride;
  if (args.codec.layout == PlaneLayout::kHead) data += static_cast<ptrdiff_t>(strip) * args.head_stride;
  return {data, args};
}

uint8_t CodeOf(float scaled) {
  const float q = std::nearbyint(scaled);
  uint8_t code = 0;
  for (int8_t threshold : kNqkv4Thresholds) code += q > threshold;
  return code;
}

// False when the row holds what has no fp16 scale.
bool EncodeRow(const SourceRow& source, const Nqkv4Layout& layout, std::byte* codes, std::byte* scales) {
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
      codes[place.byte] |= static_cast<std::byte>(CodeOf(source[i] * inverse) << place.shift);
    }
  }
  return true;
}

// The exact product of level and scale: both have 11 significant bits.
float DecodeElement(size_t i, const Nqkv4Layout& layout, const std::byte* codes, const std::byte* scales) {
  const Nqkv4Place place = PlaceOf(i, layout.row_elements);
  uint16_t scale;
  std::memcpy(&scale, scales + i / layout.group * sizeof(scale), sizeof(scale));
  const auto code = static_cast<unsigned>(codes[place.byte] >> place.shift) & 15u;
  return Float16ToFloat(kNqkv4Levels[code]) * Float16ToFloat(scale);
}

// Measures one head against what is encoded by now.
void MeasureHead(const EncodeArgs& args, const Nqkv4Layout& layout, size_t head, PlaneFidelity& plane) {
  const size_t channels = args.shape.channels;
  const bool row_layout = args.codec.layout == PlaneLayout::kRow;
  const size_t strip = row_layout ? 0 : head, first = row_layout ? head * channels : 0;
  HeadFidelity fidelity;
  float channel_energies[kChannelsMax] = {};
  for (size_t t = 0; t < args.shape.tokens; ++t) {
    const SourceRow source = RowOf(args, strip, t);
    const std::byte* codes = args.encoded.data() + layout.codes_offset(strip, t);
    const std::byte* scales = args.encoded.data() + layout.scales_offset(strip, t);
    float signal[kRowLanes] = {}, error[kRowLanes] = {}, decoded[kRowLanes] = {};
    for (size_t c = 0; c < channels; ++c) {
      const size_t lane = c % kRowLanes;
      const float x = source[first + c];
      const float y = DecodeElement(first + c, layout, codes, scales);
      const float difference = x - y;
      signal[lane] = std::fma(x, x, signal[lane]);
      error[lane] = std::fma(difference, difference, error[lane]);
      decoded[lane] = std::fma(y, y, decoded[lane]);
    }
    const RowEnergies row{SumRow(signal), SumRow(error), SumRow(decoded)};
    const float weight = RowWeight(row.signal);
    fidelity.Add(t, row, weight);
    for (size_t c = 0; c < channels; ++c) {
      const float x = source[first + c];
      channel_energies[c] = std::fma(x * weight, x, channel_energies[c]);
    }
  }
  plane.Add(fidelity, FloorEnergy({channel_energies, channels}));
}

}  // namespace

EncodeResult Nqkv4EncodeReference(const EncodeArgs& args) {
  const Nqkv4Layout layout(args.codec, args.shape);
  for (size_t strip = 0; strip < layout.strips; ++strip) {
    for (size_t row = 0; row < layout.rows; ++row) {
      std::byte* codes = args.encoded.data() + layout.codes_offset(strip, row);
      std::byte* scales = args.encoded.data() + layout.scales_offset(strip, row);
      if (!EncodeRow(RowOf(args, strip, row), layout, codes, scales)) return Nqkv4Unrepresentable(args);
    }
  }
  if (!args.measure) return {};
  PlaneFidelity fidelity;
  for (size_t head = 0; head < args.shape.heads; ++head) MeasureHead(args, layout, head, fidelity);
  return {.errors = fidelity.errors(), .crc32c = Crc32c(args.encoded)};
}

EncodeResult Nqkv4Unrepresentable(const EncodeArgs& args) {
  EncodeResult result;
  for (size_t t = 0; t < args.shape.tokens; ++t) {
    for (size_t h = 0; h < args.shape.heads; ++h) {
      const std::byte* row =
          args.source + static_cast<ptrdiff_t>(t) * args.token_stride + static_cast<ptrdiff_t>(h) * args.head_stride;
      for (size_t c = 0; c < args.shape.channels; ++c) {
        const float magnitude = std::fabs(LoadElement(row, c, args.shape.dtype));
        if (!std::isfinite(magnitude)) {
          result.finite = false;
        } else if (magnitude >= kScaleRangeEnd) {
          result.in_scale_range = false;
        }
      }
    }
  }
  return result;
}

void Nqkv4DecodeReference(const DecodeArgs& args) {
  const Nqkv4Layout layout(args.codec, args.shape);
  const bool row_layout = args.codec.layout == PlaneLayout::kRow;
  const size_t channels = args.shape.channels;
  for (size_t t = 0; t < args.shape.tokens; ++t) {
    for (size_t h = args.head_begin; h < args.head_end; ++h) {
      const size_t strip = row_layout ? 0 : h, first = row_layout ? h * channels : 0;
      const std::byte* codes = args.encoded.data() + layout.codes_offset(strip, t);
      const std::byte* scales = args.encoded.data() + layout.scales_offset(strip, t);
      std::byte* row = args.target + static_cast<ptrdiff_t>(t) * args.token_stride +
                       static_cast<ptrdiff_t>(h - args.head_begin) * args.head_stride;
      for (size_t c = 0; c < channels; ++c) {
        StoreElement(row, c, args.dtype, DecodeElement(first + c, layout, codes, scales));
      }
    }
  }
}

}  // namespace nqkv
