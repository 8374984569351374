#include "absl/status/status.h"
#include "kernels/device_codec.h"
#include "kernels/status_macros.h"

namespace nqkv {

absl::Status EncodeOnDevice(const DeviceEncodeArgs& args, StreamView stream) {
  NQKV_RETURN_IF_ERROR(CheckDeviceEncode(args));
  return args.codec.id == CodecId::kRaw ? RawEncodeOnDevice(args, stream) : Nqkv4EncodeOnDevice(args, stream);
}

absl::Status DecodeOnDevice(const DeviceDecodeArgs& args, StreamView stream) {
  NQKV_RETURN_IF_ERROR(CheckDeviceDecode(args));
  return args.codec.id == CodecId::kRaw ? RawDecodeOnDevice(args, stream) : Nqkv4DecodeOnDevice(args, stream);
}

}  // namespace nqkv
