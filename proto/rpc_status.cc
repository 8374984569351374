#include "proto/rpc_status.h"

#include <cstdint>
#include <string>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace nqkv {
namespace {

constexpr absl::string_view kTypePrefix = "type.googleapis.com/";

template <typename Message>
std::string TypeUrl() {
  return absl::StrCat(kTypePrefix, Message::descriptor()->full_name());
}

template <typename Message>
void SetDetail(absl::Status* status, const Message& message) {
  status->SetPayload(TypeUrl<Message>(), absl::Cord(message.SerializeAsString()));
}

// At most kStatusTextBytesMax bytes, and never a part of a UTF-8 sequence at the end.
std::string Shortened(absl::string_view text) {
  constexpr absl::string_view kEllipsis = "...";
  if (text.size() <= kStatusTextBytesMax) return std::string(text);
  size_t size = kStatusTextBytesMax - kEllipsis.size();
  while (size > 0 && (text[size] & 0xC0) == 0x80) --size;
  return absl::StrCat(text.substr(0, size), kEllipsis);
}

absl::Status WithViolation(absl::Status status, absl::string_view field, absl::string_view description) {
  google::rpc::BadRequest detail;
  auto* violation = detail.add_field_violations();
  violation->set_field(Shortened(field));
  violation->set_description(Shortened(description));
  SetDetail(&status, detail);
  return status;
}

}  // namespace

absl::Status FieldError(absl::string_view field, absl::string_view description) {
  return WithViolation(absl::InvalidArgumentError(absl::StrCat(field, ": ", description)), field, description);
}

absl::Status NotBuiltYet(absl::string_view field) {
  return WithViolation(absl::UnimplementedError(absl::StrCat(field, " is not built yet")), field, "not built yet");
}

absl::Status UnknownField(absl::string_view message, uint64_t number) {
  const std::string description = absl::StrCat("field ", number, " is not known to this server");
  return WithViolation(absl::UnimplementedError(absl::StrCat(message, ": ", description)), message, description);
}

absl::Status WithRetry(absl::Status status, absl::Duration delay) {
  google::rpc::RetryInfo detail;
  const int64_t nanos = absl::ToInt64Nanoseconds(delay);
  detail.mutable_retry_delay()->set_seconds(nanos / 1'000'000'000);
  detail.mutable_retry_delay()->set_nanos(static_cast<int32_t>(nanos % 1'000'000'000));
  SetDetail(&status, detail);
  return status;
}

absl::Duration RetryDelay(const absl::Status& status) {
  const absl::optional<absl::Cord> payload = status.GetPayload(TypeUrl<google::rpc::RetryInfo>());
  google::rpc::RetryInfo detail;
  if (!payload.has_value() || !detail.ParseFromString(std::string(*payload))) return absl::ZeroDuration();
  return absl::Seconds(detail.retry_delay().seconds()) + absl::Nanoseconds(detail.retry_delay().nanos());
}

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  google::rpc::Status details;
  details.set_code(status.raw_code());
  const std::string message = Shortened(status.message());
  details.set_message(message);
  status.ForEachPayload([&](absl::string_view type_url, const absl::Cord& payload) {
    auto* any = details.add_details();
    any->set_type_url(std::string(type_url));
    any->set_value(std::string(payload));
  });
  const std::string serialized = details.details_size() > 0 ? details.SerializeAsString() : "";
  return grpc::Status(static_cast<grpc::StatusCode>(status.raw_code()), message, serialized);
}

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  absl::Status result(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
  google::rpc::Status details;
  if (!status.error_details().empty() && details.ParseFromString(status.error_details())) {
    for (const auto& any : details.details()) result.SetPayload(any.type_url(), absl::Cord(any.value()));
  }
  return result;
}

void ToProto(const absl::Status& status, v1::Status* out) {
  out->set_code(status.raw_code());
  out->set_message(std::string(status.message()));
  out->set_retry_seconds(absl::ToDoubleSeconds(RetryDelay(status)));
}

absl::Status FromProto(const v1::Status& status) {
  if (status.code() == 0) return absl::OkStatus();
  absl::Status result(static_cast<absl::StatusCode>(status.code()), status.message());
  return status.retry_seconds() > 0 ? WithRetry(std::move(result), absl::Seconds(status.retry_seconds())) : result;
}

}  // namespace nqkv
