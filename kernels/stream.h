// CUDA's streams and events without CUDA's types: whoever includes this builds without CUDA too.
//
// Where NQKV is built without CUDA, or there is no device, creating any of these is UNAVAILABLE and says which.
#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

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

// Owns a stream that waits for no other. Work that is still queued when it goes is done all the same. Thread-safe.
class Stream {
 public:
  static absl::StatusOr<Stream> Create();
  Stream(Stream&& other) noexcept : view_(std::exchange(other.view_, {})) {}
  Stream& operator=(Stream&& other) noexcept {
    std::swap(view_, other.view_);
    return *this;
  }
  ~Stream();

  StreamView view() const { return view_; }
  // Until everything enqueued so far is done. INTERNAL when some of it failed; the device is unusable then.
  absl::Status Wait() const;

 private:
  explicit Stream(StreamView view) : view_(view) {}

  StreamView view_;
};

// Owns an event: a point in a stream. Not thread-safe.
class Event {
 public:
  static absl::StatusOr<Event> Create();
  Event(Event&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Event& operator=(Event&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Event();

  // Moves the event behind what `stream` holds now.
  absl::Status Record(StreamView stream);
  // What is enqueued on `stream` from now on waits for the event as last recorded; the caller does not.
  absl::Status Delay(StreamView stream) const;
  // True when the event has been passed, or was never recorded.
  absl::StatusOr<bool> Passed() const;
  absl::Status Wait() const;

 private:
  explicit Event(void* handle) : handle_(handle) {}

  void* handle_ = nullptr;  // A cudaEvent_t.
};

}  // namespace nqkv
