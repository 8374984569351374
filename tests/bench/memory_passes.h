// What memory allows: passes over buffers that do nothing else. Sizes are multiples of 128 bytes, buffers aligned
// to 64.
#pragma once

#include <cstddef>

namespace nqkv::bench {

// False: the processor lacks AVX2, and the passes below must not be called.
bool HasMemoryPasses();

// Copies with stores around the cache.
void NtCopy(std::byte* target, const std::byte* source, size_t bytes);
// Writes around the cache.
void NtFill(std::byte* target, size_t bytes);
// Reads everything and returns something made of it.
unsigned ReadPass(const std::byte* source, size_t bytes);

}  // namespace nqkv::bench
