// Pins blocks from a lookup to the load that follows, and knows who is to blame for each pin.
//
// A lease belongs to a tenant and, where it was asked for in one, to a session. It ends when it is released, when its
// deadline passes, when a repeat of its request replaces it, or when its session ends; from then on nobody can read
// under it. Its pins go at once, or with the last read that runs under it: a lease never lapses under a read, and each
// read gives it its whole duration anew.
//
// A session lives as long as it is heard of: `session_grace` after the last time it ends by itself. Many leases may end
// at once then, so Sweep works in small steps.
//
// Thread-safe. Pins are dropped outside the lock. Time is the clock's; should it go back, it stands still here.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/btree_map.h"
#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "storage/block_handle.h"
#include "storage/block_key.h"
#include "storage/clock.h"
#include "storage/mutex.h"

namespace nqkv {

struct LeaseLimits {
  uint32_t sessions_max = 4'096;
  uint32_t leases_max = 65'536;
  uint64_t parts_max = uint64_t{1} << 20;  // Pins of all leases together.
  uint64_t tenant_bytes_max = UINT64_MAX;  // That a tenant's leases pin; a part counts once, however many pin it.
  std::chrono::nanoseconds session_grace = std::chrono::seconds(15);
};

enum class LeaseEnd : uint8_t { kReleased, kExpired, kReplaced, kOrphaned };
inline constexpr size_t kLeaseEndCount = 4;

struct LeaseStats {
  uint64_t sessions = 0;
  uint64_t leases = 0;  // That can be read under, and those of ended sessions that no step has come to yet.
  uint64_t reads = 0;   // That run under leases.
  uint64_t parts = 0;   // Pins, those of ended leases that are being read under included.
  uint64_t bytes = 0;   // Stored bytes pinned; each part once.
  uint64_t granted_total = 0;
  uint64_t refused_total = 0;
  std::array<uint64_t, kLeaseEndCount> ended_total = {};  // By LeaseEnd.
  uint64_t sessions_opened_total = 0;
  uint64_t sessions_closed_total = 0;  // By their owner.
  uint64_t sessions_lapsed_total = 0;  // Not heard of any more.
};

struct SessionInfo {
  std::string id;
  TenantId tenant = 0;
  std::string owner;
  std::chrono::nanoseconds age = {};
  std::chrono::nanoseconds silence = {};  // Since it was last heard of.
  uint64_t leases = 0;
};

struct LeaseInfo {
  uint64_t number = 0;  // Rises from lease to lease.
  TenantId tenant = 0;
  CacheId cache = 0;
  std::string session_id;  // Empty: none.
  std::string request_id;
  std::chrono::nanoseconds left = {};  // Until its deadline, were no read to run.
  uint32_t reads = 0;                  // Running.
  uint64_t parts = 0;
  uint64_t stored_bytes = 0;
};

class LeaseTable {
 private:
  struct Lease;

 public:
  // `clock` must outlive the table.
  LeaseTable(const LeaseLimits& limits, const Clock* clock);
  // Drops all pins. Precondition: no Hold is left.
  ~LeaseTable();

  // Who speaks for a session: the latest to have opened or resumed it.
  struct Speaker {
    TenantId tenant = 0;
    std::string session_id;
    uint64_t turn = 0;
  };
  // `owner` is for lists.
  //
  // Errors:
  //   RESOURCE_EXHAUSTED   sessions_max are there.
  absl::StatusOr<Speaker> OpenSession(TenantId tenant, absl::string_view owner) ABSL_LOCKS_EXCLUDED(mutex_);
  // Takes over a session that has not ended.
  //
  // Errors:
  //   ABORTED              no such session of the tenant, or it has ended.
  absl::StatusOr<Speaker> ResumeSession(TenantId tenant, absl::string_view session_id) ABSL_LOCKS_EXCLUDED(mutex_);
  // The session is heard of.
  //
  // Errors:
  //   ABORTED              it has ended, or somebody else speaks for it by now.
  absl::Status Hear(const Speaker& speaker) ABSL_LOCKS_EXCLUDED(mutex_);
  // Ends the session, unless somebody else speaks for it by now.
  void CloseSession(const Speaker& speaker) ABSL_LOCKS_EXCLUDED(mutex_);

  struct Request {
    TenantId tenant = 0;
    CacheId cache = 0;
    std::string session_id;  // Empty: none.
    std::string request_id;  // Empty: nothing is replaced, by this or later.
    std::chrono::nanoseconds duration = {};
  };
  // Leases `blocks` in place of what the session's request leased before; that stays when this is refused. The token
  // names the request's lease: one that was given before reads under the new lease, but does not release it. No blocks,
  // no lease: the token is empty then.
  //
  // Errors:
  //   ABORTED              the session has ended.
  //   RESOURCE_EXHAUSTED   a limit is reached, which is named.
  absl::StatusOr<std::string> Grant(const Request& request, std::vector<BlockHandle> blocks)
      ABSL_LOCKS_EXCLUDED(mutex_);

  // A read under a lease. Move-only; must not outlive the table.
  class Hold {
   public:
    Hold() = default;
    Hold(Hold&& other) noexcept : table_(std::exchange(other.table_, nullptr)), lease_(std::move(other.lease_)) {}
    Hold& operator=(Hold&& other) noexcept;
    ~Hold() { Reset(); }
    void Reset();

   private:
    friend class LeaseTable;
    Hold(LeaseTable* table, std::shared_ptr<Lease> lease) : table_(table), lease_(std::move(lease)) {}
    LeaseTable* table_ = nullptr;
    std::shared_ptr<Lease> lease_;
  };
  // Errors:
  //   ABORTED              no such lease of the tenant, or it has ended: look up again.
  absl::StatusOr<Hold> BeginRead(TenantId tenant, absl::string_view token) ABSL_LOCKS_EXCLUDED(mutex_);

  // False: no such lease, it has ended, or a later lookup of its request has replaced it.
  bool Release(TenantId tenant, absl::string_view token) ABSL_LOCKS_EXCLUDED(mutex_);

  // Ends sessions and leases whose time has passed, and leases of ended sessions, a few of each. True: there are more.
  bool Sweep() ABSL_LOCKS_EXCLUDED(mutex_);

  LeaseStats Stats() const ABSL_LOCKS_EXCLUDED(mutex_);
  std::vector<SessionInfo> ListSessions() const ABSL_LOCKS_EXCLUDED(mutex_);
  // Up to `count_max`, by number, from the first one after `after`.
  std::vector<LeaseInfo> ListLeases(uint64_t after, size_t count_max) const ABSL_LOCKS_EXCLUDED(mutex_);

  // Walks everything and compares with the counts; for tests. INTERNAL names what differs.
  absl::Status CheckConsistency() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  using Time = std::chrono::nanoseconds;
  using Pins = std::vector<PartPin>;
  using Timed = std::pair<Time, uint64_t>;  // When, and the number of the session or lease.

  struct Session {
    TenantId tenant = 0;
    std::string owner;
    uint64_t turn = 0;
    Time opened = {};
    Time heard = {};
    absl::flat_hash_set<uint64_t> leases;
  };
  struct RequestName {
    TenantId tenant = 0;
    uint64_t session = 0;
    std::string request_id;
    bool operator==(const RequestName&) const = default;
    template <typename H>
    friend H AbslHashValue(H state, const RequestName& name) {
      return H::combine(std::move(state), name.tenant, name.session, name.request_id);
    }
  };
  struct Token {
    uint64_t lease = 0;
    uint32_t grant = 0;
  };

  std::string ToString(const Token& token) const;
  bool Parse(absl::string_view text, Token* token) const;
  std::string SessionId(uint64_t session) const;

  Time Now() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Null when there is none, it is another tenant's, or its time has passed.
  Session* FindSession(TenantId tenant, absl::string_view id, uint64_t* number) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::shared_ptr<Lease> FindLease(TenantId tenant, const Token& token) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status CheckLimits(TenantId tenant, bool replaces) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Hear(uint64_t number, Session* session) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void EndSession(uint64_t number) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Insert(std::shared_ptr<Lease> lease) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The lease's pins, for the caller to drop, unless a read keeps them.
  Pins EndLease(uint64_t number, LeaseEnd end) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void EndRead(const std::shared_ptr<Lease>& lease) ABSL_LOCKS_EXCLUDED(mutex_);
  void CountPins(const Lease& lease) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void UncountPins(const Lease& lease) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const LeaseLimits limits_;
  const Clock* const clock_;
  const uint64_t start_;  // In each id and token: one of an earlier start names nothing.

  mutable Mutex mutex_;
  mutable Time now_ ABSL_GUARDED_BY(mutex_) = {};
  uint64_t last_number_ ABSL_GUARDED_BY(mutex_) = 0;  // Of a session or lease.
  absl::btree_map<uint64_t, Session> sessions_ ABSL_GUARDED_BY(mutex_);
  absl::btree_set<Timed> session_ends_ ABSL_GUARDED_BY(mutex_);
  std::deque<Session> ended_sessions_ ABSL_GUARDED_BY(mutex_);  // Whose leases wait for a step.
  absl::btree_map<uint64_t, std::shared_ptr<Lease>> leases_ ABSL_GUARDED_BY(mutex_);
  absl::btree_set<Timed> lease_ends_ ABSL_GUARDED_BY(mutex_);            // Of those without a read.
  absl::flat_hash_set<const Lease*> lingering_ ABSL_GUARDED_BY(mutex_);  // Ended, and kept by reads.
  absl::flat_hash_map<RequestName, uint64_t> requests_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<uint32_t, uint32_t> slots_ ABSL_GUARDED_BY(mutex_);  // Pins of each slot that is pinned.
  absl::flat_hash_map<TenantId, uint64_t> tenant_bytes_ ABSL_GUARDED_BY(mutex_);
  LeaseStats stats_ ABSL_GUARDED_BY(mutex_);  // All but sessions and leases.
};

}  // namespace nqkv
