#include "client/progress.h"

#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace nqkv::client {
namespace {

constexpr std::chrono::seconds kQuiet{1};
constexpr std::chrono::milliseconds kRedraw{100};
constexpr uint64_t kWidth = 30;

}  // namespace

Progress::Progress(std::string label, uint64_t total, Clock* clock)
    : Progress(std::move(label), total, clock, STDERR_FILENO, isatty(STDERR_FILENO) == 1) {}

Progress::Progress(std::string label, uint64_t total, Clock* clock, int file, bool terminal)
    : label_(std::move(label)),
      total_(total),
      clock_(clock),
      file_(file),
      terminal_(terminal),
      begin_(clock->Now()),
      drawn_(begin_) {}

Progress::~Progress() {
  if (visible_) Write("\r\x1b[K");
}

void Progress::Update(uint64_t done) {
  const TimePoint now = clock_->Now();
  if (!terminal_ || now - begin_ < kQuiet || (visible_ && now - drawn_ < kRedraw)) return;
  done = std::min(done, total_);
  const uint64_t filled = done * kWidth / total_;
  Write(absl::StrCat("\r\x1b[K", label_, " [", std::string(filled, '#'), std::string(kWidth - filled, ' '), "] ",
                     done * 100 / total_, " %"));
  drawn_ = now;
  visible_ = true;
}

void Progress::Write(const std::string& text) {
  // A bar that cannot be drawn is no reason to fail.
  [[maybe_unused]] const ssize_t written = write(file_, text.data(), text.size());
}

}  // namespace nqkv::client
