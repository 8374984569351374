#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/fidelity.h"
#include "kernels/nqkv4_codec.h"
#include "kernels/q8_codec.h"
#include "kernels/raw_codec.h"

namespace nqkv {

Q8Layout::Q8Layout(const PlaneCodec& codec, const PlaneShape& shape)
    : tokens(shape.tokens),
      channels(shape.channels),
      by_channel(codec.scale_group == kQ8ChannelGroup),
      groups((shape.channels + kQ8TokenGroup - 1) / kQ8TokenGroup) {}

int8_t Q8Place(float x, float inverse) {
  return static_cast<int8_t>(std::clamp(std::nearbyint(x * inverse), -127.0f, 127.0f));
}

namespace {

// One head's encoded bytes.
struct Head {
  const Q8Layout& layout;
  std::byte* data;

  size_t ScaleIndex(size_t t, size_t c) const { return layout.by_channel ? c : t * layout.groups + c / kQ8TokenGroup; }
  uint16_t scale(size_t index) const {
    uint16_t bits;
    std::memcpy(&bits, data + layout.scales_offset() + index * sizeof(bits), sizeof(bits));
    return bits;
  }
  void set_scale(size_t index, uint16_t bits) {
    std::memcpy(data + layout.scales_offset() + index * sizeof(bits), &bits, sizeof(bits));
  }
  std::byte& place(size_t t, size_t c) const { return data[t * layout.channels + c]; }
  float Decoded(size_t t, size_t c) const {
    return static_cast<float>(static_cast<int8_t>(place(t, c))) * Q8Step(scale(ScaleIndex(t, c)));
  }
};

// False when a group has no fp16 scale.
bool EncodeHead(const EncodeArgs& args, size_t h, Head head) {
  const Q8Layout& layout = head.layout;
  for (size_t i = 0; i < layout.scale_count(); ++i) head.set_scale(i, 0);
  for (size_t t = 0; t < layout.tokens; ++t) {
    const std::byte* row = SourceRow(args, t, h);
    for (size_t c = 0; c < layout.channels; ++c) {
      const float magnitude = std::fabs(LoadElement(row, c, args.shape.dtype));
      if (!(magnitude < kScaleRangeEnd)) return false;
      // Rounding keeps order, so that the largest rounded number is the largest number rounded.
      const size_t index = head.ScaleIndex(t, c);
      head.set_scale(index, std::max(head.scale(index), FloatToFloat16(magnitude)));
    }
  }
  for (size_t t = 0; t < layout.tokens; ++t) {
    const std::byte* row = SourceRow(args, t, h);
    for (size_t c = 0; c < layout.channels; ++c) {
      const float inverse = Q8Inverse(head.scale(head.ScaleIndex(t, c)));
      head.place(t, c) = static_cast<std::byte>(Q8Place(LoadElement(row, c, args.shape.dtype), inverse));
    }
  }
  return true;
}

void MeasureHead(const EncodeArgs& args, size_t h, const Head& head, PlaneFidelity& plane) {
  const size_t channels = head.layout.channels;
  float source[kChannelsMax], difference[kChannelsMax], decoded[kChannelsMax];
  HeadMeter meter(channels);
  for (size_t t = 0; t < head.layout.tokens; ++t) {
    const std::byte* row = SourceRow(args, t, h);
    for (size_t c = 0; c < channels; ++c) {
      source[c] = LoadElement(row, c, args.shape.dtype);
      decoded[c] = head.Decoded(t, c);
      difference[c] = source[c] - decoded[c];
    }
    meter.Add(t, {source, channels}, RowEnergy({difference, channels}), RowEnergy({decoded, channels}));
  }
  meter.AddTo(plane);
}

}  // namespace

EncodeResult Q8EncodeReference(const EncodeArgs& args) {
  const Q8Layout layout(args.codec, args.shape);
  PlaneFidelity fidelity;
  for (size_t h = 0; h < args.shape.heads; ++h) {
    const Head head{layout, args.encoded.data() + h * layout.head_bytes()};
    if (!EncodeHead(args, h, head)) return Unrepresentable(args);
    if (args.measure) MeasureHead(args, h, head, fidelity);
  }
  if (!args.measure) return {};
  return {.errors = fidelity.errors(), .crc32c = Crc32c(args.encoded)};
}

void Q8DecodeReference(const DecodeArgs& args) {
  const Q8Layout layout(args.codec, args.shape);
  for (size_t h = args.head_begin; h < args.head_end; ++h) {
    const Head head{layout, const_cast<std::byte*>(args.encoded.data()) + h * layout.head_bytes()};
    for (size_t t = 0; t < layout.tokens; ++t) {
      std::byte* row = TargetRow(args, t, h);
      for (size_t c = 0; c < layout.channels; ++c) StoreElement(row, c, args.dtype, head.Decoded(t, c));
    }
  }
}

}  // namespace nqkv
