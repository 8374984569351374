// Built with AVX-512 and run only where it is.
#include "kernels/dtype_dispatch.h"
#include "kernels/floats16_avx512.h"
#include "kernels/q8_codec_vector.h"

namespace nqkv {

EncodeResult Q8EncodeAvx512(const EncodeArgs& args) {
  return ForDtype(args.shape.dtype, [&]<Dtype kDtype>() { return Q8Encode<avx512::Floats16, kDtype>(args); });
}

void Q8DecodeAvx512(const DecodeArgs& args) {
  ForDtype(args.dtype, [&]<Dtype kDtype>() {
    CanStreamRows(args) ? Q8Decode<avx512::Floats16, kDtype, true>(args)
                        : Q8Decode<avx512::Floats16, kDtype, false>(args);
  });
}

}  // namespace nqkv
