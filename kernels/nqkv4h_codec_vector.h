// The codec nqkv4h over vectors of sixteen numbers: `Path` has Floats16 of floats16_avx2.h or floats16_avx512.h and a
// coder of rotated rows. Only those sources may include this.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/nqkv4h_codec.h"
#include "kernels/q8_codec_vector.h"

namespace nqkv {

inline constexpr size_t kTokensMax = 1024;
// Rotated rows on their way to codes: 32 KiB, one of the widest head or eight of up to 1024 channels.
inline constexpr size_t kRotatedFloats = kChannelsMax;

// Blocks of eight go two at a time.
template <size_t kBlock>
inline constexpr size_t kBlockRegisters = kBlock < kFloats ? 1 : kBlock / kFloats;

// One block of the transform, in registers.
template <typename Floats, size_t kBlock>
[[gnu::always_inline]] inline void Transform(Floats* u) {
  constexpr size_t kRegisters = kBlockRegisters<kBlock>;
  for (size_t i = 0; i < kRegisters; ++i) {
    u[i] = u[i].template Stage<1>().template Stage<2>().template Stage<4>();
    if constexpr (kBlock >= kFloats) u[i] = u[i].template Stage<8>();
  }
  for (size_t distance = 1; distance < kRegisters; distance *= 2) {
    for (size_t i = 0; i < kRegisters; ++i) {
      if ((i & distance) != 0) continue;
      const Floats a = u[i], b = u[i + distance];
      u[i] = a + b;
      u[i + distance] = a - b;
    }
  }
}

// `load(c)` gives the sixteen numbers from channel c on, `store(c, numbers)` takes them.
template <typename Floats, size_t kBlock, typename LoadAt, typename StoreAt>
[[gnu::always_inline]] inline void TransformRow(size_t channels, const LoadAt& load, const StoreAt& store) {
  constexpr size_t kRegisters = kBlockRegisters<kBlock>;
  for (size_t begin = 0; begin < channels; begin += kRegisters * kFloats) {
    Floats u[kRegisters];
    for (size_t i = 0; i < kRegisters; ++i) u[i] = load(begin + i * kFloats);
    Transform<Floats, kBlock>(u);
    for (size_t i = 0; i < kRegisters; ++i) store(begin + i * kFloats, u[i]);
  }
}

// Calls `work`, a lambda with the template parameter `size_t kBlock`, for a rotation's block.
template <typename Work>
[[gnu::always_inline]] inline void ForBlock(size_t block, const Work& work) {
  switch (block) {
    case 8:
      return work.template operator()<8>();
    case 16:
      return work.template operator()<16>();
    case 32:
      return work.template operator()<32>();
    case 64:
      return work.template operator()<64>();
    default:
      return work.template operator()<128>();
  }
}

template <typename Path, Dtype kDtype>
class Nqkv4hHeadEncoder {
 public:
  using Floats = typename Path::Floats;

  explicit Nqkv4hHeadEncoder(const Nqkv4hLayout& layout)
      : layout_(layout), rotation_(layout.rotated.row_elements), coder_(layout.rotated) {
    for (size_t c = 0; c < channels() + kFloats; ++c) factors_[c] = 0;
  }

  // The next head. False when something has no fp16 scale.
  bool Encode(const SourceRows& source, std::byte* encoded, PlaneFidelity* fidelity) {
    source_ = source;
    encoded_ = encoded;
    head_ = HeadFidelity();
    const bool measure = fidelity != nullptr;
    if (!MeasureSource()) return false;
    PickStrongChannels({energies_, channels()}, {strong_, layout_.strong});
    EncodeStrong();
    for (size_t c = 0; c < channels(); ++c) factors_[c] = IsNegated(c) ? -1.0f : 1.0f;
    for (size_t i = 0; i < layout_.strong; ++i) factors_[strong_[i]] = 0.0f;
    const size_t batch = coder_.batch_rows();
    for (size_t token = 0; token < tokens(); token += batch) {
      const size_t left = tokens() - token, rows = left < batch ? left : batch;
      ForBlock(rotation_.block, [&]<size_t kBlock>() {
        for (size_t r = 0; r < rows; ++r) Rotate<kBlock>(token + r, rotated_ + r * coder_.padded());
      });
      if (!coder_.Encode(rotated_, rows, token % kLanes, encoded_ + layout_.codes_offset(token),
                         encoded_ + layout_.scales_offset(token), measure)) {
        return false;
      }
      if (measure) Measure(token, rows);
    }
    if (measure) fidelity->Add(head_, Floats::FloorOf(energies_, channels()));
    return true;
  }

 private:
  size_t channels() const { return layout_.rotated.row_elements; }
  size_t tokens() const { return layout_.rotated.rows; }

  // Rows' energies and weights, and the channels' energies.
  bool MeasureSource() {
    std::memset(energies_, 0, coder_.padded() * sizeof(float));
    Floats largest = Floats::Zero();
    // As fp32, so that they need not be converted again for the channels' energies.
    const bool is_kept = coder_.batch_rows() == kLanes;
    const SourceRows kept = {.data = reinterpret_cast<const std::byte*>(rotated_),
                             .stride = static_cast<ptrdiff_t>(coder_.padded() * sizeof(float)),
                             .ahead = 0};
    for (size_t token = 0; token < tokens(); token += kLanes) {
      const size_t left = tokens() - token, rows = left < kLanes ? left : kLanes;
      if (rows < kLanes) ClearLanes(rows_);
      for (size_t r = 0; r < rows; ++r) {
        Floats signal = Floats::Zero();
        for (size_t c = 0; c < channels(); c += kFloats) {
          const Floats x = LoadAt(token + r, c);
          if constexpr (kDtype != Dtype::kFloat16) largest = largest.MaxMagnitude(x);
          signal = x.Fma(x, signal);
          if (is_kept) x.StoreAligned(rotated_ + r * coder_.padded() + c);
        }
        signal.StoreFolded(rows_.signal_lanes[r]);
      }
      MakeWeights(rows_);
      // What fp16 can hold has a scale, and a sum of its squares is finite where all of them are.
      if (kDtype == Dtype::kFloat16 && !Floats::AreFinite(rows_.signals)) return false;
      std::memcpy(signals_ + token, rows_.signals, sizeof(rows_.signals));
      std::memcpy(weights_ + token, rows_.weights, sizeof(rows_.weights));
      if (is_kept) {
        AddWeightedEnergies<Floats, Dtype::kFloat32>(kept, 0, rows, channels(), rows_.weights, energies_);
      } else {
        AddWeightedEnergies<Floats, kDtype>(source_, token, rows, channels(), rows_.weights, energies_);
      }
    }
    return !largest.AnyBeyondScales();
  }

  [[gnu::always_inline]] Floats LoadAt(size_t t, size_t c) const {
    return Floats::template Load<kDtype>(source_[t] + c * DtypeBytes(kDtype), CountAt(c, channels()));
  }

  // The strong channels of two tokens at a time, eight lanes each; lanes without a channel are zero.
  void EncodeStrong() {
    const size_t strong = layout_.strong, pairs = (tokens() + 1) / 2;
    if (strong == 0) return;
    std::memset(strong_values_, 0, pairs * kFloats * sizeof(float));
    Floats absmax = Floats::Zero();
    for (size_t t = 0; t < tokens(); ++t) {
      const std::byte* row = source_[t];
      for (size_t i = 0; i < strong; ++i) {
        strong_values_[t * kLanes + i] = Floats::template LoadOne<kDtype>(row + strong_[i] * DtypeBytes(kDtype));
      }
    }
    for (size_t pair = 0; pair < pairs; ++pair) {
      absmax = absmax.MaxMagnitude(Floats::LoadAligned(strong_values_ + pair * kFloats));
    }
    alignas(64) float absmax_of[kFloats];
    absmax.StoreAligned(absmax_of);
    for (size_t i = 0; i < kLanes; ++i) {
      const float larger = absmax_of[i] > absmax_of[i + kLanes] ? absmax_of[i] : absmax_of[i + kLanes];
      absmax_of[i] = absmax_of[i + kLanes] = larger;
    }
    alignas(32) std::byte bits[kFloats * sizeof(uint16_t)];
    Floats::LoadAligned(absmax_of).StoreScales(bits, kFloats);
    std::memcpy(encoded_ + layout_.strong_offset(), strong_, strong * sizeof(uint16_t));
    std::memcpy(encoded_ + layout_.strong_scales_offset(), bits, strong * sizeof(uint16_t));
    const Floats scale = Floats::LoadScales(bits, kFloats), inverse = Floats::InverseOf(scale);
    const Floats step = scale * Floats::All(kOneOver127);
    for (size_t t = 0; t < tokens(); t += 2) {
      const Floats x = Floats::LoadAligned(strong_values_ + t * kLanes);
      std::byte places[kFloats];
      const Floats y = (x * inverse).StorePlaces(places, kFloats) * step, difference = x - y;
      std::memcpy(encoded_ + layout_.places_offset(t), places, strong);
      if (t + 1 < tokens()) std::memcpy(encoded_ + layout_.places_offset(t + 1), places + kLanes, strong);
      (difference * difference).StoreAligned(strong_errors_ + t * kLanes);
      (y * y).StoreAligned(strong_norms_ + t * kLanes);
    }
  }

  template <size_t kBlock>
  void Rotate(size_t t, float* target) {
    const Floats forward = Floats::All(rotation_.forward);
    TransformRow<Floats, kBlock>(
        channels(), [&](size_t c) { return LoadAt(t, c) * Floats::LoadAligned(factors_ + c); },
        [&](size_t c, const Floats& u) { (u * forward).StoreAligned(target + c); });
    for (size_t c = (channels() + kFloats - 1) / kFloats * kFloats; c < coder_.padded(); c += kFloats) {
      Floats::Zero().StoreAligned(target + c);
    }
    source_.PrefetchAhead(t, channels() * DtypeBytes(kDtype));
  }

  // Precondition: `coder_` holds the sums of the rotated rows.
  void Measure(size_t token, size_t rows) {
    const size_t first = token % kLanes, begin = token - first;
    const __m256 energy = _mm256_set1_ps(rotation_.energy);
    __m256 error = _mm256_mul_ps(energy, SumEight(coder_.rows().error_lanes));
    __m256 decoded = _mm256_mul_ps(energy, SumEight(coder_.rows().decoded_lanes));
    if (layout_.strong > 0) {
      error = _mm256_add_ps(error, SumEight(LanesOf(strong_errors_, begin)));
      decoded = _mm256_add_ps(decoded, SumEight(LanesOf(strong_norms_, begin)));
    }
    alignas(32) int32_t present[kLanes];
    for (size_t lane = 0; lane < kLanes; ++lane) present[lane] = lane >= first && lane < first + rows ? -1 : 0;
    const __m256 mask = _mm256_castsi256_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(present)));
    AddRows(_mm256_and_ps(mask, _mm256_load_ps(signals_ + begin)), _mm256_and_ps(mask, error),
            _mm256_and_ps(mask, decoded), _mm256_and_ps(mask, _mm256_load_ps(weights_ + begin)), head_);
  }

  // Of eight tokens; those behind the last are masked out by the caller.
  static const float (*LanesOf(const float* values, size_t token))[kLanes] {
    return reinterpret_cast<const float(*)[kLanes]>(values + token * kLanes);
  }

  const Nqkv4hLayout& layout_;
  const Rotation rotation_;
  SourceRows source_ = {};
  std::byte* encoded_ = nullptr;
  typename Path::RowCoder coder_;
  HeadFidelity head_;
  RowBatch rows_;
  uint16_t strong_[kStrongChannelsMax] = {};
  alignas(64) float energies_[kChannelsMax];
  alignas(64) float factors_[kChannelsMax + kFloats];
  alignas(64) float signals_[kTokensMax + kLanes];
  alignas(64) float weights_[kTokensMax + kLanes];
  alignas(64) float strong_values_[kTokensMax * kLanes];
  alignas(64) float strong_errors_[kTokensMax * kLanes];
  alignas(64) float strong_norms_[kTokensMax * kLanes];
  alignas(64) float rotated_[kRotatedFloats];
};

template <typename Path, Dtype kDtype>
EncodeResult Nqkv4hEncode(const EncodeArgs& args) {
  const Nqkv4hLayout layout(args.codec, args.shape);
  PlaneFidelity fidelity;
  EncodeResult result;
  Nqkv4hHeadEncoder<Path, kDtype> encoder(layout);
  for (size_t h = 0; h < args.shape.heads; ++h) {
    const std::span<std::byte> encoded = args.encoded.subspan(h * layout.head_bytes(), layout.head_bytes());
    if (!encoder.Encode(RowsOf(args, h), encoded.data(), args.measure ? &fidelity : nullptr)) {
      result = Unrepresentable(args);
      result.in_scale_range &= !result.finite;  // A rotated row can be too large where no element is.
      return result;
    }
    if (args.measure) result.crc32c = ExtendCrc32c(result.crc32c, encoded);
  }
  result.errors = fidelity.errors();
  return result;
}

// What decoding a head needs besides its codes.
template <typename Floats>
struct StrongDecoder {
  const Nqkv4hLayout& layout;
  const std::byte* encoded;  // The head.
  uint16_t channels[kFloats] = {};
  size_t count;
  alignas(64) float steps[kFloats] = {};

  StrongDecoder(const Nqkv4hLayout& head_layout, const std::byte* head) : layout(head_layout), encoded(head) {
    const StrongChannelList list = ReadStrongChannels(head_layout, head);
    count = list.count;
    std::memcpy(channels, list.channels.data(), sizeof(list.channels));
    alignas(32) std::byte bits[kFloats * sizeof(uint16_t)] = {};
    std::memcpy(bits, head + layout.strong_scales_offset(), layout.strong * sizeof(uint16_t));
    (Floats::LoadScales(bits, kFloats) * Floats::All(kOneOver127)).StoreAligned(steps);
  }

  [[gnu::always_inline]] void Overwrite(size_t t, float* row) const {
    std::byte places[kFloats] = {};
    std::memcpy(places, encoded + layout.places_offset(t), layout.strong);
    alignas(64) float values[kFloats];
    (Floats::LoadPlaces(places, kFloats) * Floats::LoadAligned(steps)).StoreAligned(values);
    for (size_t i = 0; i < count; ++i) row[channels[i]] = values[i];
  }
};

template <typename Path, Dtype kDtype, size_t kBlock, bool kStreaming>
void Nqkv4hDecodeHead(const DecodeArgs& args, const Nqkv4hLayout& layout, size_t h, const float* factors) {
  using Floats = typename Path::Floats;
  const size_t channels = layout.rotated.row_elements, groups = layout.rotated.groups;
  const std::byte* head = args.encoded.data() + h * layout.head_bytes();
  const StrongDecoder<Floats> strong(layout, head);
  alignas(64) float row[kChannelsMax + kFloats];
  for (size_t t = 0; t < layout.rotated.rows; ++t) {
    // Infinity and NaN count as 0.
    uint16_t scales[kChannelsMax / 64];
    std::memcpy(scales, head + layout.scales_offset(t), groups * sizeof(uint16_t));
    for (size_t g = 0; g < groups; ++g) scales[g] = (scales[g] & 0x7c00u) == 0x7c00u ? uint16_t{0} : scales[g];
    std::byte* target = args.target + static_cast<ptrdiff_t>(t) * args.token_stride +
                        static_cast<ptrdiff_t>(h - args.head_begin) * args.head_stride;
    const std::byte* codes = head + layout.codes_offset(t);
    const auto keep = [&](size_t c, const Floats& u) { (u * Floats::LoadAligned(factors + c)).StoreAligned(row + c); };
    if constexpr (kBlock >= kNqkv4Run) {
      // Rows of whole runs go from codes to numbers in registers.
      const auto transform_into = [&](const auto& store) {
        for (size_t begin = 0; begin < channels; begin += kBlock) {
          Floats u[kBlock / kFloats];
          for (size_t c = begin; c < begin + kBlock; c += kNqkv4Run) {
            Path::DecodeRun(codes + c / 2, scales[c / layout.rotated.group], u + (c - begin) / kFloats);
          }
          Transform<Floats, kBlock>(u);
          for (size_t i = 0; i < kBlock / kFloats; ++i) store(begin + i * kFloats, u[i]);
        }
      };
      if (layout.strong == 0) {
        transform_into([&](size_t c, const Floats& u) {
          StoreFloats<Floats, kDtype, kStreaming>(u * Floats::LoadAligned(factors + c), target + c * DtypeBytes(kDtype),
                                                  kFloats);
        });
        continue;
      }
      transform_into(keep);
    } else {
      Path::DecodeRow(layout.rotated, codes, scales, row);
      TransformRow<Floats, kBlock>(
          channels, [&](size_t c) { return Floats::LoadAligned(row + c); }, keep);
    }
    if (layout.strong > 0) strong.Overwrite(t, row);
    for (size_t c = 0; c < channels; c += kFloats) {
      StoreFloats<Floats, kDtype, kStreaming>(Floats::LoadAligned(row + c), target + c * DtypeBytes(kDtype),
                                              CountAt(c, channels));
    }
  }
}

template <typename Path, Dtype kDtype, bool kStreaming>
void Nqkv4hDecode(const DecodeArgs& args) {
  const Nqkv4hLayout layout(args.codec, args.shape);
  const Rotation rotation(args.shape.channels);
  alignas(64) float factors[kChannelsMax + kFloats] = {};
  for (size_t c = 0; c < args.shape.channels; ++c) {
    factors[c] = IsNegated(c) ? -rotation.backward : rotation.backward;
  }
  ForBlock(rotation.block, [&]<size_t kBlock>() {
    for (size_t h = args.head_begin; h < args.head_end; ++h) {
      Nqkv4hDecodeHead<Path, kDtype, kBlock, kStreaming>(args, layout, h, factors);
    }
  });
  if constexpr (kStreaming) _mm_sfence();
}

}  // namespace nqkv
