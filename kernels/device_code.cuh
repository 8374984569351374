// What the kernels share: shared memory whose bounds tests check, accesses of 16 bytes, paged rows, conversions.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "kernels/block_layout.h"
#include "kernels/device_codec.h"

// Tests run the kernels on the CPU, where what a GPU leaves undefined can be checked.
#ifdef NQKV_FAKE_CUDA
#define NQKV_DEVICE_CHECK(holds) ::nqkv::fake_cuda::Check(holds, #holds)
#define NQKV_UNROLL
#else
#define NQKV_DEVICE_CHECK(holds) static_cast<void>(0)
#define NQKV_UNROLL _Pragma("unroll")
#endif

namespace nqkv::device {

inline constexpr uint32_t kWholeWarp = 0xffffffffu;

#ifdef NQKV_FAKE_CUDA
inline std::byte* SharedMemory() { return fake_cuda::SharedMemory(); }
#else
__device__ __forceinline__ std::byte* SharedMemory() {
  extern __shared__ uint4 nqkv_shared_memory[];
  return reinterpret_cast<std::byte*>(nqkv_shared_memory);
}
#endif

template <typename Vector>
__device__ __forceinline__ Vector Load(const std::byte* source) {
  NQKV_DEVICE_CHECK(reinterpret_cast<uintptr_t>(source) % sizeof(Vector) == 0);
  return *reinterpret_cast<const Vector*>(source);
}

template <typename Vector>
__device__ __forceinline__ void Store(std::byte* target, const Vector& value) {
  NQKV_DEVICE_CHECK(reinterpret_cast<uintptr_t>(target) % sizeof(Vector) == 0);
  *reinterpret_cast<Vector*>(target) = value;
}

// An array in the block's shared memory, `offset` bytes from its start.
template <typename T>
class SharedArray {
 public:
  __device__ __forceinline__ SharedArray(uint32_t offset, uint32_t count)
      : data_(reinterpret_cast<T*>(SharedMemory() + offset)), count_(count) {
    NQKV_DEVICE_CHECK(offset % sizeof(T) == 0);
    NQKV_DEVICE_CHECK(offset + count * sizeof(T) <= fake_cuda::SharedBytes());
  }

  __device__ __forceinline__ T& operator[](uint32_t index) const {
    NQKV_DEVICE_CHECK(index < count_);
    return data_[index];
  }
  // Several elements at once, from element `index` on.
  template <typename Vector>
  __device__ __forceinline__ Vector LoadAs(uint32_t index) const {
    NQKV_DEVICE_CHECK(index * sizeof(T) + sizeof(Vector) <= count_ * sizeof(T));
    return Load<Vector>(reinterpret_cast<const std::byte*>(data_ + index));
  }
  template <typename Vector>
  __device__ __forceinline__ void StoreAs(uint32_t index, const Vector& value) const {
    NQKV_DEVICE_CHECK(index * sizeof(T) + sizeof(Vector) <= count_ * sizeof(T));
    Store(reinterpret_cast<std::byte*>(data_ + index), value);
  }

 private:
  T* data_;
  [[maybe_unused]] uint32_t count_;
};

// Division by what only the host knows, as a multiplication. For dividends below 2^31.
class Divisor {
 public:
  Divisor() = default;
  explicit Divisor(uint32_t divisor) : divisor_(divisor) {
    while (uint64_t{1} << shift_ < divisor) ++shift_;
    factor_ = static_cast<uint32_t>(((uint64_t{1} << 32) * ((uint64_t{1} << shift_) - divisor)) / divisor + 1);
  }
  __device__ __forceinline__ uint32_t Quotient(uint32_t dividend) const {
    return (__umulhi(factor_, dividend) + dividend) >> shift_;
  }
  __device__ __forceinline__ uint32_t value() const { return divisor_; }

 private:
  uint32_t divisor_ = 1;
  uint32_t factor_ = 1;
  uint32_t shift_ = 0;
};

// DevicePlaneLayout, for kernels.
struct PagedRows {
  int64_t page_stride = 0;
  int64_t token_stride = 0;
  int64_t head_stride = 0;
  Divisor page_tokens;

  explicit PagedRows(const DevicePlaneLayout& layout)
      : page_stride(layout.page_stride),
        token_stride(layout.token_stride),
        head_stride(layout.head_stride),
        page_tokens(layout.page_tokens) {}

  // Bytes from the base to the row of `token` and `head`.
  __device__ __forceinline__ int64_t Offset(uint32_t token, uint32_t head, const int32_t* pages) const {
    const uint32_t place = page_tokens.Quotient(token);
    const int64_t page = pages == nullptr ? static_cast<int64_t>(place) : pages[place];
    return page * page_stride + static_cast<int64_t>(token - place * page_tokens.value()) * token_stride +
           static_cast<int64_t>(head) * head_stride;
  }
};

__device__ __forceinline__ bool IsAligned(const void* address, uint32_t bytes) {
  return reinterpret_cast<uintptr_t>(address) % bytes == 0;
}

__device__ __forceinline__ uint32_t Larger(uint32_t a, uint32_t b) { return a > b ? a : b; }
__device__ __forceinline__ uint32_t Smaller(uint32_t a, uint32_t b) { return a < b ? a : b; }

__device__ __forceinline__ float FromFloat16(uint32_t bits) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}
__device__ __forceinline__ uint32_t ToFloat16(float value) { return __half_as_ushort(__float2half_rn(value)); }
__device__ __forceinline__ float FromBfloat16(uint32_t bits) { return __uint_as_float(bits << 16); }
__device__ __forceinline__ uint32_t ToBfloat16(float value) { return __bfloat16_as_ushort(__float2bfloat16_rn(value)); }

// An element's bits, in the low half for the 16-bit types. NaN becomes any NaN.
template <Dtype kDtype>
__device__ __forceinline__ uint32_t ToBits(float value) {
  if constexpr (kDtype == Dtype::kFloat32) {
    return __float_as_uint(value);
  } else {
    return kDtype == Dtype::kFloat16 ? ToFloat16(value) : ToBfloat16(value);
  }
}

template <Dtype kDtype>
__device__ __forceinline__ float FromBits(uint32_t bits) {
  if constexpr (kDtype == Dtype::kFloat32) {
    return __uint_as_float(bits);
  } else {
    return kDtype == Dtype::kFloat16 ? FromFloat16(bits) : FromBfloat16(bits);
  }
}

// The unsigned type that holds an element.
template <Dtype kDtype>
struct ElementBits {
  using Type = uint16_t;
};
template <>
struct ElementBits<Dtype::kFloat32> {
  using Type = uint32_t;
};

// Eight neighbouring elements' bits, 16 bytes at a time where the source is aligned to them.
template <Dtype kDtype>
__device__ __forceinline__ void LoadEightElements(const std::byte* source, uint32_t (&bits)[8]) {
  if (!IsAligned(source, 16)) {
    using Bits = typename ElementBits<kDtype>::Type;
    NQKV_UNROLL
    for (uint32_t i = 0; i < 8; ++i) bits[i] = Load<Bits>(source + i * sizeof(Bits));
    return;
  }
  const uint4 first = Load<uint4>(source);
  if constexpr (kDtype == Dtype::kFloat32) {
    const uint4 second = Load<uint4>(source + 16);
    bits[0] = first.x, bits[1] = first.y, bits[2] = first.z, bits[3] = first.w;
    bits[4] = second.x, bits[5] = second.y, bits[6] = second.z, bits[7] = second.w;
  } else {
    bits[0] = first.x & 0xffffu, bits[1] = first.x >> 16, bits[2] = first.y & 0xffffu, bits[3] = first.y >> 16;
    bits[4] = first.z & 0xffffu, bits[5] = first.z >> 16, bits[6] = first.w & 0xffffu, bits[7] = first.w >> 16;
  }
}

// Eight neighbouring elements, 16 bytes at a time where the target is aligned to them.
template <Dtype kDtype>
__device__ __forceinline__ void StoreEight(std::byte* target, const uint32_t (&bits)[8]) {
  if constexpr (kDtype == Dtype::kFloat32) {
    if (IsAligned(target, 16)) {
      Store(target, make_uint4(bits[0], bits[1], bits[2], bits[3]));
      Store(target + 16, make_uint4(bits[4], bits[5], bits[6], bits[7]));
      return;
    }
  } else if (IsAligned(target, 16)) {
    Store(target, make_uint4(bits[0] | bits[1] << 16, bits[2] | bits[3] << 16, bits[4] | bits[5] << 16,
                             bits[6] | bits[7] << 16));
    return;
  }
  using Bits = typename ElementBits<kDtype>::Type;
  NQKV_UNROLL
  for (uint32_t i = 0; i < 8; ++i) Store(target + i * sizeof(Bits), static_cast<Bits>(bits[i]));
}

}  // namespace nqkv::device
