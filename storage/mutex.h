// The lock lives on the lowest floor that needs one.
#pragma once

#include "kernels/mutex.h"  // IWYU pragma: export
