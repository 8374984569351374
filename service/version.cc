#include "service/version.h"

namespace nqkv {

absl::string_view Version() { return NQKV_VERSION; }

}  // namespace nqkv
