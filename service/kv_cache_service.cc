#include "service/kv_cache_service.h"

#include <memory>
#include <span>
#include <string>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "kernels/status_macros.h"
#include "proto/rpc_status.h"
#include "service/get_call.h"
#include "service/grpc_message.h"
#include "service/put_call.h"
#include "service/request_shape.h"
#include "service/session_call.h"
#include "service/unary_call.h"
#include "spdlog/spdlog.h"

namespace nqkv {
namespace {

constexpr uint64_t kSessionMessageBytesMax = 4 << 10;

// The caller's trace, so that its logs and ours can be laid side by side.
void LogTrace(const grpc::CallbackServerContext& context, Rpc rpc) {
  if (!spdlog::should_log(spdlog::level::debug)) return;
  const auto& metadata = context.client_metadata();
  const auto trace = metadata.find("traceparent");
  spdlog::debug("{} from {} traceparent={}", std::string(RpcName(rpc)), context.peer(),
                trace == metadata.end() ? "-" : absl::CEscape({trace->second.data(), trace->second.size()}));
}

void LogEnd(Rpc rpc, const absl::Status& status) {
  if (status.ok() || !spdlog::should_log(spdlog::level::debug)) return;
  spdlog::debug("{} ended: {}", std::string(RpcName(rpc)), absl::Utf8SafeCEscape(status.ToString()));
}

// The message that a handler was given. It is taken out of the handler's buffer, which lives as long as the call, so
// that its memory goes when the message does.
std::unique_ptr<IncomingMessage> TakeMessage(const grpc::ByteBuffer* request) {
  return GrpcIncomingMessage::Create(const_cast<grpc::ByteBuffer*>(request));
}

// gRPC's side of a UnaryCall. Deletes itself when gRPC is done with it.
class UnaryReactor final : public grpc::ServerUnaryReactor, public UnaryCall::Transport {
 public:
  UnaryReactor(const CallEnvironment* environment, grpc::CallbackServerContext* context, const Tenant& tenant,
               const UnaryMethod* method, const grpc::ByteBuffer* request, grpc::ByteBuffer* response)
      : context_(context),
        response_(response),
        call_(std::make_shared<UnaryCall>(environment, this, environment->callers->Find(tenant, context->peer()),
                                          method)) {
    call_->Start(TakeMessage(request));
  }

  void OnCancel() override { call_->OnCancel(); }
  void OnDone() override {
    call_->OnDone();
    delete this;
  }

 private:
  void Finish(const absl::Status& status, std::string reply) override {
    if (status.ok()) *response_ = ToByteBuffer(OutgoingMessage{.head = std::move(reply)});
    grpc::ServerUnaryReactor::Finish(ToGrpc(status));
  }
  void Cancel() override { context_->TryCancel(); }

  grpc::CallbackServerContext* const context_;
  grpc::ByteBuffer* const response_;
  const std::shared_ptr<UnaryCall> call_;
};

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
    std::unique_ptr<GrpcIncomingMessage> message = GrpcIncomingMessage::Create(&incoming_);
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
             const RequestShape* shape, const grpc::ByteBuffer* request)
      : pass_(environment->gate->Enter()), context_(context), call_(std::make_shared<GetCall>(environment, this)) {
    if (pass_.ok()) {
      call_->Start(environment->callers->Find(tenant, context->peer()), shape, TakeMessage(request));
    } else {
      call_->Refuse(pass_.status());
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

// gRPC's side of a SessionCall. Deletes itself when gRPC is done with it. Holds no pass: a session is not waited for
// when the server drains.
class SessionReactor final : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>,
                             public SessionCall::Transport {
 public:
  SessionReactor(const CallEnvironment* environment, grpc::CallbackServerContext* context, const Tenant& tenant,
                 const RequestShape* shape)
      : context_(context), shape_(shape), call_(std::make_shared<SessionCall>(environment, this, tenant)) {
    const absl::Status open = environment->gate->Enter().status();
    if (open.ok()) {
      call_->Start();
    } else {
      call_->Refuse(open);
    }
  }

  void OnReadDone(bool ok) override {
    if (!ok) return call_->OnReadsDone();
    v1::SessionRequest request;
    const absl::Status status = Parse(&request);
    status.ok() ? call_->OnMessage(request) : call_->OnBadMessage(status);
  }
  void OnWriteDone(bool ok) override { call_->OnWriteDone(ok); }
  void OnCancel() override { call_->OnCancel(); }
  void OnDone() override { delete this; }

 private:
  using Base = grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>;

  // Takes nothing from the budget: a session must not end since others are busy.
  absl::Status Parse(v1::SessionRequest* request) {
    const std::unique_ptr<GrpcIncomingMessage> message = GrpcIncomingMessage::Create(&incoming_);
    if (message == nullptr) return absl::InvalidArgumentError("malformed message: it cannot be unpacked");
    if (message->bytes() > kSessionMessageBytesMax) {
      return absl::InvalidArgumentError(
          absl::StrCat("message: ", message->bytes(), " bytes, at most ", kSessionMessageBytesMax));
    }
    NQKV_RETURN_IF_ERROR(shape_->Check(message->pieces()).status());
    std::string bytes;
    for (const std::span<const std::byte>& piece : message->pieces()) {
      bytes.append(reinterpret_cast<const char*>(piece.data()), piece.size());
    }
    return request->ParseFromString(bytes) ? absl::OkStatus() : shape_->Malformed("a string is not UTF-8");
  }

  void StartRead() override { Base::StartRead(&incoming_); }
  void StartWrite(const v1::SessionResponse& response) override {
    outgoing_ = ToByteBuffer(response);
    Base::StartWrite(&outgoing_);
  }
  void Finish(const absl::Status& status) override {
    LogEnd(Rpc::kSession, status);
    Base::Finish(ToGrpc(status));
  }
  void Cancel() override { context_->TryCancel(); }

  grpc::CallbackServerContext* const context_;
  const RequestShape* const shape_;
  const std::shared_ptr<SessionCall> call_;
  grpc::ByteBuffer incoming_;
  grpc::ByteBuffer outgoing_;
};

}  // namespace

grpc::ServerUnaryReactor* KvCacheService::OpenCache(grpc::CallbackServerContext* context,
                                                    const grpc::ByteBuffer* request, grpc::ByteBuffer* response) {
  LogTrace(*context, Rpc::kOpenCache);
  return new UnaryReactor(environment_, context, tenants_->Resolve(), &methods_.open_cache, request, response);
}

grpc::ServerUnaryReactor* KvCacheService::Lookup(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                                 grpc::ByteBuffer* response) {
  LogTrace(*context, Rpc::kLookup);
  return new UnaryReactor(environment_, context, tenants_->Resolve(), &methods_.lookup, request, response);
}

grpc::ServerUnaryReactor* KvCacheService::Delete(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                                 grpc::ByteBuffer* response) {
  LogTrace(*context, Rpc::kDelete);
  return new UnaryReactor(environment_, context, tenants_->Resolve(), &methods_.delete_blocks, request, response);
}

grpc::ServerUnaryReactor* KvCacheService::Clear(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                                grpc::ByteBuffer* response) {
  LogTrace(*context, Rpc::kClear);
  return new UnaryReactor(environment_, context, tenants_->Resolve(), &methods_.clear, request, response);
}

grpc::ServerUnaryReactor* KvCacheService::Release(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                                  grpc::ByteBuffer* response) {
  LogTrace(*context, Rpc::kRelease);
  return new UnaryReactor(environment_, context, tenants_->Resolve(), &methods_.release, request, response);
}

grpc::ServerUnaryReactor* KvCacheService::Touch(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                                grpc::ByteBuffer* response) {
  LogTrace(*context, Rpc::kTouch);
  return new UnaryReactor(environment_, context, tenants_->Resolve(), &methods_.touch, request, response);
}

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* KvCacheService::Session(
    grpc::CallbackServerContext* context) {
  LogTrace(*context, Rpc::kSession);
  return new SessionReactor(environment_, context, tenants_->Resolve(), &session_shape_);
}

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* KvCacheService::Put(grpc::CallbackServerContext* context) {
  LogTrace(*context, Rpc::kPut);
  return new PutReactor(environment_, context, tenants_->Resolve());
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* KvCacheService::Get(grpc::CallbackServerContext* context,
                                                                const grpc::ByteBuffer* request) {
  LogTrace(*context, Rpc::kGet);
  return new GetReactor(environment_, context, tenants_->Resolve(), &get_shape_, request);
}

}  // namespace nqkv
