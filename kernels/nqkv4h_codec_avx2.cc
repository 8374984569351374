// Built with AVX2, FMA and F16C and run only where they are.
#include "kernels/dtype_dispatch.h"
#include "kernels/floats16_avx2.h"
#include "kernels/nqkv4_rows_avx2.h"
#include "kernels/nqkv4h_codec_vector.h"

namespace nqkv {

namespace avx2 {

// Batches of rows of fp32 numbers to nqkv4.
class RowCoder {
 public:
  explicit RowCoder(const Nqkv4Layout& layout)
      : shape_{.channels = layout.row_elements,
               .padded = (layout.row_elements + kNqkv4Run - 1) / kNqkv4Run * kNqkv4Run,
               .group = layout.group,
               .groups = layout.groups} {}

  size_t padded() const { return shape_.padded; }
  size_t batch_rows() const { return BatchRows(shape_); }
  const RowBatch& rows() const { return batch_.rows; }

  // `rows` are padded() apart. False when one has no scale. `measure`: leaves the sums of errors and of decoded numbers
  // in rows(), the first row's in `first_lane`.
  bool Encode(const float* rows, size_t count, size_t first_lane, std::byte* codes, std::byte* scales, bool measure) {
    if (count < kLanes) ClearLanes(batch_.rows);
    for (size_t r = 0; r < count; ++r) {
      LoadRow<Dtype::kFloat32>(reinterpret_cast<const std::byte*>(rows + r * shape_.padded), shape_,
                               batch_.values + r * shape_.padded, &batch_.absmax_lanes[r * shape_.groups],
                               batch_.rows.signal_lanes[first_lane + r]);
    }
    const size_t group_count = count * shape_.groups;
    for (size_t i = group_count; i % kVector != 0; ++i) _mm256_store_ps(batch_.absmax_lanes[i], _mm256_setzero_ps());
    if (!MakeScales(group_count, batch_)) return false;
    std::memcpy(scales, batch_.scale_bits, group_count * sizeof(uint16_t));
    for (size_t r = 0; r < count; ++r) {
      RowSums sums = {};
      const float* values = batch_.values + r * shape_.padded;
      const size_t group = r * shape_.groups;
      std::byte* row_codes = codes + r * shape_.channels / 2;
      if (measure) {
        EncodeRow<true>(shape_, values, batch_.scales + group, batch_.inverses + group, row_codes, sums);
        _mm256_store_ps(batch_.rows.error_lanes[first_lane + r], _mm256_add_ps(sums.error[0], sums.error[1]));
        _mm256_store_ps(batch_.rows.decoded_lanes[first_lane + r], _mm256_add_ps(sums.decoded[0], sums.decoded[1]));
      } else {
        EncodeRow<false>(shape_, values, batch_.scales + group, batch_.inverses + group, row_codes, sums);
      }
    }
    return true;
  }

 private:
  Shape shape_;
  Batch batch_;
};

struct Nqkv4hPath {
  // The 64 numbers of a whole run.
  [[gnu::always_inline]] static void DecodeRun(const std::byte* codes, uint16_t scale, Floats16 numbers[4]) {
    __m256 eighths[8];
    DecodeTable<Dtype::kFloat32>(scale).Decoded(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes)), eighths);
    for (size_t q = 0; q < 4; ++q) numbers[q] = {eighths[2 * q], eighths[2 * q + 1]};
  }
  using Floats = Floats16;
  using RowCoder = avx2::RowCoder;
  static void DecodeRow(const Nqkv4Layout& layout, const std::byte* codes, const uint16_t* scales, float* row) {
    avx2::DecodeRow<Dtype::kFloat32, false>(layout, codes, reinterpret_cast<const std::byte*>(scales),
                                            reinterpret_cast<std::byte*>(row));
  }
};

}  // namespace avx2

EncodeResult Nqkv4hEncodeAvx2(const EncodeArgs& args) {
  return ForDtype(args.shape.dtype, [&]<Dtype kDtype>() { return Nqkv4hEncode<avx2::Nqkv4hPath, kDtype>(args); });
}

void Nqkv4hDecodeAvx2(const DecodeArgs& args) {
  ForDtype(args.dtype, [&]<Dtype kDtype>() {
    CanStreamRows(args) ? Nqkv4hDecode<avx2::Nqkv4hPath, kDtype, true>(args)
                        : Nqkv4hDecode<avx2::Nqkv4hPath, kDtype, false>(args);
  });
}

}  // namespace nqkv
