// What every call works with. Plain pointers to what the server owns and outlives all calls.
#pragma once

#include <memory>

#include "service/byte_budget.h"
#include "service/cache_registry.h"
#include "service/call_gate.h"
#include "service/call_timer.h"
#include "service/callers.h"
#include "service/metrics.h"
#include "service/options.h"
#include "service/presence_waiters.h"
#include "service/tenants.h"
#include "service/worker_pool.h"
#include "storage/block_store.h"
#include "storage/lease_table.h"

namespace nqkv {

struct CallEnvironment {
  BlockStore* store = nullptr;
  LeaseTable* leases = nullptr;
  PresenceWaiters* waiters = nullptr;
  CacheRegistry* caches = nullptr;
  std::shared_ptr<ByteBudget> budget;  // Of payload in flight, over all callers.
  Callers* callers = nullptr;
  WorkerPool* workers = nullptr;
  CallGate* gate = nullptr;
  CallTimer* timer = nullptr;
  Metrics* metrics = nullptr;
  ServiceLimits limits;
};

}  // namespace nqkv
