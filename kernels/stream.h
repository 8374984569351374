// A CUDA stream, without CUDA's types: whoever includes this builds without CUDA too.
#pragma once

namespace nqkv {

// Names a stream that somebody else owns. A plain value; what is enqueued on one stream runs in order.
class StreamView {
 public:
  StreamView() = default;
  // `handle`: a cudaStream_t.
  explicit StreamView(void* handle) : handle_(handle) {}

  void* handle() const { return handle_; }
  bool operator==(const StreamView&) const = default;

 private:
  void* handle_ = nullptr;
};

}  // namespace nqkv
