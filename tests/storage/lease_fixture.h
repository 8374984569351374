// A store with blocks to lease, and a table on a clock that tests turn.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "storage/block_store.h"
#include "storage/lease_table.h"
#include "tests/support/turned_clock.h"

namespace nqkv {

class LeaseFixture {
 public:
  static constexpr uint64_t kBlockBytes = 4'096;
  static constexpr PartRange kRange = {.layer_begin = 0, .layer_end = 2, .head_begin = 0, .head_end = 2};

  explicit LeaseFixture(const LeaseLimits& limits = {}, uint64_t host_bytes = uint64_t{8} << 20)
      : store_(*BlockStore::Create({.host_bytes = host_bytes, .bytes_per_slot = 4'096})), table_(limits, &clock_) {}

  static BlockKey KeyOf(int block, TenantId tenant = 0) {
    return *BlockKey::Create(tenant, 1, 0, absl::StrCat("block-", block));
  }
  bool Put(int block, TenantId tenant = 0) {
    auto reservation = store_->Reserve(KeyOf(block, tenant), kRange, kBlockBytes);
    if (!reservation.ok()) return false;
    std::memset(reservation->bytes().data(), block, kBlockBytes);
    return store_->Commit(*std::move(reservation), kBlockBytes, {.raw_bytes = kBlockBytes}).ok();
  }
  // Those of them that are present, pinned.
  std::vector<BlockHandle> Pin(const std::vector<int>& blocks, TenantId tenant = 0) {
    std::vector<BlockHandle> handles;
    for (const int block : blocks) {
      auto handle = store_->Get(KeyOf(block, tenant), kRange);
      if (handle.ok()) handles.push_back(*std::move(handle));
    }
    return handles;
  }
  void SweepAll() {
    while (table_.Sweep()) {
    }
  }

  BlockStore& store() { return *store_; }
  LeaseTable& table() { return table_; }
  TurnedClock& clock() { return clock_; }
  std::chrono::nanoseconds clock_now() const { return clock_.Now(); }

 private:
  TurnedClock clock_;
  const std::unique_ptr<BlockStore> store_;
  LeaseTable table_;  // Drops its pins before the store goes.
};

}  // namespace nqkv
