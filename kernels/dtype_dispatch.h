// From a dtype known at run time to code compiled for it.
#pragma once

#include "kernels/block_layout.h"

namespace nqkv {

// Calls `work`, a lambda with the template parameter `Dtype kDtype`, for `dtype`.
template <typename Work>
[[gnu::always_inline]] inline auto ForDtype(Dtype dtype, const Work& work) {
  switch (dtype) {
    case Dtype::kFloat16:
      return work.template operator()<Dtype::kFloat16>();
    case Dtype::kBfloat16:
      return work.template operator()<Dtype::kBfloat16>();
    default:
      return work.template operator()<Dtype::kFloat32>();
  }
}

}  // namespace nqkv
