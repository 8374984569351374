#include "kernels/cpu_backend.h"

#include <cstring>
#include <new>

#include "absl/strings/str_cat.h"
#include "kernels/crc32c.h"
#include "kernels/device_codec.h"
#include "kernels/status_macros.h"

namespace nqkv {

namespace {

constexpr std::align_val_t kAlignment{64};

class CpuMemory final : public BackendMemory {
 public:
  CpuMemory(std::byte* memory, size_t bytes) : bytes_(memory, bytes) {}
  ~CpuMemory() override { ::operator delete(bytes_.data(), kAlignment); }
  CpuMemory(const CpuMemory&) = delete;
  CpuMemory& operator=(const CpuMemory&) = delete;

  std::span<std::byte> bytes() const override { return bytes_; }

 private:
  std::span<std::byte> bytes_;
};

class CpuBackend final : public Backend {
 public:
  absl::string_view name() const override { return "cpu"; }
  bool Has(const PlaneCodec& codec) const override { return ValidatePlaneCodec(codec).ok(); }

  absl::StatusOr<std::unique_ptr<BackendMemory>> Allocate(size_t bytes) override {
    void* memory = ::operator new(bytes, kAlignment, std::nothrow);
    if (memory == nullptr) return absl::ResourceExhaustedError(absl::StrCat("allocate ", bytes, " bytes"));
    return std::make_unique<CpuMemory>(static_cast<std::byte*>(memory), bytes);
  }

  absl::Status Encode(std::span<const PlaneEncodeJob> planes, std::span<EncodeResult> results) override {
    for (size_t i = 0; i < planes.size(); ++i) {
      const PlaneEncodeJob& plane = planes[i];
      NQKV_RETURN_IF_ERROR(CheckPlaneShape(plane.shape));
      NQKV_RETURN_IF_ERROR(ValidatePlaneCodec(plane.codec, plane.shape.channels));
      results[i] = EncodePlane({.source = plane.source,
                                .token_stride = plane.token_stride,
                                .head_stride = plane.head_stride,
                                .shape = plane.shape,
                                .codec = plane.codec,
                                .encoded = {plane.encoded, EncodedBytes(plane.codec, plane.shape)}});
    }
    return absl::OkStatus();
  }

  absl::Status Decode(std::span<const PlaneDecodeJob> planes) override {
    for (size_t i = 0; i < planes.size(); ++i) {
      const PlaneDecodeJob& plane = planes[i];
      NQKV_RETURN_IF_ERROR(CheckPlaneShape(plane.shape));
      NQKV_RETURN_IF_ERROR(ValidatePlaneCodec(plane.codec, plane.shape.channels));
      if (plane.head_begin >= plane.head_end || plane.head_end > plane.shape.heads) {
        return absl::InvalidArgumentError(
            absl::StrCat("heads: [", plane.head_begin, ", ", plane.head_end, ") of ", plane.shape.heads));
      }
      const std::span<const std::byte> encoded(plane.encoded, EncodedBytes(plane.codec, plane.shape));
      if (Crc32c(encoded) != plane.crc32c) {
        return absl::DataLossError(absl::StrCat("plane ", i, " does not have its checksum"));
      }
      DecodePlane({.encoded = encoded,
                   .shape = plane.shape,
                   .codec = plane.codec,
                   .head_begin = plane.head_begin,
                   .head_end = plane.head_end,
                   .dtype = plane.dtype,
                   .target = plane.target,
                   .token_stride = plane.token_stride,
                   .head_stride = plane.head_stride});
    }
    return absl::OkStatus();
  }

  absl::Status Write(std::span<const std::byte> source, std::byte* target) override {
    if (!source.empty()) std::memcpy(target, source.data(), source.size());
    return absl::OkStatus();
  }
  absl::Status Read(const std::byte* source, std::span<std::byte> target) override {
    if (!target.empty()) std::memcpy(target.data(), source, target.size());
    return absl::OkStatus();
  }
};

}  // namespace

std::unique_ptr<Backend> MakeCpuBackend() { return std::make_unique<CpuBackend>(); }

}  // namespace nqkv
