// Which nqkvd this is.
#pragma once

#include "absl/strings/string_view.h"

namespace nqkv {

// Such as "0.1.0": the project's version in CMakeLists.txt.
absl::string_view Version();

}  // namespace nqkv
