// The service through its sockets, with the stubs that any user of gRPC has.
#include <condition_variable>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "google/rpc/error_details.pb.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"
#include "nqkv/v1/admin.grpc.pb.h"
#include "nqkv/v1/kv_cache.grpc.pb.h"
#include "proto/rpc_status.h"
#include "service/server.h"
#include "spdlog/sinks/ringbuffer_sink.h"
#include "spdlog/spdlog.h"
#include "tests/service/model_blocks.h"
#include "tests/support/temp_dir.h"

namespace nqkv {
namespace {

using ::testing::HasSubstr;

constexpr PlaneCodec kNqkv4 = {.id = CodecId::kNqkv4, .scale_group = 64};

class RpcTest : public ::testing::Test {
 protected:
  RpcTest() {
    options_.listen = "127.0.0.1:0";
    options_.http_listen = "";
    options_.socket_dir = folder_.path();
    options_.storage.host_bytes = uint64_t{64} << 20;
    options_.in_flight_bytes = uint64_t{16} << 20;
    options_.limits.message_bytes_max = uint64_t{8} << 20;
    options_.codec_threads = 2;
    options_.log_level = "error";
  }

  void Start() {
    absl::StatusOr<std::unique_ptr<Server>> server = Server::Start(options_);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(-1);
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // A test's server is not the one before it.
    channel_ = grpc::CreateCustomChannel(server_->address(), grpc::InsecureChannelCredentials(), arguments);
    stub_ = v1::KvCache::NewStub(channel_);
    admin_ = v1::Admin::NewStub(grpc::CreateCustomChannel(absl::StrCat("unix:", server_->admin_socket_path()),
                                                          grpc::InsecureChannelCredentials(), arguments));
  }

  v1::OpenCacheResponse Open(const std::string& name = "cache", v1::Codec codec = v1::CODEC_NQKV4) {
    v1::OpenCacheRequest request;
    request.set_name(name);
    *request.mutable_spec() = ModelSpec(shape_);
    request.mutable_policy()->set_codec(codec);
    v1::OpenCacheResponse response;
    grpc::ClientContext context;
    const grpc::Status status = stub_->OpenCache(&context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }

  absl::Status Put(const v1::PutRequest& request, std::vector<v1::BlockPutResult>* results = nullptr) {
    grpc::ClientContext context;
    const auto stream = stub_->Put(&context);
    stream->Write(request);
    stream->WritesDone();
    v1::PutResponse response;
    while (stream->Read(&response)) {
      if (results != nullptr) results->insert(results->end(), response.results().begin(), response.results().end());
    }
    return FromGrpc(stream->Finish());
  }
  void PutBlocks(const v1::OpenCacheResponse& cache, int count) {
    for (int key = 0; key < count; ++key) {
      std::vector<v1::BlockPutResult> results;
      const absl::Status status = Put(PutMessageOf(cache.cache_id(), cache.shard_id(),
                                                   {{KeyOf(key), RawBlock(group_, static_cast<uint32_t>(key))}}),
                                      &results);
      ASSERT_TRUE(status.ok()) << status;
      ASSERT_EQ(results.size(), 1u);
      ASSERT_EQ(results[0].outcome(), v1::PUT_OUTCOME_STORED) << results[0].DebugString();
    }
  }

  static v1::GetRequest GetRequestOf(const v1::OpenCacheResponse& cache, int count) {
    v1::GetRequest request;
    request.set_cache_id(cache.cache_id());
    request.set_shard_id(cache.shard_id());
    for (int key = 0; key < count; ++key) request.mutable_chain()->add_keys(KeyOf(key));
    return request;
  }
  absl::Status Get(const v1::GetRequest& request, std::string* payload = nullptr) {
    grpc::ClientContext context;
    const auto stream = stub_->Get(&context, request);
    v1::GetResponse response;
    while (stream->Read(&response)) {
      if (payload != nullptr) payload->append(response.payload());
    }
    return FromGrpc(stream->Finish());
  }

  v1::GetStatsResponse Stats() {
    v1::GetStatsResponse response;
    grpc::ClientContext context;
    const grpc::Status status = admin_->GetStats(&context, {}, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }
  // False: they are not so in time.
  bool WaitForStats(const std::function<bool(const v1::GetStatsResponse&)>& wanted) {
    const absl::Time deadline = absl::Now() + absl::Seconds(20);
    do {
      if (wanted(Stats())) return true;
    } while (absl::Now() < deadline);
    return false;
  }
  // What a call held goes when gRPC lets go of it, a moment after the client has its status.
  void ExpectNothingHeld(uint64_t used_bytes) {
    const auto is_idle = [used_bytes](const v1::GetStatsResponse& stats) {
      return stats.in_flight_bytes() == 0 && stats.pinned_parts() == 0 && stats.used_bytes() == used_bytes;
    };
    EXPECT_TRUE(WaitForStats(is_idle)) << Stats().DebugString();
  }
  void ExpectStillServing(const v1::OpenCacheResponse& cache) {
    PutBlocks(cache, 1);
    std::string payload;
    EXPECT_TRUE(Get(GetRequestOf(cache, 1), &payload).ok());
    EXPECT_TRUE(payload == RoundTrip(group_, WholeRange(group_), 0, kNqkv4));
  }

  static google::rpc::BadRequest BadRequestOf(const absl::Status& status) {
    google::rpc::BadRequest detail;
    const auto payload = status.GetPayload("type.googleapis.com/google.rpc.BadRequest");
    EXPECT_TRUE(payload.has_value()) << status;
    if (payload.has_value()) detail.ParseFromString(std::string(*payload));
    return detail;
  }

  ModelShape shape_;
  GroupLayout group_ = ModelLayout(shape_);
  testing::TempDir folder_;
  Options options_;
  std::unique_ptr<Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::KvCache::Stub> stub_;
  std::unique_ptr<v1::Admin::Stub> admin_;
};

// What the service logs while the object lives.
class CapturedLog {
 public:
  CapturedLog() : level_(spdlog::get_level()) {
    spdlog::default_logger()->sinks().push_back(sink_);
    spdlog::set_level(spdlog::level::debug);
  }
  ~CapturedLog() {
    spdlog::set_level(level_);
    spdlog::default_logger()->sinks().pop_back();
  }
  std::string text() const {
    std::string lines;
    for (const std::string& line : sink_->last_formatted()) lines += line;
    return lines;
  }

 private:
  const std::shared_ptr<spdlog::sinks::ringbuffer_sink_mt> sink_ =
      std::make_shared<spdlog::sinks::ringbuffer_sink_mt>(1'000);
  const spdlog::level::level_enum level_;
};

TEST_F(RpcTest, LogsTheTraceOfTheCaller) {
  CapturedLog log;
  Start();
  grpc::ClientContext context;
  context.AddMetadata("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
  v1::LookupResponse response;
  EXPECT_EQ(stub_->Lookup(&context, {}, &response).error_code(), grpc::StatusCode::NOT_FOUND);
  grpc::ClientContext without;
  EXPECT_EQ(stub_->Lookup(&without, {}, &response).error_code(), grpc::StatusCode::NOT_FOUND);
  server_.reset();  // No call logs any more.
  EXPECT_THAT(log.text(), HasSubstr("traceparent=00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"));
  EXPECT_THAT(log.text(), HasSubstr("traceparent=-"));
}

TEST_F(RpcTest, ACallerCannotWriteLinesOfItsOwnIntoTheLog) {
  CapturedLog log;
  Start();
  v1::OpenCacheRequest open;
  open.set_name("cache");
  *open.mutable_spec() = ModelSpec();
  open.mutable_spec()->set_model("model\n[error] forged");
  open.set_engine("engine\x1b[31m");
  grpc::ClientContext context;
  v1::OpenCacheResponse response;
  EXPECT_TRUE(stub_->OpenCache(&context, open, &response).ok());
  server_.reset();  // No call logs any more.
  EXPECT_THAT(log.text(), HasSubstr("of model 'model\\n[error] forged'"));
  EXPECT_THAT(log.text(), HasSubstr("by engine\\033[31m"));
  EXPECT_THAT(log.text(), ::testing::Not(HasSubstr("\x1b[31m")));
}

TEST_F(RpcTest, WhatIsPutComesBackAsTheReferenceCodecHasIt) {
  Start();
  const v1::OpenCacheResponse cache = Open();
  PutBlocks(cache, 20);
  std::string payload;
  const absl::Status status = Get(GetRequestOf(cache, 20), &payload);
  ASSERT_TRUE(status.ok()) << status;
  std::string expected;
  for (uint32_t key = 0; key < 20; ++key) expected += RoundTrip(group_, WholeRange(group_), key, kNqkv4);
  EXPECT_TRUE(payload == expected);
  const v1::GetStatsResponse stats = Stats();
  EXPECT_EQ(stats.blocks(), 20u);
  EXPECT_TRUE(stats.ready());
  ExpectNothingHeld(stats.used_bytes());
}

TEST_F(RpcTest, ServesTheSameOverItsUnixSocketButNotTheAdminServiceToWorkers) {
  Start();
  const v1::OpenCacheResponse cache = Open();
  PutBlocks(cache, 1);
  const auto channel =
      grpc::CreateChannel(absl::StrCat("unix:", server_->socket_path()), grpc::InsecureChannelCredentials());
  stub_ = v1::KvCache::NewStub(channel);
  EXPECT_TRUE(Get(GetRequestOf(cache, 1)).ok());
  for (const auto& workers_channel : {channel, channel_}) {
    grpc::ClientContext context;
    v1::GetStatsResponse response;
    const grpc::Status status = v1::Admin::NewStub(workers_channel)->GetStats(&context, {}, &response);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::UNIMPLEMENTED);
  }
}

TEST_F(RpcTest, ErrorsCarryTheFieldInTheirDetails) {
  Start();
  v1::OpenCacheRequest open;
  open.set_name("cache");
  *open.mutable_spec() = ModelSpec();
  open.mutable_spec()->mutable_layer_groups(0)->mutable_planes(2)->set_heads(0);
  {
    grpc::ClientContext context;
    v1::OpenCacheResponse response;
    const absl::Status status = FromGrpc(stub_->OpenCache(&context, open, &response));
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(BadRequestOf(status).field_violations(0).field(), "spec.layer_groups[0].planes[2].heads");
  }
  const v1::OpenCacheResponse cache = Open();
  v1::GetRequest get = GetRequestOf(cache, 1);
  get.set_layer_by_layer(true);
  const absl::Status status = Get(get);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_EQ(BadRequestOf(status).field_violations(0).field(), "layer_by_layer");
  v1::PutRequest put = PutMessageOf(cache.cache_id(), 0, {{"k", RawBlock(group_, 1)}});
  put.mutable_chunks(0)->mutable_begin()->set_form(v1::PAYLOAD_FORM_ENCODED);
  EXPECT_THAT(std::string(Put(put).message()), HasSubstr("chunks[0].begin.form PAYLOAD_FORM_ENCODED is not built yet"));
  EXPECT_EQ(Stats().used_bytes(), 0u);
  ExpectStillServing(cache);
}

TEST_F(RpcTest, AMessageOverTheLimitEndsItsCallAndNothingElse) {
  Start();
  const v1::OpenCacheResponse cache = Open();
  v1::PutRequest request = PutMessageOf(cache.cache_id(), 0, {{"k", std::string((8 << 20) + 1, 'x')}});
  const absl::Status status = Put(request);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr(absl::StrCat("larger than max (", request.ByteSizeLong())));
  EXPECT_EQ(RetryDelay(status), absl::ZeroDuration());
  ExpectNothingHeld(0);
  ExpectStillServing(cache);
}

TEST_F(RpcTest, AStreamCutInTheMiddleOfABlockLeavesNothing) {
  Start();
  const v1::OpenCacheResponse cache = Open();
  {
    v1::PutRequest request = PutMessageOf(cache.cache_id(), 0, {{"k", RawBlock(group_, 1)}});
    request.mutable_payload()->resize(50'000);
    request.mutable_chunks(0)->set_bytes(50'000);
    grpc::ClientContext context;
    const auto stream = stub_->Put(&context);
    ASSERT_TRUE(stream->Write(request));
    ASSERT_TRUE(WaitForStats([](const auto& stats) { return stats.used_bytes() > 0; }));  // The block is begun.
    context.TryCancel();
    EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
  ExpectNothingHeld(0);
  ExpectStillServing(cache);
}

TEST_F(RpcTest, AClientThatGoesDuringAGetLeavesNothing) {
  Start();
  const v1::OpenCacheResponse cache = Open();
  PutBlocks(cache, 40);
  const uint64_t used_bytes = Stats().used_bytes();
  {
    grpc::ClientContext context;
    const auto stream = stub_->Get(&context, GetRequestOf(cache, 40));
    v1::GetResponse response;
    ASSERT_TRUE(stream->Read(&response));
    context.TryCancel();
    while (stream->Read(&response)) {
    }
    EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
  ExpectNothingHeld(used_bytes);
  ExpectStillServing(Open("other"));
}

TEST_F(RpcTest, AReaderThatDoesNotReadIsCancelledAndItsBytesComeBack) {
  options_.limits.read_seconds_max = 0.3;
  Start();
  shape_ = {.layers = 8, .heads = 8, .channels = 128, .block_tokens = 64};  // 2 MiB.
  group_ = ModelLayout(shape_);
  const v1::OpenCacheResponse cache = Open();
  PutBlocks(cache, 8);
  const uint64_t used_bytes = Stats().used_bytes();
  v1::GetRequest request = GetRequestOf(cache, 8);
  request.set_dtype(v1::DTYPE_FLOAT32);  // 32 MiB: more than any window or buffer on the way.
  grpc::ClientContext context;
  const auto stream = stub_->Get(&context, request);
  ExpectNothingHeld(used_bytes);
  ASSERT_TRUE(WaitForStats([](const auto& stats) { return stats.rejected_total() > 0; }));
  ExpectNothingHeld(used_bytes);
  v1::GetResponse response;
  while (stream->Read(&response)) {
  }
  EXPECT_FALSE(stream->Finish().ok());
  ExpectStillServing(Open("other"));
}

TEST_F(RpcTest, ManyReadersThatDoNotReadStarveNoOtherConnection) {
  Start();
  shape_ = {.layers = 8, .heads = 8, .channels = 128, .block_tokens = 64};  // 2 MiB.
  group_ = ModelLayout(shape_);
  const v1::OpenCacheResponse cache = Open();
  PutBlocks(cache, 8);
  const uint64_t used_bytes = Stats().used_bytes();
  v1::GetRequest request = GetRequestOf(cache, 8);
  request.set_dtype(v1::DTYPE_FLOAT32);  // 32 MiB: more than any window or buffer on the way.
  {
    std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
    std::vector<std::unique_ptr<grpc::ClientReader<v1::GetResponse>>> stuck;
    for (int i = 0; i < 120; ++i) {
      contexts.push_back(std::make_unique<grpc::ClientContext>());
      stuck.push_back(stub_->Get(contexts.back().get(), request));
    }
    while (Stats().rejected_total() == 0) {  // Until they hold all that they can get.
    }
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(-1);
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    const auto other = v1::KvCache::NewStub(
        grpc::CreateCustomChannel(server_->address(), grpc::InsecureChannelCredentials(), arguments));
    for (int round = 0; round < 5; ++round) {
      grpc::ClientContext context;
      const auto stream = other->Get(&context, GetRequestOf(cache, 8));
      v1::GetResponse response;
      uint64_t bytes = 0;
      while (stream->Read(&response)) bytes += response.payload().size();
      const absl::Status status = FromGrpc(stream->Finish());
      ASSERT_TRUE(status.ok()) << status;
      EXPECT_EQ(bytes, 8 * RawBytes(group_, WholeRange(group_)));
    }
    for (const auto& context : contexts) context->TryCancel();
    v1::GetResponse response;
    for (const auto& stream : stuck) {
      while (stream->Read(&response)) {
      }
      EXPECT_FALSE(stream->Finish().ok());
    }
  }
  ExpectNothingHeld(used_bytes);
}

TEST_F(RpcTest, RefusesMoreCallsThanItsLimitAndSaysWhenToTryAgain) {
  options_.limits.calls_max = 2;
  Start();
  const v1::OpenCacheResponse cache = Open();
  {
    grpc::ClientContext contexts[2];
    std::unique_ptr<grpc::ClientReaderWriter<v1::PutRequest, v1::PutResponse>> streams[2];
    for (int i = 0; i < 2; ++i) {
      streams[i] = stub_->Put(&contexts[i]);
      ASSERT_TRUE(streams[i]->Write(PutMessageOf(cache.cache_id(), 0, {{KeyOf(i), RawBlock(group_, 1)}})));
      v1::PutResponse response;
      ASSERT_TRUE(streams[i]->Read(&response));
    }
    const absl::Status refused[] = {Get(GetRequestOf(cache, 1)), Put({})};
    for (const absl::Status& status : refused) {
      EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
      EXPECT_THAT(std::string(status.message()), HasSubstr("--calls_max"));
      EXPECT_GT(RetryDelay(status), absl::ZeroDuration());
    }
    for (const auto& stream : streams) {
      stream->WritesDone();
      EXPECT_TRUE(stream->Finish().ok());
    }
  }
  while (!Get(GetRequestOf(cache, 1)).ok()) {  // A pass goes back a moment after the client has its status.
  }
}

TEST_F(RpcTest, ClosesAConnectionWithoutCallsAndTakesItsNextCall) {
  options_.limits.connection_idle_seconds_max = 0.2;
  Start();
  Open();
  EXPECT_TRUE(
      channel_->WaitForStateChange(GRPC_CHANNEL_READY, std::chrono::system_clock::now() + std::chrono::seconds(20)));
  Open();
}

TEST_F(RpcTest, ADeadlineEndsACall) {
  Start();
  const v1::OpenCacheResponse cache = Open();
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Milliseconds(100)));
  const auto stream = stub_->Put(&context);
  v1::PutRequest request = PutMessageOf(cache.cache_id(), 0, {{"k", RawBlock(group_, 1)}});
  request.mutable_payload()->resize(50'000);
  request.mutable_chunks(0)->set_bytes(50'000);
  stream->Write(request);
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  ExpectNothingHeld(0);
}

TEST_F(RpcTest, IdsOfAServerBeforeAreUnknownToTheNext) {
  Start();
  const v1::OpenCacheResponse cache = Open();
  PutBlocks(cache, 1);
  server_.reset();
  Start();
  Open();  // The same name and place in the registry.
  const absl::Status status = Get(GetRequestOf(cache, 1));
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("open it again"));
}

TEST_F(RpcTest, ASecondServerOnThePortOrTheSocketsIsRefused) {
  Start();
  Options second = options_;
  absl::Status status = Server::Start(second).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(std::string(status.message()), HasSubstr("nqkvd.lock is held by another nqkvd"));
  const testing::TempDir folder;
  second.socket_dir = folder.path();
  second.listen = server_->address();
  status = Server::Start(second).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(std::string(status.message()), absl::StrCat("--listen: ", server_->address(), " is already in use"));
  ExpectStillServing(Open());
}

TEST_F(RpcTest, DrainingLetsACallEndAndRefusesNewOnes) {
  Start();
  const v1::OpenCacheResponse cache = Open();
  const std::string payload = RawBlock(group_, 1);
  v1::PutRequest begin = PutMessageOf(cache.cache_id(), 0, {{"k", payload}});
  begin.mutable_payload()->resize(50'000);
  begin.mutable_chunks(0)->set_bytes(50'000);
  v1::PutRequest rest;
  rest.add_chunks()->set_bytes(payload.size() - 50'000);
  rest.set_payload(payload.substr(50'000));

  grpc::ClientContext context;
  const auto stream = stub_->Put(&context);
  ASSERT_TRUE(stream->Write(begin));
  ASSERT_TRUE(WaitForStats([](const auto& stats) { return stats.used_bytes() > 0; }));  // The block is begun.
  std::thread drain([this] { server_->Drain(absl::Seconds(30)); });
  // New calls are refused as soon as the drain has begun.
  const absl::Time drain_deadline = absl::Now() + absl::Seconds(20);
  absl::Status refused;
  do {
    grpc::ClientContext lookup_context;
    v1::LookupRequest lookup;
    lookup.set_cache_id(cache.cache_id());
    v1::LookupResponse response;
    lookup_context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(10)));
    refused = FromGrpc(stub_->Lookup(&lookup_context, lookup, &response));
  } while (refused.ok() && absl::Now() < drain_deadline);
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable) << refused;
  EXPECT_TRUE(stream->Write(rest));
  stream->WritesDone();
  v1::PutResponse response;
  ASSERT_TRUE(stream->Read(&response));
  EXPECT_EQ(response.results(0).outcome(), v1::PUT_OUTCOME_STORED);
  EXPECT_FALSE(stream->Read(&response));
  EXPECT_TRUE(stream->Finish().ok());
  drain.join();
}

TEST_F(RpcTest, DrainingCancelsWhatDoesNotEndInItsGrace) {
  Start();
  const v1::OpenCacheResponse cache = Open();
  grpc::ClientContext context;
  const auto stream = stub_->Put(&context);
  v1::PutRequest begin = PutMessageOf(cache.cache_id(), 0, {{"k", RawBlock(group_, 1)}});
  begin.mutable_payload()->resize(50'000);
  begin.mutable_chunks(0)->set_bytes(50'000);
  ASSERT_TRUE(stream->Write(begin));
  ASSERT_TRUE(WaitForStats([](const auto& stats) { return stats.used_bytes() > 0; }));  // The block is begun.
  server_->Drain(absl::Milliseconds(50));
  EXPECT_FALSE(stream->Finish().ok());
}

class RpcLeaseTest : public RpcTest {
 protected:
  using SessionStream = grpc::ClientReaderWriter<v1::SessionRequest, v1::SessionResponse>;

  RpcLeaseTest() {
    options_.limits.heartbeat_seconds = 0.1;
    options_.limits.session_grace_seconds = 0.5;
  }

  // Sends a message and returns the id of the session that it was answered for.
  static std::string Ask(SessionStream* stream, const v1::SessionRequest& request = {}) {
    v1::SessionResponse response;
    EXPECT_TRUE(stream->Write(request));
    EXPECT_TRUE(stream->Read(&response));
    return response.session_id();
  }
  std::string LeaseOf(const v1::OpenCacheResponse& cache, int count, const std::string& session_id,
                      const std::string& request_id) {
    v1::LookupRequest request;
    request.set_cache_id(cache.cache_id());
    v1::LookupQuery* query = request.add_queries();
    query->set_request_id(request_id);
    query->mutable_lease()->set_session_id(session_id);
    v1::KeyChain* chain = query->add_chains();
    for (int key = 0; key < count; ++key) chain->add_keys(KeyOf(key));
    v1::LookupResponse response;
    grpc::ClientContext context;
    EXPECT_TRUE(stub_->Lookup(&context, request, &response).ok());
    return response.results_size() == 1 ? response.results(0).lease_token() : "";
  }
  v1::GetStatsResponse WaitForSessions(uint64_t sessions) {
    const absl::Time deadline = absl::Now() + absl::Seconds(20);
    v1::GetStatsResponse stats = Stats();
    while (absl::Now() < deadline && (stats.sessions() != sessions || stats.leases() != sessions)) stats = Stats();
    return stats;
  }
};

TEST_F(RpcLeaseTest, ALeaseIsListedReadUnderFromAnotherConnectionAndEndsWithItsSession) {
  Start();
  const v1::OpenCacheResponse cache = Open();
  PutBlocks(cache, 3);
  grpc::ClientContext session_context;
  const auto stream = stub_->Session(&session_context);
  v1::SessionRequest open;
  open.set_owner("scheduler");
  const std::string session = Ask(stream.get(), open);
  const std::string token = LeaseOf(cache, 3, session, "request");
  EXPECT_EQ(Ask(stream.get()), session);

  v1::ListSessionsResponse sessions;
  v1::ListLeasesResponse leases;
  grpc::ClientContext sessions_context;
  grpc::ClientContext leases_context;
  ASSERT_TRUE(admin_->ListSessions(&sessions_context, {}, &sessions).ok());
  ASSERT_TRUE(admin_->ListLeases(&leases_context, {}, &leases).ok());
  ASSERT_EQ(sessions.sessions_size(), 1);
  EXPECT_EQ(sessions.sessions(0).session_id(), session);
  EXPECT_EQ(sessions.sessions(0).owner(), "scheduler");
  EXPECT_EQ(sessions.sessions(0).leases(), 1u);
  ASSERT_EQ(leases.leases_size(), 1);
  EXPECT_EQ(leases.leases(0).session_id(), session);
  EXPECT_EQ(leases.leases(0).request_id(), "request");
  EXPECT_EQ(leases.leases(0).cache(), "cache");
  EXPECT_EQ(leases.leases(0).tenant(), "default");
  EXPECT_EQ(leases.leases(0).parts(), 3u);
  EXPECT_GT(leases.leases(0).seconds_left(), 0);
  EXPECT_EQ(leases.next(), 0u);

  stub_ = v1::KvCache::NewStub(
      grpc::CreateChannel(absl::StrCat("unix:", server_->socket_path()), grpc::InsecureChannelCredentials()));
  v1::GetRequest get = GetRequestOf(cache, 3);
  get.set_lease_token(token);
  EXPECT_TRUE(Get(get).ok());

  v1::SessionRequest close;
  close.set_close(true);
  EXPECT_TRUE(stream->Write(close));
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_EQ(Get(get).code(), absl::StatusCode::kAborted);
  const v1::GetStatsResponse stats = WaitForSessions(0);
  EXPECT_EQ(stats.sessions(), 0u);
  EXPECT_EQ(stats.leased_bytes(), 0u);
  ExpectNothingHeld(stats.used_bytes());
}

TEST_F(RpcLeaseTest, ASessionWhoseStreamBreaksEndsAfterItsGraceUnlessItIsTakenOver) {
  Start();
  const v1::OpenCacheResponse cache = Open();
  PutBlocks(cache, 1);
  const auto first_context = std::make_unique<grpc::ClientContext>();
  const auto first = stub_->Session(first_context.get());
  const std::string session = Ask(first.get());
  const std::string token = LeaseOf(cache, 1, session, "request");
  first_context->TryCancel();
  EXPECT_EQ(FromGrpc(first->Finish()).code(), absl::StatusCode::kCancelled);

  const auto second_context = std::make_unique<grpc::ClientContext>();
  const auto second = stub_->Session(second_context.get());
  v1::SessionRequest resume;
  resume.set_session_id(session);
  EXPECT_EQ(Ask(second.get(), resume), session);
  v1::GetRequest get = GetRequestOf(cache, 1);
  get.set_lease_token(token);
  EXPECT_TRUE(Get(get).ok());
  second_context->TryCancel();
  EXPECT_EQ(FromGrpc(second->Finish()).code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(WaitForSessions(0).leases(), 0u);
  grpc::ClientContext third_context;
  const auto third = stub_->Session(&third_context);
  EXPECT_TRUE(third->Write(resume));
  EXPECT_EQ(FromGrpc(third->Finish()).code(), absl::StatusCode::kAborted);
}

TEST_F(RpcLeaseTest, AnOpenSessionDoesNotHoldUpADrain) {
  options_.limits.session_grace_seconds = 3'600;
  Start();
  grpc::ClientContext context;
  const auto stream = stub_->Session(&context);
  EXPECT_FALSE(Ask(stream.get()).empty());
  const absl::Time start = absl::Now();
  server_->Drain(absl::Seconds(60));
  EXPECT_LT(absl::Now() - start, absl::Seconds(30));
  EXPECT_FALSE(stream->Finish().ok());
}

TEST_F(RpcTest, ManyClientsAtOnceGetWhatTheyPut) {
  Start();
  const v1::OpenCacheResponse cache = Open();
  std::vector<std::thread> clients;
  for (int client = 0; client < 4; ++client) {
    clients.emplace_back([this, &cache, client] {
      for (int i = 0; i < 8; ++i) {
        const int key = client * 100 + i;
        ASSERT_TRUE(
            Put(PutMessageOf(cache.cache_id(), 0, {{KeyOf(key), RawBlock(group_, static_cast<uint32_t>(key))}})).ok());
        v1::GetRequest request = GetRequestOf(cache, 0);
        request.mutable_chain()->add_keys(KeyOf(key));
        std::string payload;
        ASSERT_TRUE(Get(request, &payload).ok());
        EXPECT_TRUE(payload == RoundTrip(group_, WholeRange(group_), static_cast<uint32_t>(key), kNqkv4));
      }
    });
  }
  for (std::thread& client : clients) client.join();
  const v1::GetStatsResponse stats = Stats();
  EXPECT_EQ(stats.blocks(), 32u);
  ExpectNothingHeld(stats.used_bytes());
}

}  // namespace
}  // namespace nqkv
