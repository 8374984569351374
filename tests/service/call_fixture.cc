#include "tests/service/call_fixture.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "spdlog/spdlog.h"

namespace nqkv {
namespace {

// A message in pieces of a given size, each in memory of its own, so that reading beyond one is seen by sanitizers.
class PieceMessage final : public IncomingMessage {
 public:
  PieceMessage(const std::string& bytes, size_t piece_bytes) {
    const size_t step = piece_bytes == 0 ? std::max<size_t>(bytes.size(), 1) : piece_bytes;
    for (size_t begin = 0; begin < bytes.size(); begin += step) {
      const size_t size = std::min(step, bytes.size() - begin);
      const auto* from = reinterpret_cast<const std::byte*>(bytes.data()) + begin;
      memory_.emplace_back(from, from + size);
    }
    for (const std::vector<std::byte>& piece : memory_) pieces_.push_back(piece);
  }
  std::span<const std::span<const std::byte>> pieces() const override { return pieces_; }

 private:
  std::vector<std::vector<std::byte>> memory_;
  std::vector<std::span<const std::byte>> pieces_;
};

std::string BytesOf(const OutgoingMessage& message) {
  return message.head + std::string(reinterpret_cast<const char*>(message.payload.data()), message.payload.size());
}

// A status of its own memory: Abseil counts references in a library that ThreadSanitizer does not see.
absl::Status Clone(const absl::Status& status) {
  absl::Status clone(status.code(), status.message());
  status.ForEachPayload([&clone](absl::string_view type, const absl::Cord& payload) {
    clone.SetPayload(type, absl::Cord(std::string(payload)));
  });
  return clone;
}

void Post(WorkerPool* threads, WorkerPool::Task task) { ASSERT_TRUE(threads->TryPost(std::move(task))); }

}  // namespace

ServiceParts::ServiceParts(FixtureOptions options) {
  spdlog::set_level(spdlog::level::off);
  store_ = *BlockStore::Create({.host_bytes = options.host_bytes});
  const CacheRegistry::Bounds bounds = {.spec = {.block_raw_bytes_max = store_->Stats().capacity_bytes,
                                                 .plane_raw_bytes_max = options.in_flight_bytes / 4},
                                        .caches_max = options.limits.caches_max,
                                        .shards_max = options.limits.shards_max,
                                        .bytes_max = options.limits.caches_bytes_max};
  caches_ = std::make_unique<CacheRegistry>(bounds, store_.get(), &metrics_);
  workers_ = std::make_unique<WorkerPool>(2, options.queue_max);
  const auto budget = std::make_shared<ByteBudget>(options.in_flight_bytes);
  const uint64_t quarter = store_->Stats().capacity_bytes / 4;
  reserved_budget_ =
      std::make_shared<ByteBudget>(options.reserved_bytes_max == 0 ? quarter : options.reserved_bytes_max);
  callers_ = std::make_unique<Callers>(budget, reserved_budget_);
  leases_ = std::make_unique<LeaseTable>(
      LeaseLimits{.sessions_max = options.limits.sessions_max,
                  .leases_max = options.limits.leases_max,
                  .tenant_bytes_max = options.limits.leased_bytes_max == 0 ? store_->Stats().capacity_bytes / 2
                                                                           : options.limits.leased_bytes_max,
                  .session_grace = absl::ToChronoNanoseconds(absl::Seconds(options.limits.session_grace_seconds))},
      &clock_);
  waiters_ = std::make_unique<PresenceWaiters>(options.limits.lookup_waiters_max);
  environment_ = {.store = store_.get(),
                  .leases = leases_.get(),
                  .waiters = waiters_.get(),
                  .caches = caches_.get(),
                  .budget = budget,
                  .callers = callers_.get(),
                  .workers = workers_.get(),
                  .gate = &gate_,
                  .timer = &timer_,
                  .metrics = &metrics_,
                  .limits = options.limits};
}

v1::OpenCacheResponse ServiceParts::Open(const std::string& name, const ModelShape& shape, v1::Codec codec,
                                         const v1::ShardSpec& shard) {
  v1::OpenCacheRequest request;
  request.set_name(name);
  *request.mutable_spec() = ModelSpec(shape);
  request.mutable_policy()->set_codec(codec);
  *request.mutable_shard() = shard;
  v1::OpenCacheResponse response;
  const absl::Status status = calls().OpenCache(tenant_, request, &response);
  EXPECT_TRUE(status.ok()) << status;
  return response;
}

absl::Status ServiceParts::CheckIdle() {
  const absl::Time deadline = absl::Now() + absl::Seconds(20);
  std::string held;
  do {
    const StoreStats stats = store_->Stats();
    held = absl::StrCat("reserved ", stats.reserved_bytes, ", pinned ", stats.pinned_parts, ", in flight ",
                        environment_.budget->used_bytes(), ", promised ", reserved_budget_->used_bytes());
    if (held == "reserved 0, pinned 0, in flight 0, promised 0") return store_->CheckConsistency();
    std::this_thread::yield();
  } while (absl::Now() < deadline);
  return absl::InternalError(held);
}

FakePut::FakePut(ServiceParts* parts, size_t piece_bytes, absl::string_view connection) : piece_bytes_(piece_bytes) {
  call_ = std::make_shared<PutCall>(&parts->environment(), this, parts->CallerOf(connection));
  call_->Start();
}

// As gRPC does: the transport goes when the call has finished and its read has ended.
FakePut::~FakePut() {
  Disconnect();
  Wait().IgnoreError();
}

void FakePut::SendBytes(std::string message) {
  MutexLock lock(&mutex_);
  messages_.push_back(std::move(message));
  Deliver();
}

void FakePut::HalfClose() {
  MutexLock lock(&mutex_);
  half_closed_ = true;
  Deliver();
}

void FakePut::Disconnect() {
  ReleaseWrites();
  Post(&threads_, [call = call_] { call->OnCancel(); });
  HalfClose();
}

void FakePut::HoldWrites() {
  MutexLock lock(&mutex_);
  hold_writes_ = true;
}

void FakePut::ReleaseWrites() {
  MutexLock lock(&mutex_);
  hold_writes_ = false;
  if (std::exchange(write_held_, false)) Post(&threads_, [call = call_] { call->OnWriteDone(true); });
}

// A write that hangs ends at once when its call is cancelled.
void FakePut::Cancel() {
  MutexLock lock(&mutex_);
  if (std::exchange(write_held_, false)) Post(&threads_, [call = call_] { call->OnWriteDone(false); });
}

void FakePut::WaitUntilTaken() {
  MutexLock lock(&mutex_);
  while ((next_ < messages_.size() || !read_pending_) && !status_.has_value()) changed_.wait(mutex_);
}

absl::Status FakePut::Wait() {
  MutexLock lock(&mutex_);
  while (!status_.has_value()) changed_.wait(mutex_);
  return *status_;
}

bool FakePut::finished() {
  MutexLock lock(&mutex_);
  return status_.has_value();
}

std::vector<v1::BlockPutResult> FakePut::results() {
  MutexLock lock(&mutex_);
  return results_;
}

std::vector<v1::BlockPutResult> FakePut::WaitForResults(size_t count) {
  MutexLock lock(&mutex_);
  while (results_.size() < count && !status_.has_value()) changed_.wait(mutex_);
  return results_;
}

void FakePut::StartRead() {
  MutexLock lock(&mutex_);
  read_pending_ = true;
  Deliver();
  changed_.notify_all();
}

void FakePut::Deliver() {
  if (!read_pending_) return;
  if (next_ < messages_.size()) {
    read_pending_ = false;
    Post(&threads_, [call = call_, message = messages_[next_++], pieces = piece_bytes_] {
      call->OnMessage(std::make_unique<PieceMessage>(message, pieces));
    });
  } else if (half_closed_) {
    read_pending_ = false;
    Post(&threads_, [call = call_] { call->OnReadsDone(); });
  }
}

void FakePut::StartWrite(const v1::PutResponse& response) {
  MutexLock lock(&mutex_);
  results_.insert(results_.end(), response.results().begin(), response.results().end());
  changed_.notify_all();
  if (hold_writes_) {
    write_held_ = true;
  } else {
    Post(&threads_, [call = call_] { call->OnWriteDone(true); });
  }
}

void FakePut::Finish(const absl::Status& status) {
  MutexLock lock(&mutex_);
  EXPECT_FALSE(status_.has_value()) << "finished twice";
  EXPECT_FALSE(write_held_) << "finished during a write";
  status_ = Clone(status);
  changed_.notify_all();
}

FakeGet::FakeGet(ServiceParts* parts, absl::string_view connection)
    : caller_(parts->CallerOf(connection)), call_(std::make_shared<GetCall>(&parts->environment(), this)) {}

FakeGet::~FakeGet() {
  Disconnect();
  Wait().IgnoreError();
}

void FakeGet::Start(const v1::GetRequest& request) { call_->Start(caller_, request); }

void FakeGet::Disconnect() {
  MutexLock lock(&mutex_);
  EndHeldWrite(false);
  Post(&threads_, [call = call_] { call->OnCancel(); });
}

void FakeGet::HoldWrites() {
  MutexLock lock(&mutex_);
  hold_writes_ = true;
}

void FakeGet::ReleaseWrites() {
  MutexLock lock(&mutex_);
  hold_writes_ = false;
  EndHeldWrite(true);
}

void FakeGet::WaitForHeldWrite() {
  MutexLock lock(&mutex_);
  while (!held_.has_value() && !status_.has_value()) changed_.wait(mutex_);
}

absl::Status FakeGet::Wait() {
  MutexLock lock(&mutex_);
  while (!status_.has_value()) changed_.wait(mutex_);
  return *status_;
}

bool FakeGet::finished() {
  MutexLock lock(&mutex_);
  return status_.has_value();
}

std::vector<GotBlock> FakeGet::blocks() {
  MutexLock lock(&mutex_);
  std::vector<GotBlock> blocks;
  for (const std::string& bytes : messages_) {
    v1::GetResponse response;
    EXPECT_TRUE(response.ParseFromString(bytes));
    size_t offset = 0;
    for (const v1::GetChunk& chunk : response.chunks()) {
      if (blocks.size() <= chunk.index()) blocks.resize(chunk.index() + 1);
      GotBlock& block = blocks[chunk.index()];
      EXPECT_EQ(chunk.has_result(), block.payload.empty() && !block.result.has_status());
      if (chunk.has_result()) block.result = chunk.result();
      block.payload += response.payload().substr(offset, chunk.bytes());
      offset += chunk.bytes();
    }
    EXPECT_EQ(offset, response.payload().size());
  }
  return blocks;
}

size_t FakeGet::message_count() {
  MutexLock lock(&mutex_);
  return messages_.size();
}

size_t FakeGet::largest_message_bytes() {
  MutexLock lock(&mutex_);
  size_t largest = 0;
  for (const std::string& message : messages_) largest = std::max(largest, message.size());
  return largest;
}

bool FakeGet::was_cancelled() {
  MutexLock lock(&mutex_);
  return cancelled_;
}

void FakeGet::StartWrite(OutgoingMessage message) {
  MutexLock lock(&mutex_);
  messages_.push_back(BytesOf(message));
  if (hold_writes_) {
    held_ = std::move(message);
    changed_.notify_all();
  } else {
    Post(&threads_, [call = call_] { call->OnWriteDone(true); });
  }
}

void FakeGet::Finish(const absl::Status& status) {
  MutexLock lock(&mutex_);
  EXPECT_FALSE(status_.has_value()) << "finished twice";
  EXPECT_FALSE(held_.has_value()) << "finished during a write";
  status_ = Clone(status);
  changed_.notify_all();
}

void FakeGet::Cancel() {
  MutexLock lock(&mutex_);
  cancelled_ = true;
  EndHeldWrite(false);
}

void FakeGet::EndHeldWrite(bool ok) {
  if (!held_.has_value()) return;
  held_.reset();
  Post(&threads_, [call = call_, ok] { call->OnWriteDone(ok); });
}

std::vector<v1::BlockPutResult> PutAll(ServiceParts* parts, const v1::OpenCacheResponse& cache,
                                       const std::vector<PutBlock>& blocks) {
  FakePut put(parts);
  for (size_t i = 0; i < blocks.size(); ++i) {
    PutBlock block = blocks[i];
    block.number = static_cast<uint32_t>(i);
    put.Send(PutMessageOf(cache.cache_id(), cache.shard_id(), {block}));
  }
  put.HalfClose();
  const absl::Status status = put.Wait();
  EXPECT_TRUE(status.ok()) << status;
  std::vector<v1::BlockPutResult> results = put.results();
  EXPECT_EQ(results.size(), blocks.size());
  std::sort(results.begin(), results.end(), [](const auto& a, const auto& b) { return a.block() < b.block(); });
  return results;
}

std::vector<GotBlock> GetAll(ServiceParts* parts, const v1::GetRequest& request) {
  FakeGet get(parts);
  get.Start(request);
  const absl::Status status = get.Wait();
  EXPECT_TRUE(status.ok()) << status;
  std::vector<GotBlock> blocks = get.blocks();
  EXPECT_EQ(blocks.size(), static_cast<size_t>(request.chain().keys_size()));
  blocks.resize(static_cast<size_t>(request.chain().keys_size()));
  return blocks;
}

v1::GetRequest GetRequestOf(const v1::OpenCacheResponse& cache, const std::vector<std::string>& keys) {
  v1::GetRequest request;
  request.set_cache_id(cache.cache_id());
  request.set_shard_id(cache.shard_id());
  for (const std::string& key : keys) request.mutable_chain()->add_keys(key);
  return request;
}

}  // namespace nqkv
