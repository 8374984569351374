#include "kernels/stream.h"

#include "kernels/cuda_status.h"
#include "kernels/status_macros.h"

namespace nqkv {

namespace {

cudaStream_t ToCuda(StreamView stream) { return static_cast<cudaStream_t>(stream.handle()); }
cudaEvent_t ToCuda(void* event) { return static_cast<cudaEvent_t>(event); }

}  // namespace

absl::StatusOr<Stream> Stream::Create() {
  cudaStream_t stream = nullptr;
  NQKV_RETURN_IF_ERROR(CudaStatus(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "create a stream"));
  return Stream(StreamView(stream));
}

Stream::~Stream() {
  if (view_ != StreamView()) cudaStreamDestroy(ToCuda(view_));
}

absl::Status Stream::Wait() const { return CudaStatus(cudaStreamSynchronize(ToCuda(view_)), "wait for a stream"); }

absl::StatusOr<Event> Event::Create() {
  cudaEvent_t event = nullptr;
  NQKV_RETURN_IF_ERROR(CudaStatus(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "create an event"));
  return Event(event);
}

Event::~Event() {
  if (handle_ != nullptr) cudaEventDestroy(ToCuda(handle_));
}

absl::Status Event::Record(StreamView stream) {
  return CudaStatus(cudaEventRecord(ToCuda(handle_), ToCuda(stream)), "record an event");
}

absl::Status Event::Delay(StreamView stream) const {
  return CudaStatus(cudaStreamWaitEvent(ToCuda(stream), ToCuda(handle_), 0), "delay a stream");
}

absl::StatusOr<bool> Event::Passed() const {
  const cudaError_t error = cudaEventQuery(ToCuda(handle_));
  if (error == cudaErrorNotReady) return false;
  NQKV_RETURN_IF_ERROR(CudaStatus(error, "look at an event"));
  return true;
}

absl::Status Event::Wait() const { return CudaStatus(cudaEventSynchronize(ToCuda(handle_)), "wait for an event"); }

}  // namespace nqkv
