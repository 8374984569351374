// Who is calling over which connection, and the budgets that their calls take from.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"
#include "service/byte_budget.h"
#include "service/tenants.h"
#include "storage/mutex.h"

namespace nqkv {

// One call's side of it. Its budgets are those of its connection: all calls of the connection share them.
struct Caller {
  Tenant tenant;
  std::shared_ptr<ByteBudget> payload;   // Messages and buffers outside the arena.
  std::shared_ptr<ByteBudget> reserved;  // Memory of the store for blocks that are not whole yet.
};

// Thread-safe. Splits what all may hold: a tenant holds at most 4 times what is left for other tenants, a connection
// at most what its tenant has left for other connections. Connections are told apart by what the transport calls its
// peer: those over the Unix socket have one name between them, and so one share.
class Callers {
 public:
  static constexpr uint32_t kTenantWeight = 4;
  static constexpr uint32_t kConnectionWeight = 1;

  // The budgets that all callers share.
  Callers(std::shared_ptr<ByteBudget> payload, std::shared_ptr<ByteBudget> reserved);

  // The budgets of a connection live as long as somebody holds them.
  Caller Find(const Tenant& tenant, absl::string_view connection) ABSL_LOCKS_EXCLUDED(mutex_);

  // Connections that are remembered; for tests.
  size_t connection_count() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Share {
    ByteBudget payload;
    ByteBudget reserved;
  };
  using ConnectionName = std::pair<TenantId, std::string>;

  std::shared_ptr<Share> FindTenant(TenantId tenant) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ForgetIdle() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::shared_ptr<ByteBudget> payload_;
  const std::shared_ptr<ByteBudget> reserved_;
  mutable Mutex mutex_;
  absl::flat_hash_map<TenantId, std::shared_ptr<Share>> tenants_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<ConnectionName, std::weak_ptr<Share>> connections_ ABSL_GUARDED_BY(mutex_);
  size_t forget_at_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace nqkv
