// HTTP for people and for Prometheus: /metrics, /healthz, /readyz, /api/status and a pointer to them at /.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "prometheus/registry.h"
#include "service/listen_address.h"
#include "service/status_report.h"

namespace nqkv {

// On an address that is not loopback only metrics and health are served: the rest names models and caches.
class HttpServer {
 public:
  // `registry` and `report` must outlive the server.
  //
  // Errors:
  //   ALREADY_EXISTS    the port is taken.
  //   UNAVAILABLE       the server did not start for another reason.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(const ListenAddress& address, prometheus::Registry* registry,
                                                           const StatusReport* report);
  // Ends running requests and closes the port.
  virtual ~HttpServer() = default;

  // The address with the port in use.
  virtual ListenAddress address() const = 0;
};

}  // namespace nqkv
