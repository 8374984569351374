#include "service/admin_service.h"

namespace nqkv {

grpc::ServerUnaryReactor* AdminService::GetStats(grpc::CallbackServerContext* context, const v1::GetStatsRequest*,
                                                 v1::GetStatsResponse* response) {
  *response = report_->Stats();
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

grpc::ServerUnaryReactor* AdminService::ListCaches(grpc::CallbackServerContext* context, const v1::ListCachesRequest*,
                                                   v1::ListCachesResponse* response) {
  *response = report_->Caches();
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

grpc::ServerUnaryReactor* AdminService::ListSessions(grpc::CallbackServerContext* context,
                                                     const v1::ListSessionsRequest*,
                                                     v1::ListSessionsResponse* response) {
  *response = report_->Sessions();
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

grpc::ServerUnaryReactor* AdminService::ListLeases(grpc::CallbackServerContext* context,
                                                   const v1::ListLeasesRequest* request,
                                                   v1::ListLeasesResponse* response) {
  *response = report_->Leases(*request);
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

}  // namespace nqkv
