#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/fidelity.h"
#include "kernels/nqkv4_row.h"
#include "kernels/nqkv4h_codec.h"
#include "kernels/q8_codec.h"
#include "kernels/raw_codec.h"

namespace nqkv {

Rotation::Rotation(size_t channels) {
  const int stages = std::min(std::countr_zero(channels), 7);
  block = size_t{1} << stages;
  forward = std::ldexp(1.0f, -(stages / 2));
  backward = std::ldexp(1.0f, stages / 2 - stages);
  energy = stages % 2 == 0 ? 1.0f : 0.5f;
}

void PickStrongChannels(std::span<const float> energies, std::span<uint16_t> strong) {
  size_t count = 0;  // Picked so far, strongest first.
  for (size_t c = 0; c < energies.size(); ++c) {
    size_t place = count;
    while (place > 0 && energies[c] > energies[strong[place - 1]]) --place;
    if (place == strong.size()) continue;
    count = std::min(count + 1, strong.size());
    for (size_t i = count - 1; i > place; --i) strong[i] = strong[i - 1];
    strong[place] = static_cast<uint16_t>(c);
  }
  std::sort(strong.begin(), strong.end());
}

StrongChannelList ReadStrongChannels(const Nqkv4hLayout& layout, const std::byte* head) {
  StrongChannelList list;
  std::memcpy(list.channels.data(), head + layout.strong_offset(), layout.strong * sizeof(uint16_t));
  for (; list.count < layout.strong; ++list.count) {
    const uint16_t channel = list.channels[list.count];
    if (channel >= layout.rotated.row_elements) break;
    if (list.count > 0 && channel <= list.channels[list.count - 1]) break;
  }
  return list;
}

absl::Status CheckStrongChannels(const PlaneCodec& codec, const PlaneShape& shape, std::span<const std::byte> encoded) {
  const Nqkv4hLayout layout(codec, shape);
  for (size_t h = 0; h < shape.heads; ++h) {
    const size_t count = ReadStrongChannels(layout, encoded.data() + h * layout.head_bytes()).count;
    if (count == layout.strong) continue;
    return absl::DataLossError(absl::StrCat("strong channel ", count, " of head ", h,
                                            " is out of order or not one of the plane's ", shape.channels));
  }
  return absl::OkStatus();
}

namespace {

void Transform(const Rotation& rotation, std::span<float> row) {
  for (size_t distance = 1; distance < rotation.block; distance *= 2) {
    for (size_t pair = 0; pair < row.size(); pair += 2 * distance) {
      for (size_t i = pair; i < pair + distance; ++i) {
        const float a = row[i], b = row[i + distance];
        row[i] = a + b;
        row[i + distance] = a - b;
      }
    }
  }
}

// The strong channels of one head: their numbers, steps and places.
class Sidecar {
 public:
  // `data` is the head's encoded bytes.
  Sidecar(const Nqkv4hLayout& layout, const std::byte* data)
      : layout_(layout), data_(data), strong_(ReadStrongChannels(layout, data)) {}

  size_t count() const { return strong_.count; }
  size_t channel(size_t i) const { return strong_.channels[i]; }
  float Decoded(size_t t, size_t i) const {
    uint16_t scale;
    std::memcpy(&scale, data_ + layout_.strong_scales_offset() + i * sizeof(scale), sizeof(scale));
    return static_cast<float>(static_cast<int8_t>(data_[layout_.places_offset(t) + i])) * Q8Step(scale);
  }

 private:
  const Nqkv4hLayout& layout_;
  const std::byte* data_;
  StrongChannelList strong_;
};

class HeadEncoder {
 public:
  HeadEncoder(const EncodeArgs& args, const Nqkv4hLayout& layout, size_t head)
      : args_(args),
        layout_(layout),
        rotation_(args.shape.channels),
        head_(head),
        data_(args.encoded.data() + head * layout.head_bytes()) {}

  // False when something has no fp16 scale.
  bool Encode(PlaneFidelity* fidelity) {
    HeadMeter meter(channels());
    for (size_t t = 0; t < args_.shape.tokens; ++t) {
      if (!LoadRow(t)) return false;
      meter.AddEnergies({source_, channels()});
    }
    EncodeStrong(meter.channel_energies());
    const Sidecar sidecar(layout_, data_);
    HeadMeter measured(channels());
    for (size_t t = 0; t < args_.shape.tokens; ++t) {
      LoadRow(t);
      Rotate(sidecar);
      if (!Nqkv4EncodeRow(rotated_, layout_.rotated, data_ + layout_.codes_offset(t), data_ + layout_.scales_offset(t)))
        return false;
      if (fidelity != nullptr) MeasureRow(t, sidecar, measured);
    }
    if (fidelity != nullptr) measured.AddTo(*fidelity);
    return true;
  }

 private:
  size_t channels() const { return args_.shape.channels; }

  bool LoadRow(size_t t) {
    const std::byte* row = SourceRow(args_, t, head_);
    for (size_t c = 0; c < channels(); ++c) {
      source_[c] = LoadElement(row, c, args_.shape.dtype);
      if (!(std::fabs(source_[c]) < kScaleRangeEnd)) return false;
    }
    return true;
  }

  void EncodeStrong(std::span<const float> energies) {
    std::array<uint16_t, kStrongChannelsMax> strong = {};
    PickStrongChannels(energies, std::span(strong).first(layout_.strong));
    std::memcpy(data_ + layout_.strong_offset(), strong.data(), layout_.strong * sizeof(uint16_t));
    for (size_t i = 0; i < layout_.strong; ++i) {
      float absmax = 0;
      for (size_t t = 0; t < args_.shape.tokens; ++t) {
        absmax = std::max(absmax, std::fabs(LoadElement(SourceRow(args_, t, head_), strong[i], args_.shape.dtype)));
      }
      const uint16_t scale = FloatToFloat16(absmax);
      std::memcpy(data_ + layout_.strong_scales_offset() + i * sizeof(scale), &scale, sizeof(scale));
      for (size_t t = 0; t < args_.shape.tokens; ++t) {
        const float x = LoadElement(SourceRow(args_, t, head_), strong[i], args_.shape.dtype);
        data_[layout_.places_offset(t) + i] = static_cast<std::byte>(Q8Place(x, Q8Inverse(scale)));
      }
    }
  }

  void Rotate(const Sidecar& sidecar) {
    for (size_t c = 0; c < channels(); ++c) rotated_[c] = IsNegated(c) ? -source_[c] : source_[c];
    for (size_t i = 0; i < sidecar.count(); ++i) rotated_[sidecar.channel(i)] = 0;
    Transform(rotation_, {rotated_, channels()});
    for (size_t c = 0; c < channels(); ++c) rotated_[c] *= rotation_.forward;
  }

  void MeasureRow(size_t t, const Sidecar& sidecar, HeadMeter& meter) {
    float difference[kChannelsMax], decoded[kChannelsMax];
    for (size_t c = 0; c < channels(); ++c) {
      decoded[c] =
          Nqkv4DecodeElement(c, layout_.rotated, data_ + layout_.codes_offset(t), data_ + layout_.scales_offset(t));
      difference[c] = rotated_[c] - decoded[c];
    }
    float strong_errors[kLanes] = {}, strong_norms[kLanes] = {};
    for (size_t i = 0; i < sidecar.count(); ++i) {
      const float y = sidecar.Decoded(t, i), error = source_[sidecar.channel(i)] - y;
      strong_errors[i] = error * error;
      strong_norms[i] = y * y;
    }
    meter.Add(t, {source_, channels()},
              rotation_.energy * RowEnergy({difference, channels()}) + SumLanes(strong_errors),
              rotation_.energy * RowEnergy({decoded, channels()}) + SumLanes(strong_norms));
  }

  const EncodeArgs& args_;
  const Nqkv4hLayout& layout_;
  const Rotation rotation_;
  const size_t head_;
  std::byte* data_;
  float source_[kChannelsMax];
  float rotated_[kChannelsMax];
};

}  // namespace

EncodeResult Nqkv4hEncodeReference(const EncodeArgs& args) {
  const Nqkv4hLayout layout(args.codec, args.shape);
  PlaneFidelity fidelity;
  for (size_t h = 0; h < args.shape.heads; ++h) {
    if (HeadEncoder(args, layout, h).Encode(args.measure ? &fidelity : nullptr)) continue;
    EncodeResult result = Unrepresentable(args);
    result.in_scale_range &= !result.finite;  // A rotated row can be too large where no element is.
    return result;
  }
  if (!args.measure) return {};
  return {.errors = fidelity.errors(), .crc32c = Crc32c(args.encoded)};
}

void Nqkv4hDecodeReference(const DecodeArgs& args) {
  const Nqkv4hLayout layout(args.codec, args.shape);
  const Rotation rotation(args.shape.channels);
  const size_t channels = args.shape.channels;
  float row[kChannelsMax];
  for (size_t h = args.head_begin; h < args.head_end; ++h) {
    const std::byte* head = args.encoded.data() + h * layout.head_bytes();
    const Sidecar sidecar(layout, head);
    for (size_t t = 0; t < args.shape.tokens; ++t) {
      for (size_t c = 0; c < channels; ++c) {
        row[c] = Nqkv4DecodeElement(c, layout.rotated, head + layout.codes_offset(t), head + layout.scales_offset(t),
                                    &ReadScale);
      }
      Transform(rotation, {row, channels});
      for (size_t c = 0; c < channels; ++c) row[c] *= IsNegated(c) ? -rotation.backward : rotation.backward;
      for (size_t i = 0; i < sidecar.count(); ++i) row[sidecar.channel(i)] = sidecar.Decoded(t, i);
      std::byte* target = TargetRow(args, t, h);
      for (size_t c = 0; c < channels; ++c) StoreElement(target, c, args.dtype, row[c]);
    }
  }
}

}  // namespace nqkv
