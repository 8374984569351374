// The codec q8 over vectors of sixteen numbers: `Floats` is Floats16 of floats16_avx2.h or floats16_avx512.h, whose
// sources alone may include this.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/crc32c.h"
#include "kernels/fidelity_avx2.h"
#include "kernels/q8_codec.h"

namespace nqkv {

inline constexpr size_t kFloats = 16;

[[gnu::always_inline]] inline size_t CountAt(size_t c, size_t channels) {
  return channels - c < kFloats ? channels - c : kFloats;
}

// Rows of one head, `stride` bytes from token to token.
struct SourceRows {
  const std::byte* data;
  ptrdiff_t stride;
  // From a row to what is asked for while it is encoded: the next head, or where the next plane most often is. The
  // processor does not guess rows that are so far apart.
  ptrdiff_t ahead;

  [[gnu::always_inline]] const std::byte* operator[](size_t t) const {
    return data + static_cast<ptrdiff_t>(t) * stride;
  }
  [[gnu::always_inline]] void PrefetchAhead(size_t t, size_t bytes) const {
    const uintptr_t address = reinterpret_cast<uintptr_t>((*this)[t]) + static_cast<uintptr_t>(ahead);
    for (size_t i = 0; i < bytes; i += 64) _mm_prefetch(reinterpret_cast<const char*>(address + i), _MM_HINT_T0);
  }
};

[[gnu::always_inline]] inline SourceRows RowsOf(const EncodeArgs& args, size_t h) {
  const auto head = static_cast<ptrdiff_t>(h);
  const ptrdiff_t behind = static_cast<ptrdiff_t>(args.shape.tokens) * args.token_stride - head * args.head_stride;
  return {.data = args.source + head * args.head_stride,
          .stride = args.token_stride,
          .ahead = h + 1 < args.shape.heads ? args.head_stride : behind};
}

// What rows [token, token + rows) add to their channels' weighted energies.
template <typename Floats, Dtype kDtype>
void AddWeightedEnergies(const SourceRows& source, size_t token, size_t rows, size_t channels, const float* weights,
                         float* energies) {
  for (size_t c = 0; c < channels; c += kFloats) {
    const size_t count = CountAt(c, channels), offset = c * DtypeBytes(kDtype);
    Floats energy = Floats::LoadAligned(energies + c);
    for (size_t r = 0; r < rows; ++r) {
      const Floats x = Floats::template Load<kDtype>(source[token + r] + offset, count);
      energy = (x * Floats::All(weights[r])).Fma(x, energy);
    }
    energy.StoreAligned(energies + c);
  }
}

template <typename Floats, Dtype kDtype>
class Q8HeadEncoder {
 public:
  Q8HeadEncoder(const Q8Layout& layout, const SourceRows& source, std::byte* encoded)
      : layout_(layout), source_(source), encoded_(encoded) {}

  // False when a group has no fp16 scale.
  bool Encode(PlaneFidelity* fidelity) {
    if (layout_.by_channel && !ChannelScales()) return false;
    if (fidelity != nullptr) std::memset(energies_, 0, Padded() * sizeof(float));
    for (size_t token = 0; token < layout_.tokens; token += kLanes) {
      const size_t left = layout_.tokens - token, rows = left < kLanes ? left : kLanes;
      if (!layout_.by_channel && !TokenScales(token, rows)) return false;
      if (rows < kLanes) ClearLanes(rows_);
      for (size_t r = 0; r < rows; ++r) {
        layout_.by_channel ? EncodeRow<true>(token, r) : EncodeRow<false>(token, r);
      }
      if (fidelity == nullptr) continue;
      MakeWeights(rows_);
      AddRows(rows_, head_);
      AddWeightedEnergies<Floats, kDtype>(source_, token, rows, layout_.channels, rows_.weights, energies_);
    }
    if (fidelity != nullptr) fidelity->Add(head_, Floats::FloorOf(energies_, layout_.channels));
    return true;
  }

 private:
  size_t Padded() const { return (layout_.channels + kFloats - 1) / kFloats * kFloats; }

  // Scales of absmaxes, sixteen at a time; what stands behind the last is zero.
  bool MakeScales(size_t scale_count, std::byte* target) {
    for (size_t i = 0; i < scale_count; i += kFloats) {
      const Floats absmax = Floats::LoadAligned(absmax_ + i);
      if (absmax.AnyBeyondScales()) return false;
      alignas(32) std::byte bits[kFloats * sizeof(uint16_t)];
      absmax.StoreScales(bits, kFloats);
      const Floats scale = Floats::LoadScales(bits, kFloats);
      Floats::InverseOf(scale).StoreAligned(inverses_ + i);
      (scale * Floats::All(kOneOver127)).StoreAligned(steps_ + i);
      const size_t count = scale_count - i < kFloats ? scale_count - i : kFloats;
      std::memcpy(target + i * sizeof(uint16_t), bits, count * sizeof(uint16_t));
    }
    return true;
  }

  bool ChannelScales() {
    constexpr size_t kAtOnce = 4;
    for (size_t first = 0; first < layout_.channels; first += kAtOnce * kFloats) {
      Floats absmax[kAtOnce];
      for (Floats& one : absmax) one = Floats::Zero();
      const size_t left = layout_.channels - first;
      for (size_t t = 0; t < layout_.tokens; ++t) {
        const std::byte* row = source_[t] + first * DtypeBytes(kDtype);
        for (size_t i = 0; i < kAtOnce && i * kFloats < left; ++i) {
          const std::byte* elements = row + i * kFloats * DtypeBytes(kDtype);
          absmax[i] = absmax[i].MaxMagnitude(Floats::template Load<kDtype>(elements, CountAt(i * kFloats, left)));
        }
      }
      for (size_t i = 0; i < kAtOnce; ++i) absmax[i].StoreAligned(absmax_ + first + i * kFloats);
    }
    return MakeScales(layout_.channels, encoded_ + layout_.scales_offset());
  }

  bool TokenScales(size_t token, size_t rows) {
    size_t next = 0;
    for (size_t r = 0; r < rows; ++r) {
      const std::byte* row = source_[token + r];
      for (size_t begin = 0; begin < layout_.channels; begin += kQ8TokenGroup) {
        const size_t end = begin + kQ8TokenGroup < layout_.channels ? begin + kQ8TokenGroup : layout_.channels;
        Floats absmax = Floats::Zero();
        for (size_t c = begin; c < end; c += kFloats) {
          absmax = absmax.MaxMagnitude(Floats::template Load<kDtype>(row + c * DtypeBytes(kDtype), CountAt(c, end)));
        }
        absmax_[next++] = absmax.Largest();
      }
    }
    for (size_t i = next; i % kFloats != 0; ++i) absmax_[i] = 0;
    return MakeScales(next, encoded_ + layout_.scales_offset() + token * layout_.groups * sizeof(uint16_t));
  }

  template <bool kByChannel>
  void EncodeRow(size_t token, size_t r) {
    const std::byte* row = source_[token + r];
    std::byte* places = encoded_ + (token + r) * layout_.channels;
    const float* inverses = kByChannel ? inverses_ : inverses_ + r * layout_.groups;
    const float* steps = kByChannel ? steps_ : steps_ + r * layout_.groups;
    Floats signal = Floats::Zero(), error = Floats::Zero(), decoded = Floats::Zero();
    for (size_t c = 0; c < layout_.channels; c += kFloats) {
      const size_t count = CountAt(c, layout_.channels), group = c / kQ8TokenGroup;
      const Floats inverse = kByChannel ? Floats::LoadAligned(inverses + c) : Floats::All(inverses[group]);
      const Floats step = kByChannel ? Floats::LoadAligned(steps + c) : Floats::All(steps[group]);
      const Floats x = Floats::template Load<kDtype>(row + c * DtypeBytes(kDtype), count);
      const Floats y = (x * inverse).StorePlaces(places + c, count) * step;
      const Floats difference = x - y;
      signal = x.Fma(x, signal);
      error = difference.Fma(difference, error);
      decoded = y.Fma(y, decoded);
    }
    source_.PrefetchAhead(token + r, layout_.channels * DtypeBytes(kDtype));
    const size_t lane = (token + r) % kLanes;
    signal.StoreFolded(rows_.signal_lanes[lane]);
    error.StoreFolded(rows_.error_lanes[lane]);
    decoded.StoreFolded(rows_.decoded_lanes[lane]);
  }

  const Q8Layout& layout_;
  const SourceRows source_;
  std::byte* const encoded_;
  HeadFidelity head_;
  RowBatch rows_;
  // Of the channels, or of the groups of eight rows, which are fewer.
  alignas(64) float absmax_[kChannelsMax + 4 * kFloats];
  alignas(64) float inverses_[kChannelsMax + kFloats];
  alignas(64) float steps_[kChannelsMax + kFloats];
  alignas(64) float energies_[kChannelsMax + kFloats];
};

template <typename Floats, Dtype kDtype>
EncodeResult Q8Encode(const EncodeArgs& args) {
  const Q8Layout layout(args.codec, args.shape);
  PlaneFidelity fidelity;
  EncodeResult result;
  for (size_t h = 0; h < args.shape.heads; ++h) {
    const std::span<std::byte> encoded = args.encoded.subspan(h * layout.head_bytes(), layout.head_bytes());
    Q8HeadEncoder<Floats, kDtype> head(layout, RowsOf(args, h), encoded.data());
    if (!head.Encode(args.measure ? &fidelity : nullptr)) return Unrepresentable(args);
    if (args.measure) result.crc32c = ExtendCrc32c(result.crc32c, encoded);
  }
  result.errors = fidelity.errors();
  return result;
}

// Whether a target's rows of whole vectors are where stores around the cache can go.
[[gnu::always_inline]] inline bool CanStreamRows(const DecodeArgs& args) {
  const auto bits = reinterpret_cast<uintptr_t>(args.target) | static_cast<uintptr_t>(args.token_stride) |
                    static_cast<uintptr_t>(args.head_stride) | (args.shape.channels * DtypeBytes(args.dtype));
  return args.streaming && bits % 64 == 0;
}

template <typename Floats, Dtype kDtype, bool kStreaming>
[[gnu::always_inline]] inline void StoreFloats(const Floats& values, std::byte* target, size_t count) {
  if constexpr (kStreaming) {
    values.template Stream<kDtype>(target);
  } else {
    values.template Store<kDtype>(target, count);
  }
}

// Heads [first, first + heads) of the plane, whose steps by channel are in `channel_steps` in the channel form.
template <typename Floats, Dtype kDtype, bool kByChannel, bool kStreaming>
void Q8DecodeHeads(const DecodeArgs& args, const Q8Layout& layout, size_t first, size_t heads,
                   const float* channel_steps, size_t padded) {
  for (size_t t = 0; t < layout.tokens; ++t) {
    for (size_t h = 0; h < heads; ++h) {
      const std::byte* encoded = args.encoded.data() + (first + h) * layout.head_bytes();
      const std::byte* places = encoded + t * layout.channels;
      const std::byte* scales = encoded + layout.scales_offset() + t * layout.groups * sizeof(uint16_t);
      std::byte* target = args.target + static_cast<ptrdiff_t>(t) * args.token_stride +
                          static_cast<ptrdiff_t>(first + h - args.head_begin) * args.head_stride;
      Floats step = Floats::Zero();
      for (size_t c = 0; c < layout.channels; c += kFloats) {
        const size_t count = CountAt(c, layout.channels);
        if constexpr (kByChannel) {
          step = Floats::LoadAligned(channel_steps + h * padded + c);
        } else if (c % kQ8TokenGroup == 0) {
          alignas(32) std::byte bits[kFloats * sizeof(uint16_t)] = {};
          std::memcpy(bits, scales + c / kQ8TokenGroup * sizeof(uint16_t), sizeof(uint16_t));
          alignas(64) float steps[kFloats];
          (Floats::LoadScales(bits, kFloats) * Floats::All(kOneOver127)).StoreAligned(steps);
          step = Floats::All(steps[0]);
        }
        const Floats y = Floats::LoadPlaces(places + c, count) * step;
        StoreFloats<Floats, kDtype, kStreaming>(y, target + c * DtypeBytes(kDtype), count);
      }
    }
  }
}

template <typename Floats, Dtype kDtype, bool kStreaming>
void Q8Decode(const DecodeArgs& args) {
  const Q8Layout layout(args.codec, args.shape);
  const size_t padded = (layout.channels + kFloats - 1) / kFloats * kFloats;
  // Several heads at once, so that the target is written in the order in which it lies.
  const size_t heads_max = kChannelsMax / padded;
  alignas(64) float steps[kChannelsMax];
  for (size_t first = args.head_begin; first < args.head_end; first += heads_max) {
    const size_t left = args.head_end - first, heads = left < heads_max ? left : heads_max;
    if (!layout.by_channel) {
      Q8DecodeHeads<Floats, kDtype, false, kStreaming>(args, layout, first, heads, steps, padded);
      continue;
    }
    for (size_t h = 0; h < heads; ++h) {
      const std::byte* scales = args.encoded.data() + (first + h) * layout.head_bytes() + layout.scales_offset();
      for (size_t c = 0; c < layout.channels; c += kFloats) {
        const Floats scale = Floats::LoadScales(scales + c * sizeof(uint16_t), CountAt(c, layout.channels));
        (scale * Floats::All(kOneOver127)).StoreAligned(steps + h * padded + c);
      }
    }
    Q8DecodeHeads<Floats, kDtype, true, kStreaming>(args, layout, first, heads, steps, padded);
  }
  if constexpr (kStreaming) _mm_sfence();
}

}  // namespace nqkv
