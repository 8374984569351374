#include "kernels/nqkv4_codec.h"

#include <cmath>
#include <cstring>

#include "kernels/fidelity.h"
#include "kernels/nqkv4_row.h"
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

// Elements of a strip's row lie in heads of `channels`; in HEAD layout there is one head, the strip.
struct StripRow {
  const std::byte* data;
  const EncodeArgs& args;

  float operator[](size_t i) const {
    const size_t head = i / args.shape.channels, channel = i % args.shape.channels;
    return LoadElement(data + static_cast<ptrdiff_t>(head) * args.head_stride, channel, args.shape.dtype);
  }
};

StripRow RowOf(const EncodeArgs& args, size_t strip, size_t row) {
  const std::byte* data = args.source + static_cast<ptrdiff_t>(row) * args.token_stride;
  if (args.codec.layout == PlaneLayout::kHead) data += static_cast<ptrdiff_t>(strip) * args.head_stride;
  return {data, args};
}

// Measures one head against what is encoded by now.
void MeasureHead(const EncodeArgs& args, const Nqkv4Layout& layout, size_t head, PlaneFidelity& plane) {
  const size_t channels = args.shape.channels;
  const bool row_layout = args.codec.layout == PlaneLayout::kRow;
  const size_t strip = row_layout ? 0 : head, first = row_layout ? head * channels : 0;
  float source[kChannelsMax], difference[kChannelsMax], decoded[kChannelsMax];
  HeadMeter meter(channels);
  for (size_t t = 0; t < args.shape.tokens; ++t) {
    const std::byte* row = SourceRow(args, t, head);
    const std::byte* codes = args.encoded.data() + layout.codes_offset(strip, t);
    const std::byte* scales = args.encoded.data() + layout.scales_offset(strip, t);
    for (size_t c = 0; c < channels; ++c) {
      source[c] = LoadElement(row, c, args.shape.dtype);
      decoded[c] = Nqkv4DecodeElement(first + c, layout, codes, scales);
      difference[c] = source[c] - decoded[c];
    }
    meter.Add(t, {source, channels}, RowEnergy({difference, channels}), RowEnergy({decoded, channels}));
  }
  meter.AddTo(plane);
}

}  // namespace

EncodeResult Nqkv4EncodeReference(const EncodeArgs& args) {
  const Nqkv4Layout layout(args.codec, args.shape);
  for (size_t strip = 0; strip < layout.strips; ++strip) {
    for (size_t row = 0; row < layout.rows; ++row) {
      std::byte* codes = args.encoded.data() + layout.codes_offset(strip, row);
      std::byte* scales = args.encoded.data() + layout.scales_offset(strip, row);
      if (!Nqkv4EncodeRow(RowOf(args, strip, row), layout, codes, scales)) return Unrepresentable(args);
    }
  }
  if (!args.measure) return {};
  PlaneFidelity fidelity;
  for (size_t head = 0; head < args.shape.heads; ++head) MeasureHead(args, layout, head, fidelity);
  return {.errors = fidelity.errors(), .crc32c = Crc32c(args.encoded)};
}

EncodeResult Unrepresentable(const EncodeArgs& args) {
  EncodeResult result;
  for (size_t t = 0; t < args.shape.tokens; ++t) {
    for (size_t h = 0; h < args.shape.heads; ++h) {
      const std::byte* row = SourceRow(args, t, h);
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
      std::byte* row = TargetRow(args, t, h);
      for (size_t c = 0; c < channels; ++c) {
        StoreElement(row, c, args.dtype, Nqkv4DecodeElement(first + c, layout, codes, scales));
      }
    }
  }
}

}  // namespace nqkv
