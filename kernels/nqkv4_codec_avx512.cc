// Built with AVX-512 and run only where it is: nothing here may be inline code that other sources share.
#include <bit>
#include <cstring>

#include "kernels/dtype_dispatch.h"
#include "kernels/nqkv4_codec.h"
#include "kernels/nqkv4_rows_avx512.h"

namespace nqkv {

namespace avx512 {

namespace {

// Several heads at once, so that the source is read in the order in which it lies.
constexpr size_t kHeadsMax = 32;

struct HeadGroup {
  size_t first;
  size_t count;
  alignas(64) float channel_energies[kBatchFloats];  // [count][padded]
  HeadFidelity fidelity[kHeadsMax];
};

// What measuring adds to a head.
void MeasureBatch(const Shape& shape, const float* scales, size_t rows, size_t first_lane, Batch& batch,
                  float* channel_energies, HeadFidelity& fidelity) {
  if (rows < kLanes) ClearLanes(batch.rows);
  size_t r = 0;
  for (; r + kMeasuredRows <= rows; r += kMeasuredRows) {
    MeasureRows<kMeasuredRows>(shape, scales, r, first_lane + r, batch);
  }
  for (; r < rows; ++r) MeasureRows<1>(shape, scales, r, first_lane + r, batch);
  MakeWeights(batch.rows);
  AddRows(batch.rows, fidelity);
  if (rows == kBatchRows) {
    AddChannelEnergies<kBatchRows>(shape, batch.values, batch.rows.weights, channel_energies);
    return;
  }
  for (r = 0; r < rows; ++r) {
    AddChannelEnergies<1>(shape, batch.values + r * shape.padded, batch.rows.weights + first_lane + r,
                          channel_energies);
  }
}

template <Dtype kDtype, bool kMeasure>
bool EncodeTokens(const EncodeArgs& args, const Nqkv4Layout& layout, const Shape& shape, size_t token, size_t rows,
                  ptrdiff_t ahead, HeadGroup& heads, Scales<kDtype>& groups, Batch& batch) {
  const std::byte* source = args.source + static_cast<ptrdiff_t>(token) * args.token_stride +
                            static_cast<ptrdiff_t>(heads.first) * args.head_stride;
  Bits<kDtype>* absmax = groups.absmax;
  for (size_t h = 0; h < heads.count; ++h) {
    absmax = FindAbsmax<kDtype>(source + static_cast<ptrdiff_t>(h) * args.head_stride, args.token_stride, rows, shape,
                                absmax);
  }
  const size_t head_groups = rows * shape.groups;
  if (!MakeScales<kDtype>(heads.count * head_groups, groups)) return false;
  for (size_t h = 0; h < heads.count; ++h, source += args.head_stride) {
    const size_t head = heads.first + h, first_group = h * head_groups;
    std::memcpy(args.encoded.data() + layout.scales_offset(head, token), groups.scale_bits + first_group,
                head_groups * sizeof(uint16_t));
    EncodeRows<kDtype, kMeasure>({source, args.token_stride, rows, ahead}, shape, groups.inverses + first_group,
                                 args.encoded.data() + layout.codes_offset(head, token), batch);
    if constexpr (!kMeasure) continue;
    MeasureBatch(shape, groups.scales + first_group, rows, token % kLanes, batch,
                 heads.channel_energies + h * shape.padded, heads.fidelity[h]);
  }
  return true;
}

template <Dtype kDtype, bool kMeasure>
bool EncodeHeads(const EncodeArgs& args, const Nqkv4Layout& layout, const Shape& shape, HeadGroup& heads) {
  Batch batch;
  Scales<kDtype> groups;
  std::memset(heads.channel_energies, 0, heads.count * shape.padded * sizeof(float));
  for (size_t h = 0; h < heads.count; ++h) heads.fidelity[h] = HeadFidelity();
  const size_t batch_rows = BatchRows(shape);
  for (size_t token = 0; token < layout.rows; token += batch_rows) {
    const size_t left = layout.rows - token, rows = left < batch_rows ? left : batch_rows;
    const ptrdiff_t ahead = static_cast<ptrdiff_t>(batch_rows) * args.token_stride;
    if (!EncodeTokens<kDtype, kMeasure>(args, layout, shape, token, rows, ahead, heads, groups, batch)) return false;
  }
  return true;
}

template <Dtype kDtype, bool kMeasure>
EncodeResult Encode(const EncodeArgs& args) {
  const Nqkv4Layout layout(args.codec, args.shape);
  const size_t channels = args.shape.channels;
  const Shape shape = {.channels = channels,
                       .padded = (channels + kNqkv4Run - 1) / kNqkv4Run * kNqkv4Run,
                       .group = layout.group,
                       .groups = layout.groups,
                       .group_shift = static_cast<unsigned>(std::countr_zero(layout.group / kNqkv4Run))};
  const size_t room = kBatchFloats / shape.padded, heads_max = room < kHeadsMax ? room : kHeadsMax;
  EncodeResult result;
  PlaneFidelity fidelity;
  HeadGroup heads;
  for (heads.first = 0; heads.first < layout.strips; heads.first += heads.count) {
    const size_t left = layout.strips - heads.first;
    heads.count = left < heads_max ? left : heads_max;
    if (!EncodeHeads<kDtype, kMeasure>(args, layout, shape, heads)) return Unrepresentable(args);
    if constexpr (!kMeasure) continue;
    for (size_t h = 0; h < heads.count; ++h) {
      fidelity.Add(heads.fidelity[h], FloorEnergyAvx512(heads.channel_energies + h * shape.padded, channels));
    }
    const size_t offset = heads.first * layout.strip_bytes();
    result.crc32c = ExtendCrc32c(result.crc32c, {args.encoded.data() + offset, heads.count * layout.strip_bytes()});
  }
  result.errors = fidelity.errors();
  return result;
}

template <Dtype kDtype>
EncodeResult Encode(const EncodeArgs& args) {
  return args.measure ? Encode<kDtype, true>(args) : Encode<kDtype, false>(args);
}

template <Dtype kDtype, bool kStreaming>
void Decode(const DecodeArgs& args) {
  const Nqkv4Layout layout(args.codec, args.shape);
  // Planes lie one behind the other. While this one is written around the cache, the next one's codes are asked for.
  const std::byte* next_plane = args.encoded.data() + args.encoded.size();
  const size_t share = layout.strips * layout.row_code_bytes();
  for (size_t t = 0; t < layout.rows; ++t) {
    if constexpr (kStreaming) {
      for (size_t i = 0; i < share; i += 64) Prefetch(next_plane, static_cast<ptrdiff_t>(t * share + i));
    }
    std::byte* target = args.target + static_cast<ptrdiff_t>(t) * args.token_stride;
    for (size_t h = args.head_begin; h < args.head_end; ++h, target += args.head_stride) {
      const std::byte* strip = args.encoded.data() + h * layout.strip_bytes();
      DecodeRow<kDtype, kStreaming>(layout, strip + t * layout.row_code_bytes(),
                                    strip + layout.scales_offset() + t * layout.groups * sizeof(uint16_t), target);
    }
  }
  if constexpr (kStreaming) _mm_sfence();
}

// Stores around the cache must be aligned.
bool CanStream(const DecodeArgs& args) {
  const auto bits = reinterpret_cast<uintptr_t>(args.target) | static_cast<uintptr_t>(args.token_stride) |
                    static_cast<uintptr_t>(args.head_stride);
  return bits % 64 == 0;
}

template <Dtype kDtype>
void Decode(const DecodeArgs& args) {
  args.streaming&& CanStream(args) ? Decode<kDtype, true>(args) : Decode<kDtype, false>(args);
}

}  // namespace

}  // namespace avx512

EncodeResult Nqkv4EncodeAvx512(const EncodeArgs& args) {
  return ForDtype(args.shape.dtype, [&]<Dtype kDtype>() { return avx512::Encode<kDtype>(args); });
}

void Nqkv4DecodeAvx512(const DecodeArgs& args) {
  ForDtype(args.dtype, [&]<Dtype kDtype>() { avx512::Decode<kDtype>(args); });
}

}  // namespace nqkv
