// The Admin service: what `nqkv stat` shows. Served on a socket of its own, never to workers.
#pragma once

#include "nqkv/v1/admin.grpc.pb.h"
#include "service/status_report.h"

namespace nqkv {

// Thread-safe.
class AdminService final : public v1::Admin::CallbackService {
 public:
  // `report` must outlive the service.
  explicit AdminService(const StatusReport* report) : report_(report) {}

  grpc::ServerUnaryReactor* GetStats(grpc::CallbackServerContext* context, const v1::GetStatsRequest* request,
                                     v1::GetStatsResponse* response) override;
  grpc::ServerUnaryReactor* ListCaches(grpc::CallbackServerContext* context, const v1::ListCachesRequest* request,
                                       v1::ListCachesResponse* response) override;
  grpc::ServerUnaryReactor* ListSessions(grpc::CallbackServerContext* context, const v1::ListSessionsRequest* request,
                                         v1::ListSessionsResponse* response) override;
  grpc::ServerUnaryReactor* ListLeases(grpc::CallbackServerContext* context, const v1::ListLeasesRequest* request,
                                       v1::ListLeasesResponse* response) override;

 private:
  const StatusReport* const report_;
};

}  // namespace nqkv
