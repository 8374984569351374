#include "absl/status/status.h"
#include "kernels/device_codec.h"
#include "kernels/status_macros.h"

namespace nqkv {

absl::Status EncodeOnDevice(const DeviceEncodeArgs& args, StreamView stream) {
  NQKV_RETURN_IF_ERROR(CheckDeviceEncode(args));
  switch (args.codec.id) {
    case CodecId::kRaw:
      return RawEncodeOnDevice(args, stream);
    case CodecId::kQ8:
      return Q8EncodeOnDevice(args, stream);
    case CodecId::kNqkv4h:
      return Nqkv4hEncodeOnDevice(args, stream);
    default:
      return Nqkv4EncodeOnDevice(args, stream);
  }
}

absl::Status DecodeOnDevice(const DeviceDecodeArgs& args, StreamView stream) {
  NQKV_RETURN_IF_ERROR(CheckDeviceDecode(args));
  switch (args.codec.id) {
    case CodecId::kRaw:
      return RawDecodeOnDevice(args, stream);
    case CodecId::kQ8:
      return Q8DecodeOnDevice(args, stream);
    case CodecId::kNqkv4h:
      return Nqkv4hDecodeOnDevice(args, stream);
    default:
      return Nqkv4DecodeOnDevice(args, stream);
  }
}

}  // namespace nqkv
