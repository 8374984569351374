// Whether rectangles of layers and heads together cover another one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/container/inlined_vector.h"
#include "kernels/block_layout.h"

namespace nqkv {

// Indexes of parts.
using PartSet = absl::InlinedVector<uint32_t, 16>;

// Whether the union of `parts`, which may overlap, holds all of `needed`. An empty `needed` is covered by anything.
bool Covers(std::span<const PartRange> parts, const PartRange& needed);

// The parts to read for `needed`: one, when one is enough, else all that overlap it. Empty when they do not cover it.
PartSet PartsFor(std::span<const PartRange> parts, const PartRange& needed);

}  // namespace nqkv
