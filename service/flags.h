// The command line of nqkvd. The one place with flags: the rest of the service sees Options.
#pragma once

#include "absl/status/statusor.h"
#include "service/options.h"

namespace nqkv {

// Reads flags, --flagfile and, for flags that are not given, environment variables NQKV_<FLAG> in capitals. Prints and
// exits for --help and --version, as flags do everywhere.
//
// Errors:
//   INVALID_ARGUMENT  a word that is no flag, or an environment variable that does not parse.
absl::StatusOr<Options> OptionsFromCommandLine(int argc, char** argv);

}  // namespace nqkv
