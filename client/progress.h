// A progress bar on stderr, for what takes longer than a second, when stderr is a terminal.
#pragma once

#include <cstdint>
#include <string>

#include "client/retry.h"

namespace nqkv::client {

// Not thread-safe.
class Progress {
 public:
  // `total` above 0; `clock` must outlive it.
  Progress(std::string label, uint64_t total, Clock* clock = Clock::Real());
  Progress(std::string label, uint64_t total, Clock* clock, int file, bool terminal);
  // Wipes the bar.
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void Update(uint64_t done);

 private:
  void Write(const std::string& text);

  std::string label_;
  uint64_t total_;
  Clock* clock_;
  int file_;
  bool terminal_;
  TimePoint begin_;
  TimePoint drawn_;
  bool visible_ = false;
};

}  // namespace nqkv::client
