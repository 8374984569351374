// The service without a transport: its parts, and transports that are driven by tests.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "nqkv/v1/kv_cache.pb.h"
#include "service/cache_calls.h"
#include "service/call_environment.h"
#include "service/get_call.h"
#include "service/put_call.h"
#include "storage/mutex.h"
#include "tests/service/model_blocks.h"
#include "tests/support/turned_clock.h"

namespace nqkv {

struct FixtureOptions {
  uint64_t host_bytes = uint64_t{16} << 20;
  uint64_t in_flight_bytes = uint64_t{64} << 20;
  uint64_t reserved_bytes_max = 0;  // 0: a quarter of the store.
  size_t queue_max = 1'024;
  ServiceLimits limits;
};

// What a server has between its sockets and its memory.
class ServiceParts {
 public:
  explicit ServiceParts(FixtureOptions options = {});

  const CallEnvironment& environment() const { return environment_; }
  BlockStore& store() { return *store_; }
  LeaseTable& leases() { return *leases_; }
  PresenceWaiters& waiters() { return *waiters_; }
  TurnedClock& clock() { return clock_; }  // Of the leases.
  Metrics& metrics() { return metrics_; }
  const Tenant& tenant() const { return tenant_; }
  Caller CallerOf(absl::string_view connection) { return callers_->Find(tenant_, connection); }
  ByteBudget& reserved_budget() { return *reserved_budget_; }
  CacheCalls calls() const { return CacheCalls(&environment_); }

  // Opens a cache of ModelSpec(shape), NQKV4 g64 unless told otherwise.
  v1::OpenCacheResponse Open(const std::string& name, const ModelShape& shape = {}, v1::Codec codec = v1::CODEC_NQKV4,
                             const v1::ShardSpec& shard = {});

  // Nothing is held that a call should have given back: reservations, pins, bytes in flight; and the store is sound.
  // Waits for what a transport still has to let go.
  absl::Status CheckIdle();

 private:
  Tenant tenant_;
  Metrics metrics_;
  TurnedClock clock_;
  std::unique_ptr<BlockStore> store_;
  std::unique_ptr<LeaseTable> leases_;
  std::unique_ptr<PresenceWaiters> waiters_;
  std::unique_ptr<CacheRegistry> caches_;
  CallGate gate_{1'024, &metrics_};
  CallTimer timer_;
  std::shared_ptr<ByteBudget> reserved_budget_;
  std::unique_ptr<Callers> callers_;
  CallEnvironment environment_;
  std::unique_ptr<WorkerPool> workers_;
};

// A Put stream of given messages. Its events come from threads of its own, as a transport's do.
class FakePut final : public PutCall::Transport {
 public:
  // `piece_bytes` is how the messages are cut up; 0: not at all.
  FakePut(ServiceParts* parts, size_t piece_bytes = 0, absl::string_view connection = "client");
  ~FakePut() override;

  void Send(const v1::PutRequest& request) { SendBytes(request.SerializeAsString()); }
  void SendBytes(std::string message);
  void HalfClose();
  // The client goes.
  void Disconnect();
  // Writes do not end until they are let go.
  void HoldWrites();
  void ReleaseWrites();

  // The call's status.
  absl::Status Wait();
  bool finished();
  std::vector<v1::BlockPutResult> results();
  // Waits until so many have come.
  std::vector<v1::BlockPutResult> WaitForResults(size_t count);
  // Waits until all that was sent has been taken in.
  void WaitUntilTaken();

 private:
  void StartRead() override;
  void StartWrite(const v1::PutResponse& response) override;
  void Finish(const absl::Status& status) override;
  void Cancel() override;
  void Deliver() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const size_t piece_bytes_;
  Mutex mutex_;
  std::condition_variable_any changed_;
  std::vector<std::string> messages_ ABSL_GUARDED_BY(mutex_);
  size_t next_ ABSL_GUARDED_BY(mutex_) = 0;
  bool half_closed_ ABSL_GUARDED_BY(mutex_) = false;
  bool read_pending_ ABSL_GUARDED_BY(mutex_) = false;
  bool hold_writes_ ABSL_GUARDED_BY(mutex_) = false;
  bool write_held_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<v1::BlockPutResult> results_ ABSL_GUARDED_BY(mutex_);
  std::optional<absl::Status> status_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<PutCall> call_;
  WorkerPool threads_{2, 100'000};  // Ends first: its tasks use the rest.
};

// What one key of a Get came to.
struct GotBlock {
  v1::BlockGetResult result;
  std::string payload;
};

// A Get stream.
class FakeGet final : public GetCall::Transport {
 public:
  explicit FakeGet(ServiceParts* parts, absl::string_view connection = "client");
  ~FakeGet() override;

  void Start(const v1::GetRequest& request);
  void Disconnect();
  // Writes do not end until they are let go; the messages stay in memory as they would in a transport.
  void HoldWrites();
  void ReleaseWrites();
  // Waits until a write is held.
  void WaitForHeldWrite();

  absl::Status Wait();
  bool finished();
  // By index of the key.
  std::vector<GotBlock> blocks();
  size_t message_count();
  size_t largest_message_bytes();
  bool was_cancelled();

 private:
  void StartWrite(OutgoingMessage message) override;
  void Finish(const absl::Status& status) override;
  void Cancel() override;
  void EndHeldWrite(bool ok) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Caller caller_;
  Mutex mutex_;
  std::condition_variable_any changed_;
  bool hold_writes_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<OutgoingMessage> held_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::string> messages_ ABSL_GUARDED_BY(mutex_);
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<absl::Status> status_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<GetCall> call_;
  WorkerPool threads_{2, 100'000};
};

// Puts whole blocks and waits for their results.
std::vector<v1::BlockPutResult> PutAll(ServiceParts* parts, const v1::OpenCacheResponse& cache,
                                       const std::vector<PutBlock>& blocks);
// Gets keys and waits for the blocks. The call must end OK.
std::vector<GotBlock> GetAll(ServiceParts* parts, const v1::GetRequest& request);
v1::GetRequest GetRequestOf(const v1::OpenCacheResponse& cache, const std::vector<std::string>& keys);

}  // namespace nqkv
