// What stands for the device where NQKV is built without CUDA: nothing can be created, so nothing else is called.
#include "absl/status/status.h"
#include "kernels/device_codec.h"
#include "kernels/device_memory.h"
#include "kernels/stream.h"

namespace nqkv {

namespace {

absl::Status NoCuda() { return absl::UnavailableError("built without CUDA"); }

}  // namespace

absl::StatusOr<Stream> Stream::Create() { return NoCuda(); }
Stream::~Stream() {}
absl::Status Stream::Wait() const { return NoCuda(); }

absl::StatusOr<Event> Event::Create() { return NoCuda(); }
Event::~Event() {}
absl::Status Event::Record(StreamView) { return NoCuda(); }
absl::Status Event::Delay(StreamView) const { return NoCuda(); }
absl::StatusOr<bool> Event::Passed() const { return NoCuda(); }
absl::Status Event::Wait() const { return NoCuda(); }

absl::StatusOr<DeviceInfo> FindDevice() { return NoCuda(); }
absl::StatusOr<DeviceMemory> DeviceMemory::Allocate(size_t) { return NoCuda(); }
DeviceMemory::~DeviceMemory() {}
absl::StatusOr<PinnedMemory> PinnedMemory::Allocate(size_t) { return NoCuda(); }
PinnedMemory::~PinnedMemory() {}
absl::Status CopyToDevice(std::byte*, const std::byte*, size_t, StreamView) { return NoCuda(); }
absl::Status CopyToHost(std::byte*, const std::byte*, size_t, StreamView) { return NoCuda(); }
absl::Status CopyOnDevice(std::byte*, const std::byte*, size_t, StreamView) { return NoCuda(); }

absl::Status EncodeOnDevice(const DeviceEncodeArgs&, StreamView) { return NoCuda(); }
absl::Status DecodeOnDevice(const DeviceDecodeArgs&, StreamView) { return NoCuda(); }
absl::Status Crc32cOnDevice(const DeviceCrcJob*, uint32_t, StreamView) { return NoCuda(); }

}  // namespace nqkv
