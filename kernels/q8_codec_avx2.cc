// Built with AVX2, FMA and F16C and run only where they are.
#include "kernels/dtype_dispatch.h"
#include "kernels/floats16_avx2.h"
#include "kernels/q8_codec_vector.h"

namespace nqkv {

EncodeResult Q8EncodeAvx2(const EncodeArgs& args) {
  return ForDtype(args.shape.dtype, [&]<Dtype kDtype>() { return Q8Encode<avx2::Floats16, kDtype>(args); });
}

void Q8DecodeAvx2(const DecodeArgs& args) {
  ForDtype(args.dtype, [&]<Dtype kDtype>() {
    CanStreamRows(args) ? Q8Decode<avx2::Floats16, kDtype, true>(args) : Q8Decode<avx2::Floats16, kDtype, false>(args);
  });
}

}  // namespace nqkv
