#include "service/callers.h"

#include <algorithm>

namespace nqkv {
namespace {

constexpr size_t kForgetAtMin = 64;

}  // namespace

Callers::Callers(std::shared_ptr<ByteBudget> payload, std::shared_ptr<ByteBudget> reserved)
    : payload_(std::move(payload)), reserved_(std::move(reserved)), forget_at_(kForgetAtMin) {}

Caller Callers::Find(const Tenant& tenant, absl::string_view connection) {
  MutexLock lock(&mutex_);
  if (connections_.size() >= forget_at_) ForgetIdle();
  std::weak_ptr<Share>& remembered = connections_[ConnectionName(tenant.id, std::string(connection))];
  std::shared_ptr<Share> share = remembered.lock();
  if (share == nullptr) {
    const std::shared_ptr<Share> whole = FindTenant(tenant.id);
    share.reset(new Share{.payload = ByteBudget({whole, &whole->payload}, kConnectionWeight),
                          .reserved = ByteBudget({whole, &whole->reserved}, kConnectionWeight)});
    remembered = share;
  }
  return {.tenant = tenant, .payload = {share, &share->payload}, .reserved = {share, &share->reserved}};
}

std::shared_ptr<Callers::Share> Callers::FindTenant(TenantId tenant) {
  std::shared_ptr<Share>& share = tenants_[tenant];
  if (share == nullptr) {
    share.reset(
        new Share{.payload = ByteBudget(payload_, kTenantWeight), .reserved = ByteBudget(reserved_, kTenantWeight)});
  }
  return share;
}

// Each sweep pays for itself: as many connections must come as were left before the next.
void Callers::ForgetIdle() {
  for (auto it = connections_.begin(); it != connections_.end();) {
    const auto here = it++;
    if (here->second.expired()) connections_.erase(here);
  }
  forget_at_ = std::max(kForgetAtMin, 2 * connections_.size());
}

size_t Callers::connection_count() const {
  MutexLock lock(&mutex_);
  return connections_.size();
}

}  // namespace nqkv
