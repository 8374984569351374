// Built with AVX-512 and run only where it is.
#include "kernels/dtype_dispatch.h"
#include "kernels/floats16_avx512.h"
#include "kernels/nqkv4_rows_avx512.h"
#include "kernels/nqkv4h_codec_vector.h"

namespace nqkv {

namespace avx512 {

// Batches of rows of fp32 numbers to nqkv4.
class RowCoder {
 public:
  explicit RowCoder(const Nqkv4Layout& layout)
      : shape_{.channels = layout.row_elements,
               .padded = (layout.row_elements + kNqkv4Run - 1) / kNqkv4Run * kNqkv4Run,
               .group = layout.group,
               .groups = layout.groups,
               .group_shift = static_cast<unsigned>(std::countr_zero(layout.group / kNqkv4Run))} {}

  size_t padded() const { return shape_.padded; }
  size_t batch_rows() const { return BatchRows(shape_); }
  const RowBatch& rows() const { return batch_.rows; }

  // `rows` are padded() apart. False when one has no scale. `measure`: leaves the sums of errors and of decoded numbers
  // in rows(), the first row's in `first_lane`.
  bool Encode(const float* rows, size_t count, size_t first_lane, std::byte* codes, std::byte* scales, bool measure) {
    const auto* source = reinterpret_cast<const std::byte*>(rows);
    const auto stride = static_cast<ptrdiff_t>(shape_.padded * sizeof(float));
    const size_t group_count = count * shape_.groups;
    FindAbsmax<Dtype::kFloat32>(source, stride, count, shape_, groups_.absmax);
    if (!MakeScales<Dtype::kFloat32>(group_count, groups_)) return false;
    std::memcpy(scales, groups_.scale_bits, group_count * sizeof(uint16_t));
    const Rows encoded_rows = {.data = source, .stride = stride, .count = count, .ahead = 0};
    const auto encode = [&]<bool kMeasure>() {
      HasSubnormalScale(group_count)
          ? EncodeRows<Dtype::kFloat32, kMeasure, true, false>(encoded_rows, shape_, groups_.inverses, codes, batch_)
          : EncodeRows<Dtype::kFloat32, kMeasure, false, false>(encoded_rows, shape_, groups_.inverses, codes, batch_);
    };
    if (!measure) {
      encode.template operator()<false>();
      return true;
    }
    encode.template operator()<true>();
    if (count < kLanes) ClearLanes(batch_.rows);
    size_t r = 0;
    for (; r + kMeasuredRows <= count; r += kMeasuredRows) {
      MeasureRows<kMeasuredRows, false>(shape_, groups_.scales, r, first_lane + r, batch_);
    }
    for (; r < count; ++r) MeasureRows<1, false>(shape_, groups_.scales, r, first_lane + r, batch_);
    return true;
  }

 private:
  // Every other scale is within rounding of its absmax.
  bool HasSubnormalScale(size_t group_count) const {
    for (size_t i = 0; i < group_count; i += kVector) {
      const __m256i bits = _mm256_load_si256(reinterpret_cast<const __m256i*>(groups_.scale_bits + i));
      if (_mm256_mask_cmplt_epi16_mask(LowBits<__mmask16>(group_count - i), bits, _mm256_set1_epi16(0x400)) != 0) {
        return true;
      }
    }
    return false;
  }

  Shape shape_;
  Scales<Dtype::kFloat32> groups_;
  Batch batch_;
};

struct Nqkv4hPath {
  // The 64 numbers of a whole run.
  [[gnu::always_inline]] static void DecodeRun(const std::byte* codes, uint16_t scale, Floats16 numbers[4]) {
    __m512 quarters[kQuarters];
    DecodeTable<Dtype::kFloat32>(scale).Decoded(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes)), quarters);
    for (size_t q = 0; q < kQuarters; ++q) numbers[q].v = quarters[q];
  }
  using Floats = Floats16;
  using RowCoder = avx512::RowCoder;
  static void DecodeRow(const Nqkv4Layout& layout, const std::byte* codes, const uint16_t* scales, float* row) {
    avx512::DecodeRow<Dtype::kFloat32, false>(layout, codes, reinterpret_cast<const std::byte*>(scales),
                                              reinterpret_cast<std::byte*>(row));
  }
};

}  // namespace avx512

EncodeResult Nqkv4hEncodeAvx512(const EncodeArgs& args) {
  return ForDtype(args.shape.dtype, [&]<Dtype kDtype>() { return Nqkv4hEncode<avx512::Nqkv4hPath, kDtype>(args); });
}

void Nqkv4hDecodeAvx512(const DecodeArgs& args) {
  ForDtype(args.dtype, [&]<Dtype kDtype>() {
    CanStreamRows(args) ? Nqkv4hDecode<avx512::Nqkv4hPath, kDtype, true>(args)
                        : Nqkv4hDecode<avx512::Nqkv4hPath, kDtype, false>(args);
  });
}

}  // namespace nqkv
