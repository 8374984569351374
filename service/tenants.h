// Who is calling. Every call is resolved to a tenant before it touches a cache or a budget.
#pragma once

#include <string>

#include "storage/block_key.h"

namespace nqkv {

struct Tenant {
  TenantId id = 0;
  std::string name = "default";
};

// Of a tenant that has called. There is one so far.
inline std::string TenantName(TenantId) { return Tenant().name; }

// Thread-safe. There is one tenant so far, whoever calls.
class Tenants {
 public:
  const Tenant& Resolve() const { return default_; }

 private:
  Tenant default_;
};

}  // namespace nqkv
