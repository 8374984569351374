#include "storage/lease_table.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <iterator>
#include <random>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "kernels/status_macros.h"

namespace nqkv {
namespace {

// What Sweep ends under one lock.
constexpr int kSweepSessions = 16;
constexpr int kSweepLeases = 64;

constexpr size_t kTokenBytes = 20;

uint64_t DrawStart() {
  std::random_device device;
  return uint64_t{device()} << 32 | device();
}

template <typename Number>
void AppendNumber(Number number, std::string* out) {
  out->append(reinterpret_cast<const char*>(&number), sizeof(number));
}

template <typename Number>
Number NumberAt(absl::string_view text, size_t offset) {
  Number number;
  std::memcpy(&number, text.data() + offset, sizeof(number));
  return number;
}

absl::Status SessionEnded() { return absl::AbortedError("the session has ended: open a new one"); }

}  // namespace

struct LeaseTable::Lease {
  uint64_t number = 0;
  uint32_t grant = 1;  // How often the request was granted a lease of this number.
  RequestName name;
  CacheId cache = 0;
  Time duration = {};
  Time deadline = {};
  uint32_t reads = 0;
  Pins pins;
  uint64_t stored_bytes = 0;
};

LeaseTable::LeaseTable(const LeaseLimits& limits, const Clock* clock)
    : limits_(limits), clock_(clock), start_(DrawStart()) {}

LeaseTable::~LeaseTable() {
  MutexLock lock(&mutex_);
  assert(stats_.reads == 0);
}

std::string LeaseTable::ToString(const Token& token) const {
  std::string text;
  text.reserve(kTokenBytes);
  AppendNumber(start_, &text);
  AppendNumber(token.lease, &text);
  AppendNumber(token.grant, &text);
  return text;
}

bool LeaseTable::Parse(absl::string_view text, Token* token) const {
  if (text.size() != kTokenBytes || NumberAt<uint64_t>(text, 0) != start_) return false;
  *token = {.lease = NumberAt<uint64_t>(text, 8), .grant = NumberAt<uint32_t>(text, 16)};
  return true;
}

std::string LeaseTable::SessionId(uint64_t session) const {
  return session == 0 ? "" : absl::StrCat(absl::Hex(start_, absl::kZeroPad16), "-", session);
}

LeaseTable::Time LeaseTable::Now() const {
  now_ = std::max(now_, clock_->Now());
  return now_;
}

absl::StatusOr<LeaseTable::Speaker> LeaseTable::OpenSession(TenantId tenant, absl::string_view owner) {
  MutexLock lock(&mutex_);
  if (sessions_.size() >= limits_.sessions_max) {
    return absl::ResourceExhaustedError(absl::StrCat(limits_.sessions_max, " sessions are open already"));
  }
  const uint64_t number = ++last_number_;
  Session& session = sessions_[number];
  session = {.tenant = tenant, .owner = std::string(owner), .turn = 1, .opened = Now(), .heard = Now(), .leases = {}};
  session_ends_.insert({session.heard + limits_.session_grace, number});
  ++stats_.sessions_opened_total;
  return Speaker{.tenant = tenant, .session_id = SessionId(number), .turn = session.turn};
}

absl::StatusOr<LeaseTable::Speaker> LeaseTable::ResumeSession(TenantId tenant, absl::string_view session_id) {
  MutexLock lock(&mutex_);
  uint64_t number = 0;
  Session* session = FindSession(tenant, session_id, &number);
  if (session == nullptr) return SessionEnded();
  Hear(number, session);
  return Speaker{.tenant = tenant, .session_id = std::string(session_id), .turn = ++session->turn};
}

absl::Status LeaseTable::Hear(const Speaker& speaker) {
  MutexLock lock(&mutex_);
  uint64_t number = 0;
  Session* session = FindSession(speaker.tenant, speaker.session_id, &number);
  if (session == nullptr) return SessionEnded();
  if (session->turn != speaker.turn) return absl::AbortedError("the session was resumed by another stream");
  Hear(number, session);
  return absl::OkStatus();
}

void LeaseTable::CloseSession(const Speaker& speaker) {
  MutexLock lock(&mutex_);
  uint64_t number = 0;
  const Session* session = FindSession(speaker.tenant, speaker.session_id, &number);
  if (session == nullptr || session->turn != speaker.turn) return;
  ++stats_.sessions_closed_total;
  EndSession(number);
}

LeaseTable::Session* LeaseTable::FindSession(TenantId tenant, absl::string_view id, uint64_t* number) {
  const size_t dash = id.rfind('-');
  if (dash == absl::string_view::npos || !absl::SimpleAtoi(id.substr(dash + 1), number)) return nullptr;
  const auto found = sessions_.find(*number);
  if (found == sessions_.end() || SessionId(*number) != id || found->second.tenant != tenant) return nullptr;
  return found->second.heard + limits_.session_grace <= Now() ? nullptr : &found->second;
}

void LeaseTable::Hear(uint64_t number, Session* session) {
  session_ends_.erase({session->heard + limits_.session_grace, number});
  session->heard = Now();
  session_ends_.insert({session->heard + limits_.session_grace, number});
}

// Its leases cannot be found any more; Sweep ends them.
void LeaseTable::EndSession(uint64_t number) {
  const auto found = sessions_.find(number);
  session_ends_.erase({found->second.heard + limits_.session_grace, number});
  if (!found->second.leases.empty()) ended_sessions_.push_back(std::move(found->second));
  sessions_.erase(found);
}

absl::StatusOr<std::string> LeaseTable::Grant(const Request& request, std::vector<BlockHandle> blocks) {
  auto lease = std::make_shared<Lease>();
  lease->name = {.tenant = request.tenant, .session = 0, .request_id = request.request_id};
  lease->cache = request.cache;
  lease->duration = request.duration;
  for (BlockHandle& block : blocks) {
    Pins parts = std::move(block).TakeParts();
    for (const PartPin& part : parts) lease->stored_bytes += part.bytes().size();
    lease->pins.insert(lease->pins.end(), std::make_move_iterator(parts.begin()), std::make_move_iterator(parts.end()));
  }
  Pins dropped;  // After the lock.
  MutexLock lock(&mutex_);
  if (!request.session_id.empty() && FindSession(request.tenant, request.session_id, &lease->name.session) == nullptr) {
    return SessionEnded();
  }
  const auto before = request.request_id.empty() ? requests_.end() : requests_.find(lease->name);
  const uint64_t replaced = before == requests_.end() ? 0 : before->second;
  if (lease->pins.empty()) {
    if (replaced != 0) dropped = EndLease(replaced, LeaseEnd::kReplaced);
    return std::string();
  }
  // Counted as if it had been granted, since what it shares with the lease before costs nothing.
  CountPins(*lease);
  const std::shared_ptr<Lease> old = replaced == 0 ? nullptr : leases_.at(replaced);
  const bool old_goes = old != nullptr && old->reads == 0;
  if (old_goes) UncountPins(*old);
  const absl::Status status = CheckLimits(request.tenant, replaced != 0);
  if (old_goes) CountPins(*old);
  if (!status.ok()) {
    UncountPins(*lease);
    ++stats_.refused_total;
    dropped = std::move(lease->pins);
    return status;
  }
  lease->number = replaced == 0 ? ++last_number_ : replaced;
  if (old != nullptr) {
    lease->grant = old->grant + 1;
    dropped = EndLease(replaced, LeaseEnd::kReplaced);
  }
  lease->deadline = Now() + lease->duration;
  ++stats_.granted_total;
  std::string token = ToString({.lease = lease->number, .grant = lease->grant});
  Insert(std::move(lease));
  return token;
}

absl::Status LeaseTable::CheckLimits(TenantId tenant, bool replaces) const {
  if (!replaces && leases_.size() >= limits_.leases_max) {
    return absl::ResourceExhaustedError(absl::StrCat(limits_.leases_max, " leases are held already"));
  }
  if (stats_.parts > limits_.parts_max) {
    return absl::ResourceExhaustedError(
        absl::StrCat("all leases together would pin more than ", limits_.parts_max, " parts of blocks"));
  }
  if (tenant_bytes_.at(tenant) > limits_.tenant_bytes_max) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the tenant's leases would pin more than ", limits_.tenant_bytes_max, " bytes"));
  }
  return absl::OkStatus();
}

void LeaseTable::Insert(std::shared_ptr<Lease> lease) {
  const uint64_t number = lease->number;
  lease_ends_.insert({lease->deadline, number});
  if (!lease->name.request_id.empty()) requests_[lease->name] = number;
  if (lease->name.session != 0) sessions_.at(lease->name.session).leases.insert(number);
  leases_.emplace(number, std::move(lease));
}

LeaseTable::Pins LeaseTable::EndLease(uint64_t number, LeaseEnd end) {
  const auto found = leases_.find(number);
  const std::shared_ptr<Lease> lease = std::move(found->second);
  leases_.erase(found);
  if (!lease->name.request_id.empty()) requests_.erase(lease->name);
  const auto session = sessions_.find(lease->name.session);
  if (session != sessions_.end()) session->second.leases.erase(number);
  ++stats_.ended_total[static_cast<size_t>(end)];
  if (lease->reads > 0) {
    lingering_.insert(lease.get());
    return {};
  }
  lease_ends_.erase({lease->deadline, number});
  UncountPins(*lease);
  return std::move(lease->pins);
}

void LeaseTable::CountPins(const Lease& lease) {
  stats_.parts += lease.pins.size();
  uint64_t& tenant_bytes = tenant_bytes_[lease.name.tenant];
  for (const PartPin& pin : lease.pins) {
    if (++slots_[pin.slot()] > 1) continue;
    stats_.bytes += pin.bytes().size();
    tenant_bytes += pin.bytes().size();
  }
}

void LeaseTable::UncountPins(const Lease& lease) {
  stats_.parts -= lease.pins.size();
  uint64_t& tenant_bytes = tenant_bytes_[lease.name.tenant];
  for (const PartPin& pin : lease.pins) {
    const auto slot = slots_.find(pin.slot());
    if (--slot->second > 0) continue;
    slots_.erase(slot);
    stats_.bytes -= pin.bytes().size();
    tenant_bytes -= pin.bytes().size();
  }
}

// Null when it has ended, or its session has.
std::shared_ptr<LeaseTable::Lease> LeaseTable::FindLease(TenantId tenant, const Token& token) const {
  const auto found = leases_.find(token.lease);
  if (found == leases_.end()) return nullptr;
  const Lease& lease = *found->second;
  if (lease.name.tenant != tenant || token.grant > lease.grant) return nullptr;
  if (lease.reads == 0 && lease.deadline <= Now()) return nullptr;
  if (lease.name.session == 0) return found->second;
  const auto session = sessions_.find(lease.name.session);
  if (session == sessions_.end() || session->second.heard + limits_.session_grace <= Now()) return nullptr;
  return found->second;
}

absl::StatusOr<LeaseTable::Hold> LeaseTable::BeginRead(TenantId tenant, absl::string_view text) {
  Token token;
  std::shared_ptr<Lease> lease;
  MutexLock lock(&mutex_);
  if (Parse(text, &token)) lease = FindLease(tenant, token);
  if (lease == nullptr) return absl::AbortedError("the lease has ended: look up again");
  if (lease->reads++ == 0) lease_ends_.erase({lease->deadline, lease->number});
  ++stats_.reads;
  return Hold(this, std::move(lease));
}

LeaseTable::Hold& LeaseTable::Hold::operator=(Hold&& other) noexcept {
  if (this != &other) {
    Reset();
    table_ = std::exchange(other.table_, nullptr);
    lease_ = std::move(other.lease_);
  }
  return *this;
}

void LeaseTable::Hold::Reset() {
  if (table_ != nullptr) std::exchange(table_, nullptr)->EndRead(std::exchange(lease_, nullptr));
}

void LeaseTable::EndRead(const std::shared_ptr<Lease>& lease) {
  Pins dropped;  // After the lock.
  MutexLock lock(&mutex_);
  --stats_.reads;
  if (--lease->reads > 0) return;
  if (lingering_.erase(lease.get()) > 0) {
    UncountPins(*lease);
    dropped = std::move(lease->pins);
    return;
  }
  lease->deadline = std::max(lease->deadline, Now() + lease->duration);
  lease_ends_.insert({lease->deadline, lease->number});
}

bool LeaseTable::Release(TenantId tenant, absl::string_view text) {
  Pins dropped;  // After the lock.
  Token token;
  MutexLock lock(&mutex_);
  if (!Parse(text, &token)) return false;
  const std::shared_ptr<Lease> lease = FindLease(tenant, token);
  if (lease == nullptr || lease->grant != token.grant) return false;
  dropped = EndLease(token.lease, LeaseEnd::kReleased);
  return true;
}

bool LeaseTable::Sweep() {
  std::array<Pins, kSweepLeases> dropped;  // After the lock.
  MutexLock lock(&mutex_);
  const Time now = Now();
  const auto is_due = [now](const absl::btree_set<Timed>& ends) { return !ends.empty() && ends.begin()->first <= now; };
  for (int i = 0; i < kSweepSessions && is_due(session_ends_); ++i) {
    ++stats_.sessions_lapsed_total;
    EndSession(session_ends_.begin()->second);
  }
  size_t steps = 0;
  for (; steps < dropped.size() && !ended_sessions_.empty(); ++steps) {
    absl::flat_hash_set<uint64_t>& leases = ended_sessions_.front().leases;
    const uint64_t number = *leases.begin();
    leases.erase(leases.begin());
    // Unless its deadline came first.
    if (leases_.contains(number)) dropped[steps] = EndLease(number, LeaseEnd::kOrphaned);
    if (leases.empty()) ended_sessions_.pop_front();
  }
  for (; steps < dropped.size() && is_due(lease_ends_); ++steps) {
    dropped[steps] = EndLease(lease_ends_.begin()->second, LeaseEnd::kExpired);
  }
  return is_due(session_ends_) || !ended_sessions_.empty() || is_due(lease_ends_);
}

LeaseStats LeaseTable::Stats() const {
  MutexLock lock(&mutex_);
  LeaseStats stats = stats_;
  stats.sessions = sessions_.size();
  stats.leases = leases_.size();
  return stats;
}

std::vector<SessionInfo> LeaseTable::ListSessions() const {
  MutexLock lock(&mutex_);
  std::vector<SessionInfo> list;
  const Time now = Now();
  for (const auto& [number, session] : sessions_) {
    list.push_back({.id = SessionId(number),
                    .tenant = session.tenant,
                    .owner = session.owner,
                    .age = now - session.opened,
                    .silence = now - session.heard,
                    .leases = session.leases.size()});
  }
  return list;
}

std::vector<LeaseInfo> LeaseTable::ListLeases(uint64_t after, size_t count_max) const {
  MutexLock lock(&mutex_);
  std::vector<LeaseInfo> list;
  const Time now = Now();
  for (auto it = leases_.upper_bound(after); it != leases_.end() && list.size() < count_max; ++it) {
    const Lease& lease = *it->second;
    list.push_back({.number = lease.number,
                    .tenant = lease.name.tenant,
                    .cache = lease.cache,
                    .session_id = SessionId(lease.name.session),
                    .request_id = lease.name.request_id,
                    .left = std::max(Time(0), lease.deadline - now),
                    .reads = lease.reads,
                    .parts = lease.pins.size(),
                    .stored_bytes = lease.stored_bytes});
  }
  return list;
}

absl::Status LeaseTable::CheckConsistency() const {
  MutexLock lock(&mutex_);
  uint64_t parts = 0;
  uint64_t bytes = 0;
  uint64_t reads = 0;
  uint64_t waiting = 0;
  uint64_t named = 0;
  uint64_t in_sessions = 0;
  absl::flat_hash_map<uint32_t, uint32_t> slots;
  absl::flat_hash_map<TenantId, uint64_t> tenant_bytes;
  const auto walk = [&](const Lease& lease) {
    parts += lease.pins.size();
    reads += lease.reads;
    for (const PartPin& pin : lease.pins) {
      if (++slots[pin.slot()] > 1) continue;
      bytes += pin.bytes().size();
      tenant_bytes[lease.name.tenant] += pin.bytes().size();
    }
  };
  for (const auto& [number, lease] : leases_) {
    walk(*lease);
    waiting += lease->reads == 0 && lease_ends_.contains({lease->deadline, number});
    const auto request = requests_.find(lease->name);
    named += request != requests_.end() && request->second == number;
    const auto session = sessions_.find(lease->name.session);
    in_sessions += session != sessions_.end() && session->second.leases.contains(number);
  }
  uint64_t unread = 0;
  for (const auto& [number, lease] : leases_) unread += lease->reads == 0;
  for (const Lease* lease : lingering_) walk(*lease);
  uint64_t listed = 0;
  for (const auto& [number, session] : sessions_) listed += session.leases.size();
  const auto differs = [](absl::string_view what, uint64_t found, uint64_t counted) {
    return found == counted ? absl::OkStatus()
                            : absl::InternalError(absl::StrCat(what, ": found ", found, ", counted ", counted));
  };
  NQKV_RETURN_IF_ERROR(differs("leased parts", parts, stats_.parts));
  NQKV_RETURN_IF_ERROR(differs("leased bytes", bytes, stats_.bytes));
  NQKV_RETURN_IF_ERROR(differs("reads", reads, stats_.reads));
  NQKV_RETURN_IF_ERROR(differs("pinned slots", slots.size(), slots_.size()));
  NQKV_RETURN_IF_ERROR(differs("leases with a deadline", waiting, lease_ends_.size()));
  NQKV_RETURN_IF_ERROR(differs("leases without a read", unread, lease_ends_.size()));
  NQKV_RETURN_IF_ERROR(differs("requests", named, requests_.size()));
  NQKV_RETURN_IF_ERROR(differs("leases of sessions", in_sessions, listed));
  NQKV_RETURN_IF_ERROR(differs("sessions with a deadline", session_ends_.size(), sessions_.size()));
  for (const auto& [tenant, counted] : tenant_bytes_) {
    NQKV_RETURN_IF_ERROR(differs("bytes of a tenant", tenant_bytes[tenant], counted));
  }
  uint64_t ended = 0;
  for (const uint64_t count : stats_.ended_total) ended += count;
  return differs("leases granted", leases_.size() + ended, stats_.granted_total);
}

}  // namespace nqkv
