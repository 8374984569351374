#include "service/lease_sweeper.h"

#include <chrono>

namespace nqkv {
namespace {

// Nobody reads under a lease that is due: this only says how much longer its memory stays.
constexpr std::chrono::milliseconds kPeriod{100};

}  // namespace

LeaseSweeper::LeaseSweeper(LeaseTable* leases) : leases_(leases), thread_([this] { Run(); }) {}

LeaseSweeper::~LeaseSweeper() {
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void LeaseSweeper::Run() {
  while (WaitForNext()) {
    while (leases_->Sweep()) {
    }
  }
}

bool LeaseSweeper::WaitForNext() {
  const auto due = std::chrono::steady_clock::now() + kPeriod;
  MutexLock lock(&mutex_);
  while (!stopping_ && std::chrono::steady_clock::now() < due) changed_.wait_until(mutex_, due);
  return !stopping_;
}

}  // namespace nqkv
