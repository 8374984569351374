// Built with AVX2, FMA and F16C and run only where they are: nothing here may be inline code that other sources share.
#include <bit>
#include <cstring>

#include "kernels/dtype_dispatch.h"
#include "kernels/nqkv4_codec.h"
#include "kernels/nqkv4_rows_avx2.h"

namespace nqkv {

namespace avx2 {

namespace {

// Several heads at once, so that the source is read in the order in which it lies.
constexpr size_t kHeadsMax = 32;

struct HeadGroup {
  size_t first;
  size_t count;
  alignas(32) float channel_energies[kBatchFloats];  // [count][padded]
  HeadFidelity fidelity[kHeadsMax];
};

// Asks for the rows that the next batch will read, while this one computes: they are far apart and few, so that the
// processor does not guess them. Inlined by force: GCC drops calls of functions that do nothing but prefetch.
[[gnu::always_inline]] inline void PrefetchRow(const std::byte* row, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 64) _mm_prefetch(reinterpret_cast<const char*>(row + i), _MM_HINT_T0);
}

struct BatchPlace {
  size_t head;
  size_t token;
  size_t rows;
};

const std::byte* SourceOf(const EncodeArgs& args, const BatchPlace& place) {
  return args.source + static_cast<ptrdiff_t>(place.token) * args.token_stride +
         static_cast<ptrdiff_t>(place.head) * args.head_stride;
}

template <Dtype kDtype, bool kMeasure>
bool EncodeBatch(const EncodeArgs& args, const Nqkv4Layout& layout, const Shape& shape, const BatchPlace& place,
                 const BatchPlace& next, Batch& batch, float* channel_energies, HeadFidelity& fidelity) {
  const size_t rows = place.rows, first_lane = place.token % kLanes;
  if (rows < kLanes) ClearLanes(batch.rows);
  const std::byte* source = SourceOf(args, place);
  for (size_t r = 0; r < rows; ++r, source += args.token_stride) {
    LoadRow<kDtype>(source, shape, batch.values + r * shape.padded, &batch.absmax_lanes[r * shape.groups],
                    batch.rows.signal_lanes[first_lane + r]);
  }
  const size_t group_count = rows * shape.groups;
  for (size_t i = group_count; i % kVector != 0; ++i) _mm256_store_ps(batch.absmax_lanes[i], _mm256_setzero_ps());
  if (!MakeScales(group_count, batch)) return false;
  MakeWeights(batch.rows);
  std::byte* strip = args.encoded.data() + place.head * layout.strip_bytes();
  std::memcpy(strip + layout.scales_offset() + place.token * shape.groups * sizeof(uint16_t), batch.scale_bits,
              group_count * sizeof(uint16_t));
  const std::byte* next_source = SourceOf(args, next);
  for (size_t r = 0; r < rows; ++r) {
    if (r < next.rows) {
      PrefetchRow(next_source + static_cast<ptrdiff_t>(r) * args.token_stride, shape.channels * DtypeBytes(kDtype));
    }
    RowSums sums = {};
    const size_t lane = first_lane + r, g = r * shape.groups;
    EncodeRow<kMeasure>(shape, batch.values + r * shape.padded, batch.scales + g, batch.inverses + g,
                        strip + (place.token + r) * layout.row_code_bytes(), sums);
    _mm256_store_ps(batch.rows.error_lanes[lane], _mm256_add_ps(sums.error[0], sums.error[1]));
    _mm256_store_ps(batch.rows.decoded_lanes[lane], _mm256_add_ps(sums.decoded[0], sums.decoded[1]));
  }
  if constexpr (!kMeasure) return true;
  AddRows(batch.rows, fidelity);
  if (rows == kBatchRows) {
    AddChannelEnergies<kBatchRows>(shape, batch.values, batch.rows.weights, channel_energies);
  } else {
    for (size_t r = 0; r < rows; ++r) {
      AddChannelEnergies<1>(shape, batch.values + r * shape.padded, batch.rows.weights + first_lane + r,
                            channel_energies);
    }
  }
  return true;
}

template <Dtype kDtype, bool kMeasure>
bool EncodeHeads(const EncodeArgs& args, const Nqkv4Layout& layout, const Shape& shape, HeadGroup& heads) {
  Batch batch;
  std::memset(heads.channel_energies, 0, heads.count * shape.padded * sizeof(float));
  for (size_t h = 0; h < heads.count; ++h) heads.fidelity[h] = HeadFidelity();
  const size_t batch_rows = BatchRows(shape);
  const auto place_of = [&](size_t index) {
    const size_t token = index / heads.count * batch_rows, left = token < layout.rows ? layout.rows - token : 0;
    return BatchPlace{heads.first + index % heads.count, token, left < batch_rows ? left : batch_rows};
  };
  BatchPlace place = place_of(0);
  for (size_t index = 0; place.rows > 0; ++index) {
    const BatchPlace next = place_of(index + 1);
    const size_t h = place.head - heads.first;
    if (!EncodeBatch<kDtype, kMeasure>(args, layout, shape, place, next, batch,
                                       heads.channel_energies + h * shape.padded, heads.fidelity[h])) {
      return false;
    }
    place = next;
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
                       .groups = layout.groups};
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
      fidelity.Add(heads.fidelity[h], FloorEnergyAvx2(heads.channel_energies + h * shape.padded, channels));
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
  for (size_t t = 0; t < layout.rows; ++t) {
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
  return bits % 32 == 0;
}

template <Dtype kDtype>
void Decode(const DecodeArgs& args) {
  args.streaming&& CanStream(args) ? Decode<kDtype, true>(args) : Decode<kDtype, false>(args);
}

}  // namespace

}  // namespace avx2

EncodeResult Nqkv4EncodeAvx2(const EncodeArgs& args) {
  return ForDtype(args.shape.dtype, [&]<Dtype kDtype>() { return avx2::Encode<kDtype>(args); });
}

void Nqkv4DecodeAvx2(const DecodeArgs& args) {
  ForDtype(args.dtype, [&]<Dtype kDtype>() { avx2::Decode<kDtype>(args); });
}

}  // namespace nqkv
