// The codecs' implementations for one processor each. Users call EncodePlane and DecodePlane of codec.h, which take the
// fastest; tests and benchmarks take each by itself. All functions are thread-safe.
#pragma once

#include <array>

#include "absl/strings/string_view.h"
#include "kernels/codec.h"

namespace nqkv {

enum class CodecPath { kScalar, kAvx2, kAvx512 };

// Slowest first.
inline constexpr std::array kCodecPaths = {CodecPath::kScalar, CodecPath::kAvx2, CodecPath::kAvx512};

// "scalar", "avx2", "avx512".
absl::string_view CodecPathName(CodecPath path);

// True when processor and operating system have what the path needs.
bool HasCodecPath(CodecPath path);

// Precondition: HasCodecPath(path). A path that has nothing of its own for a codec runs the next slower one's.
EncodeResult EncodePlaneOn(CodecPath path, const EncodeArgs& args);
void DecodePlaneOn(CodecPath path, const DecodeArgs& args);

}  // namespace nqkv
