#include "service/server.h"

#include <sys/un.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/grpcpp.h"
#include "grpcpp/health_check_service_interface.h"
#include "grpcpp/resource_quota.h"
#include "kernels/status_macros.h"
#include "service/admin_service.h"
#include "service/byte_size.h"
#include "service/call_environment.h"
#include "service/http_server.h"
#include "service/kv_cache_service.h"
#include "service/lease_sweeper.h"
#include "service/listen_address.h"
#include "service/machine.h"
#include "service/rpc_heartbeat.h"
#include "service/socket_lock.h"
#include "service/status_report.h"
#include "service/tenants.h"
#include "service/watchdog.h"
#include "spdlog/spdlog.h"
#include "storage/block_store.h"

namespace nqkv {
namespace {

constexpr absl::Duration kWorkerStallMax = absl::Seconds(10);
constexpr absl::Duration kRpcStallMax = absl::Seconds(10);
constexpr int kKeepaliveTimeoutMilliseconds = 20'000;
constexpr int kPingIntervalMilliseconds = 10'000;  // Clients may ask for a sign of life so often, as keepalives do.

// What the machine decides where the flags do not.
void FillDefaults(Options* options) {
  if (options->socket_dir.empty()) options->socket_dir = DefaultSocketDirectory();
  if (options->storage.host_bytes == 0) options->storage.host_bytes = DefaultHostBytes();
  if (options->codec_threads == 0) options->codec_threads = AvailableCores();
}

absl::Status CheckSocketPath(const std::string& path) {
  if (path.size() < sizeof(sockaddr_un::sun_path)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("--socket_dir: ", path, " is too long for a Unix socket: ",
                                                 path.size(), " bytes, at most ", sizeof(sockaddr_un::sun_path) - 1));
}

// gRPC's own words, in our log: errors of a start are said once, by us.
void ForwardGrpcLog(gpr_log_func_args* args) {
  if (args->severity == GPR_LOG_SEVERITY_ERROR) spdlog::debug("gRPC: {}", args->message);
}

absl::Status Annotate(const absl::Status& status, absl::string_view prefix) {
  return absl::Status(status.code(), absl::StrCat(prefix, ": ", status.message()));
}

int ToMilliseconds(double seconds) { return static_cast<int>(seconds * 1'000); }

class ServerImpl final : public Server {
 public:
  explicit ServerImpl(Options options) : options_(std::move(options)) {}
  ~ServerImpl() override { Drain(absl::ZeroDuration()); }

  absl::Status Start() {
    NQKV_RETURN_IF_ERROR(PrepareSockets());
    NQKV_RETURN_IF_ERROR(CreateParts());
    NQKV_RETURN_IF_ERROR(StartWorkersServer());
    NQKV_RETURN_IF_ERROR(StartAdminServer());
    NQKV_RETURN_IF_ERROR(StartHttp());
    report_->SetServing(true);
    workers_server_->GetHealthCheckService()->SetServingStatus(true);
    return absl::OkStatus();
  }

  std::string address() const override { return address_.ToString(); }
  std::string http_address() const override { return http_ == nullptr ? "" : http_->address().ToString(); }
  std::string socket_path() const override { return absl::StrCat(options_.socket_dir, "/nqkvd.sock"); }
  std::string admin_socket_path() const override { return absl::StrCat(options_.socket_dir, "/nqkvd-admin.sock"); }
  const Options& options() const override { return options_; }

  void Drain(absl::Duration grace) override {
    if (report_ != nullptr) report_->SetServing(false);
    if (workers_server_ != nullptr) {
      workers_server_->GetHealthCheckService()->SetServingStatus(false);
      gate_.Close();
      waiters_->Close();
      if (!gate_.WaitUntilEmpty(absl::Now() + grace)) {
        spdlog::warn("{} calls did not end within {} and are cancelled", gate_.calls(), absl::FormatDuration(grace));
      }
    }
    for (grpc::Server* server : {workers_server_.get(), admin_server_.get()}) {
      if (server == nullptr) continue;
      server->Shutdown(std::chrono::system_clock::now());
      server->Wait();
    }
  }

 private:
  absl::Status PrepareSockets() {
    NQKV_RETURN_IF_ERROR(CheckSocketPath(admin_socket_path()));
    NQKV_RETURN_IF_ERROR(PrepareSocketDirectory(options_.socket_dir));
    NQKV_ASSIGN_OR_RETURN(lock_, SocketLock::Acquire(absl::StrCat(options_.socket_dir, "/nqkvd.lock")));
    return absl::OkStatus();
  }

  absl::Status CreateParts() {
    // The port is looked at before the arena is: filling gigabytes only to find it taken would be slow.
    NQKV_ASSIGN_OR_RETURN(address_, ListenAddress::Parse(options_.listen));
    absl::Status probe = address_.Probe();
    if (!probe.ok()) return Annotate(probe, "--listen");
    NQKV_RETURN_IF_ERROR(CheckMemory());
    NQKV_ASSIGN_OR_RETURN(store_, BlockStore::Create(options_.storage));
    LogRestart();
    const uint64_t capacity = store_->Stats().capacity_bytes;
    ServiceLimits& limits = options_.limits;
    limits.block_raw_bytes_max = std::min(limits.block_raw_bytes_max, capacity);
    if (options_.reserved_bytes_max == 0) options_.reserved_bytes_max = capacity / 4;
    limits.request_bytes_max = std::min(limits.request_bytes_max, limits.message_bytes_max);
    if (limits.leased_bytes_max == 0) limits.leased_bytes_max = capacity / 2;
    const LeaseLimits lease_limits = {
        .sessions_max = limits.sessions_max,
        .leases_max = limits.leases_max,
        .tenant_bytes_max = limits.leased_bytes_max,
        .session_grace = absl::ToChronoNanoseconds(absl::Seconds(limits.session_grace_seconds))};
    leases_ = std::make_unique<LeaseTable>(lease_limits, &clock_);
    sweeper_ = std::make_unique<LeaseSweeper>(leases_.get());
    waiters_ = std::make_unique<PresenceWaiters>(limits.lookup_waiters_max);
    const CacheRegistry::Bounds bounds = {.spec = {.block_raw_bytes_max = limits.block_raw_bytes_max,
                                                   .plane_raw_bytes_max = options_.in_flight_bytes / 4},
                                          .caches_max = limits.caches_max,
                                          .shards_max = limits.shards_max,
                                          .bytes_max = limits.caches_bytes_max};
    caches_ = std::make_unique<CacheRegistry>(bounds, store_.get(), &metrics_);
    workers_ = std::make_unique<WorkerPool>(options_.codec_threads, options_.codec_queue_max);
    const auto budget = std::make_shared<ByteBudget>(options_.in_flight_bytes);
    callers_ = std::make_unique<Callers>(budget, std::make_shared<ByteBudget>(options_.reserved_bytes_max));
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
                    .limits = limits};
    watchdog_.Watch("workers", kWorkerStallMax, [workers = workers_.get()] { return workers->LongestRun(); });
    watchdog_.Watch("rpc", kRpcStallMax, [this] { return heartbeat_.Age(); });
    report_ = std::make_unique<StatusReport>(&environment_, &watchdog_);
    cache_service_ = std::make_unique<KvCacheService>(&environment_, &tenants_);
    admin_service_ = std::make_unique<AdminService>(report_.get());
    return absl::OkStatus();
  }

  void LogRestart() const {
    const BlockStore::RestartReport& report = store_->restart_report();
    if (report.restored_parts > 0) {
      spdlog::info("found {} parts of blocks again in {}", report.restored_parts, options_.storage.arena_path);
    }
    if (!report.discarded.empty()) {
      spdlog::warn("starting with no blocks: {}: {}", options_.storage.arena_path, report.discarded);
    }
  }

  // An arena in memory is not touched yet when it is made: the system would say yes now and kill us later.
  absl::Status CheckMemory() const {
    const uint64_t available = AvailableMemoryBytes();
    if (!options_.storage.arena_path.empty() || options_.storage.host_bytes <= available) return absl::OkStatus();
    return absl::ResourceExhaustedError(absl::StrCat("--host_bytes: ", ShowBytes(options_.storage.host_bytes),
                                                     " asked for, but only ", ShowBytes(available),
                                                     " of memory are available"));
  }

  void ConfigureBuilder(grpc::ServerBuilder* builder, const grpc::ResourceQuota& quota) const {
    builder->SetResourceQuota(quota);
    builder->SetMaxReceiveMessageSize(static_cast<int>(options_.limits.message_bytes_max));
    builder->SetMaxSendMessageSize(-1);
    builder->AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    const ServiceLimits& limits = options_.limits;
    builder->AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, static_cast<int>(limits.connection_calls_max));
    builder->AddChannelArgument(GRPC_ARG_MAX_CONNECTION_IDLE_MS, ToMilliseconds(limits.connection_idle_seconds_max));
    builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, ToMilliseconds(limits.keepalive_seconds));
    builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMilliseconds);
    builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
    builder->AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, kPingIntervalMilliseconds);
    // Reflection is a synchronous service: one poller is plenty.
    builder->SetSyncServerOption(grpc::ServerBuilder::SyncServerOption::NUM_CQS, 1);
    builder->SetSyncServerOption(grpc::ServerBuilder::SyncServerOption::MIN_POLLERS, 1);
    builder->SetSyncServerOption(grpc::ServerBuilder::SyncServerOption::MAX_POLLERS, 2);
  }

  absl::Status StartWorkersServer() {
    grpc::ResourceQuota quota("workers");
    quota.Resize(2 * options_.in_flight_bytes);
    grpc::ServerBuilder builder;
    ConfigureBuilder(&builder, quota);
    int port = 0;
    builder.AddListeningPort(address_.ToString(), grpc::InsecureServerCredentials(), &port);
    builder.AddListeningPort(absl::StrCat("unix:", socket_path()), grpc::InsecureServerCredentials());
    builder.RegisterService(cache_service_.get());
    workers_server_ = builder.BuildAndStart();
    if (workers_server_ == nullptr || port == 0) {
      return absl::UnavailableError(absl::StrCat("cannot listen on ", address_.ToString(), " and ", socket_path()));
    }
    address_.port = static_cast<uint16_t>(port);
    workers_server_->GetHealthCheckService()->SetServingStatus(false);
    return absl::OkStatus();
  }

  absl::Status StartAdminServer() {
    grpc::ResourceQuota quota("admin");
    quota.Resize(uint64_t{64} << 20);
    grpc::ServerBuilder builder;
    ConfigureBuilder(&builder, quota);
    int port = 0;
    builder.AddListeningPort(absl::StrCat("unix:", admin_socket_path()), grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(admin_service_.get());
    admin_server_ = builder.BuildAndStart();
    if (admin_server_ != nullptr && port != 0) return absl::OkStatus();
    return absl::UnavailableError(absl::StrCat("cannot listen on ", admin_socket_path()));
  }

  absl::Status StartHttp() {
    if (options_.http_listen.empty()) return absl::OkStatus();
    NQKV_ASSIGN_OR_RETURN(const ListenAddress address, ListenAddress::Parse(options_.http_listen));
    absl::StatusOr<std::unique_ptr<HttpServer>> http = HttpServer::Start(address, &metrics_.registry(), report_.get());
    if (!http.ok()) return Annotate(http.status(), "--http_listen");
    http_ = *std::move(http);
    return absl::OkStatus();
  }

  // In order of dependency: what stands later goes first.
  Options options_;
  SocketLock lock_;
  ListenAddress address_;
  Tenants tenants_;
  Metrics metrics_;
  SteadyClock clock_;
  std::unique_ptr<BlockStore> store_;
  std::unique_ptr<LeaseTable> leases_;
  std::unique_ptr<LeaseSweeper> sweeper_;
  std::unique_ptr<PresenceWaiters> waiters_;
  std::unique_ptr<CacheRegistry> caches_;
  CallGate gate_{options_.limits.calls_max, &metrics_};
  CallTimer timer_;
  std::unique_ptr<Callers> callers_;
  CallEnvironment environment_;
  std::unique_ptr<WorkerPool> workers_;
  RpcHeartbeat heartbeat_;
  Watchdog watchdog_;
  std::unique_ptr<StatusReport> report_;
  std::unique_ptr<KvCacheService> cache_service_;
  std::unique_ptr<AdminService> admin_service_;
  std::unique_ptr<grpc::Server> workers_server_;
  std::unique_ptr<grpc::Server> admin_server_;
  std::unique_ptr<HttpServer> http_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Server>> Server::Start(Options options) {
  NQKV_RETURN_IF_ERROR(options.Validate());
  FillDefaults(&options);
  NQKV_RETURN_IF_ERROR(options.storage.Validate());
  gpr_set_log_function(&ForwardGrpcLog);
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  spdlog::info("{}", DescribeBackend(VisibleGpu()));
  auto server = std::make_unique<ServerImpl>(std::move(options));
  NQKV_RETURN_IF_ERROR(server->Start());
  return server;
}

}  // namespace nqkv
