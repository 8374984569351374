#include "service/kv_cache_service.h"

#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "proto/rpc_status.h"
#include "service/get_call.h"
#include "service/grpc_message.h"
#include "service/put_call.h"
#include "spdlog/spdlog.h"

namespace nqkv {
namespace {

// Below this a call costs less than handing it to a worker.
constexpr int kInlineKeysMax = 1'024;
constexpr absl::Duration kRetryDelay = absl::Milliseconds(100);

// The caller's trace, so that its logs and ours can be laid side by side.
void LogTrace(const grpc::CallbackServerContext& context, Rpc rpc) {
  if (!spdlog::should_log(spdlog::level::debug)) return;
  const auto& metadata = context.client_metadata();
  const auto trace = metadata.find("traceparent");
  spdlog::debug("{} from {} traceparent={}", std::string(RpcName(rpc)), context.peer(),
                trace == metadata.end() ? "-" : std::string(trace->second.data(), trace->second.size()));
}

void LogEnd(Rpc rpc, const absl::Status& status) {
  if (status.ok() || !spdlog::should_log(spdlog::level::debug)) return;
  spdlog::debug("{} ended: {}", std::string(RpcName(rpc)), status.ToString());
}

// Counts the call, answers it and lets it out.
void EndUnary(const CallEnvironment& environment, Rpc rpc, absl::Time start, const absl::Status& status,
              grpc::ServerUnaryReactor* reactor) {
  environment.metrics->RecordRpc(rpc, status.code(), absl::Now() - start);
  LogEnd(rpc, status);
  reactor->Finish(ToGrpc(status));
}

// Runs `call` here or, when it is `large`, on a worker.
template <typename Call>
grpc::ServerUnaryReactor* RunUnary(const CallEnvironment* environment, grpc::CallbackServerContext* context, Rpc rpc,
                                   bool large, Call call) {
  LogTrace(*context, rpc);
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const absl::Time start = absl::Now();
  absl::StatusOr<CallGate::Pass> pass = environment->gate->Enter();
  if (!pass.ok()) {
    EndUnary(*environment, rpc, start, pass.status(), reactor);
    return reactor;
  }
  auto run = [environment, reactor, rpc, start, pass = *std::move(pass), call = std::move(call)] {
    EndUnary(*environment, rpc, start, call(), reactor);
  };
  if (!large) {
    run();
  } else if (!environment->workers->TryPost(std::move(run))) {
    environment->metrics->RecordRejection(Rejection::kQueueFull);
    EndUnary(*environment, rpc, start,
             WithRetry(absl::ResourceExhaustedError("too many calls wait for a worker thread"), kRetryDelay), reactor);
  }
  return reactor;
}

// gRPC's side of a PutCall. Deletes itself when gRPC is done with it.
class PutReactor final : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>, public PutCall::Transport {
 public:
  PutReactor(const CallEnvironment* environment, grpc::CallbackServerContext* context, const Tenant& tenant)
      : pass_(environment->gate->Enter()),
        context_(context),
        call_(std::make_shared<PutCall>(environment, this, environment->callers->Find(tenant, context->peer()))) {
    if (pass_.ok()) {
      call_->Start();
    } else {
      call_->Refuse(pass_.status());
    }
  }

  void OnReadDone(bool ok) override {
    if (!ok) return call_->OnReadsDone();
    std::unique_ptr<GrpcIncomingMessage> message = GrpcIncomingMessage::Create(incoming_);
    incoming_.Clear();
    if (message == nullptr) return call_->OnCancel();
    call_->OnMessage(std::move(message));
  }
  void OnWriteDone(bool ok) override { call_->OnWriteDone(ok); }
  void OnCancel() override { call_->OnCancel(); }
  void OnDone() override { delete this; }

 private:
  void StartRead() override { grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>::StartRead(&incoming_); }
  void StartWrite(const v1::PutResponse& response) override {
    outgoing_ = ToByteBuffer(response);
    grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>::StartWrite(&outgoing_);
  }
  void Finish(const absl::Status& status) override {
    LogEnd(Rpc::kPut, status);
    grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>::Finish(ToGrpc(status));
  }
  void Cancel() override { context_->TryCancel(); }

  const absl::StatusOr<CallGate::Pass> pass_;  // Goes last: then nothing of the call is left.
  grpc::CallbackServerContext* const context_;
  const std::shared_ptr<PutCall> call_;
  grpc::ByteBuffer incoming_;
  grpc::ByteBuffer outgoing_;
};

// gRPC's side of a GetCall. Deletes itself when gRPC is done with it.
class GetReactor final : public grpc::ServerWriteReactor<grpc::ByteBuffer>, public GetCall::Transport {
 public:
  GetReactor(const CallEnvironment* environment, grpc::CallbackServerContext* context, const Tenant& tenant,
             const grpc::ByteBuffer& request)
      : pass_(environment->gate->Enter()), context_(context), call_(std::make_shared<GetCall>(environment, this)) {
    v1::GetRequest parsed;
    if (!pass_.ok()) {
      call_->Refuse(pass_.status());
    } else if (ParseByteBuffer(request, &parsed)) {
      call_->Start(environment->callers->Find(tenant, context->peer()), parsed);
    } else {
      call_->Refuse(absl::InvalidArgumentError("malformed message: not a GetRequest"));
    }
  }

  void OnWriteDone(bool ok) override { call_->OnWriteDone(ok); }
  void OnCancel() override { call_->OnCancel(); }
  void OnDone() override { delete this; }

 private:
  void StartWrite(OutgoingMessage message) override {
    outgoing_ = ToByteBuffer(std::move(message));
    grpc::ServerWriteReactor<grpc::ByteBuffer>::StartWrite(&outgoing_);
  }
  void Finish(const absl::Status& status) override {
    LogEnd(Rpc::kGet, status);
    grpc::ServerWriteReactor<grpc::ByteBuffer>::Finish(ToGrpc(status));
  }
  void Cancel() override { context_->TryCancel(); }

  const absl::StatusOr<CallGate::Pass> pass_;
  grpc::CallbackServerContext* const context_;
  const std::shared_ptr<GetCall> call_;
  grpc::ByteBuffer outgoing_;
};

int LookupKeys(const v1::LookupRequest& request) {
  int keys = 0;
  for (const v1::LookupQuery& query : request.queries()) {
    for (const v1::KeyChain& chain : query.chains()) keys += chain.keys_size();
  }
  return keys;
}

}  // namespace

grpc::ServerUnaryReactor* KvCacheService::OpenCache(grpc::CallbackServerContext* context,
                                                    const v1::OpenCacheRequest* request,
                                                    v1::OpenCacheResponse* response) {
  return RunUnary(environment_, context, Rpc::kOpenCache, /*large=*/true,
                  [this, request, response] { return calls_.OpenCache(tenants_->Resolve(), *request, response); });
}

grpc::ServerUnaryReactor* KvCacheService::Lookup(grpc::CallbackServerContext* context, const v1::LookupRequest* request,
                                                 v1::LookupResponse* response) {
  return RunUnary(environment_, context, Rpc::kLookup, LookupKeys(*request) > kInlineKeysMax,
                  [this, request, response] { return calls_.Lookup(tenants_->Resolve(), *request, response); });
}

grpc::ServerUnaryReactor* KvCacheService::Delete(grpc::CallbackServerContext* context, const v1::DeleteRequest* request,
                                                 v1::DeleteResponse* response) {
  return RunUnary(environment_, context, Rpc::kDelete, request->keys_size() > kInlineKeysMax,
                  [this, request, response] { return calls_.Delete(tenants_->Resolve(), *request, response); });
}

grpc::ServerUnaryReactor* KvCacheService::Clear(grpc::CallbackServerContext* context, const v1::ClearRequest* request,
                                                v1::ClearResponse* response) {
  return RunUnary(environment_, context, Rpc::kClear, /*large=*/true,
                  [this, request, response] { return calls_.Clear(tenants_->Resolve(), *request, response); });
}

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* KvCacheService::Put(grpc::CallbackServerContext* context) {
  LogTrace(*context, Rpc::kPut);
  return new PutReactor(environment_, context, tenants_->Resolve());
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* KvCacheService::Get(grpc::CallbackServerContext* context,
                                                                const grpc::ByteBuffer* request) {
  LogTrace(*context, Rpc::kGet);
  return new GetReactor(environment_, context, tenants_->Resolve(), *request);
}

}  // namespace nqkv
