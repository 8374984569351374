#include "service/http_server.h"

#include <functional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "CivetServer.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "kernels/status_macros.h"
#include "nlohmann/json.hpp"
#include "prometheus/text_serializer.h"

namespace nqkv {
namespace {

constexpr char kPlainText[] = "text/plain; charset=utf-8";

struct Reply {
  int status = 200;
  const char* type = kPlainText;
  std::string body;
};

// Turns a function into CivetWeb's idea of a handler. The function must be thread-safe.
class Handler final : public CivetHandler {
 public:
  using Function = std::function<Reply(const mg_request_info& request)>;
  using CivetHandler::handleGet;

  explicit Handler(Function function) : function_(std::move(function)) {}

  bool handleGet(CivetServer*, mg_connection* connection) override {
    const Reply reply = function_(*mg_get_request_info(connection));
    mg_printf(connection,
              "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\nCache-Control: no-store\r\n"
              "X-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n",
              reply.status, mg_get_response_code_text(connection, reply.status), reply.type, reply.body.size());
    mg_write(connection, reply.body.data(), reply.body.size());
    return true;
  }

 private:
  const Function function_;
};

Reply ShowMetrics(prometheus::Registry* registry, const StatusReport& report) {
  std::vector<prometheus::MetricFamily> families = registry->Collect();
  for (prometheus::MetricFamily& family : report.Collect()) families.push_back(std::move(family));
  std::ostringstream text;
  prometheus::TextSerializer().Serialize(text, families);
  return {.type = "text/plain; version=0.0.4; charset=utf-8", .body = text.str()};
}

Reply ShowReadiness(const StatusReport& report) {
  std::string reason;
  if (report.IsReady(&reason)) return {.body = "ready\n"};
  return {.status = 503, .body = absl::StrCat("not ready: ", reason, "\n")};
}

nlohmann::ordered_json StatsToJson(const v1::GetStatsResponse& stats) {
  return {{"version", stats.version()},
          {"backend", stats.backend()},
          {"uptime_seconds", stats.uptime_seconds()},
          {"ready", stats.ready()},
          {"caches", stats.caches()},
          {"blocks", stats.blocks()},
          {"pinned_parts", stats.pinned_parts()},
          {"pinned_bytes", stats.pinned_bytes()},
          {"capacity_bytes", stats.capacity_bytes()},
          {"used_bytes", stats.used_bytes()},
          {"reserved_bytes", stats.reserved_bytes()},
          {"stored_bytes", stats.stored_bytes()},
          {"raw_bytes", stats.raw_bytes()},
          {"lookups_total", stats.lookups_total()},
          {"lookup_keys_total", stats.lookup_keys_total()},
          {"hit_keys_total", stats.hit_keys_total()},
          {"put_blocks_total", stats.put_blocks_total()},
          {"get_blocks_total", stats.get_blocks_total()},
          {"evicted_blocks_total", stats.evicted_blocks_total()},
          {"fallback_planes_total", stats.fallback_planes_total()},
          {"checksum_failures_total", stats.checksum_failures_total()},
          {"in_flight_bytes", stats.in_flight_bytes()},
          {"rejected_total", stats.rejected_total()}};
}

nlohmann::ordered_json CacheToJson(const v1::CacheInfo& cache) {
  return {{"tenant", cache.tenant()},
          {"name", cache.name()},
          {"model", cache.model()},
          {"spec_fingerprint", absl::BytesToHexString(cache.spec_fingerprint())},
          {"codec", cache.codec()},
          {"blocks", cache.blocks()},
          {"stored_bytes", cache.stored_bytes()},
          {"raw_bytes", cache.raw_bytes()},
          {"used_bytes", cache.used_bytes()},
          {"shards", cache.shards()}};
}

Reply ShowStatus(const StatusReport& report) {
  nlohmann::ordered_json caches = nlohmann::ordered_json::array();
  const v1::ListCachesResponse listed = report.Caches();
  for (const v1::CacheInfo& cache : listed.caches()) caches.push_back(CacheToJson(cache));
  const nlohmann::ordered_json status = {{"stats", StatsToJson(report.Stats())}, {"caches", std::move(caches)}};
  return {.type = "application/json",
          .body = status.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n"};
}

// CivetWeb matches prefixes: what is no known path comes here too.
Reply ShowPaths(const mg_request_info& request, bool with_status) {
  if (std::string(request.local_uri) != "/") return {.status = 404, .body = "not found\n"};
  return {.body = absl::StrCat("nqkvd\n/metrics     for Prometheus\n/healthz     the process runs\n"
                               "/readyz      it takes calls\n",
                               with_status ? "/api/status  counters and caches, as JSON\n" : "")};
}

int IgnoreLogMessage(const mg_connection*, const char*) { return 1; }

class CivetHttpServer final : public HttpServer {
 public:
  CivetHttpServer(const ListenAddress& address, prometheus::Registry* registry, const StatusReport* report)
      : address_(address),
        metrics_([registry, report](const mg_request_info&) { return ShowMetrics(registry, *report); }),
        health_([](const mg_request_info&) { return Reply{.body = "ok\n"}; }),
        ready_([report](const mg_request_info&) { return ShowReadiness(*report); }),
        status_([report](const mg_request_info&) { return ShowStatus(*report); }),
        root_([local = address.is_loopback()](const mg_request_info& request) { return ShowPaths(request, local); }) {}

  ~CivetHttpServer() override {
    if (server_ != nullptr) server_->close();  // Before the handlers go.
  }

  absl::Status Listen() {
    const std::string port = absl::StrCat(address_.ToString());
    // Few threads, short requests: Prometheus and a probe, not the public.
    const std::vector<std::string> options = {"listening_ports",    port,    "num_threads",       "4",
                                              "request_timeout_ms", "10000", "enable_keep_alive", "no"};
    CivetCallbacks callbacks;
    callbacks.log_message = &IgnoreLogMessage;
    try {
      server_ = std::make_unique<CivetServer>(options, &callbacks);
    } catch (const CivetException&) {
      return absl::UnavailableError(absl::StrCat("HTTP cannot listen on ", address_.ToString()));
    }
    const std::vector<int> ports = server_->getListeningPorts();
    if (!ports.empty()) address_.port = static_cast<uint16_t>(ports.front());
    server_->addHandler("/metrics$", metrics_);
    server_->addHandler("/healthz$", health_);
    server_->addHandler("/readyz$", ready_);
    if (address_.is_loopback()) server_->addHandler("/api/status$", status_);
    server_->addHandler("/", root_);
    return absl::OkStatus();
  }

  ListenAddress address() const override { return address_; }

 private:
  ListenAddress address_;
  Handler metrics_;
  Handler health_;
  Handler ready_;
  Handler status_;
  Handler root_;
  std::unique_ptr<CivetServer> server_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(const ListenAddress& address,
                                                              prometheus::Registry* registry,
                                                              const StatusReport* report) {
  NQKV_RETURN_IF_ERROR(address.Probe());
  auto server = std::make_unique<CivetHttpServer>(address, registry, report);
  NQKV_RETURN_IF_ERROR(server->Listen());
  return server;
}

}  // namespace nqkv
