#include "proto/rpc_status.h"

#include "absl/strings/cord.h"
#include "gmock/gmock.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "gtest/gtest.h"

namespace nqkv {
namespace {

constexpr char kBadRequestUrl[] = "type.googleapis.com/google.rpc.BadRequest";

// What a client finds in grpc-status-details-bin.
google::rpc::Status Details(const grpc::Status& status) {
  google::rpc::Status details;
  EXPECT_TRUE(details.ParseFromString(status.error_details()));
  return details;
}

google::rpc::BadRequest BadRequestOf(const grpc::Status& status) {
  google::rpc::BadRequest bad_request;
  const google::rpc::Status details = Details(status);
  EXPECT_EQ(details.details_size(), 1);
  EXPECT_EQ(details.details(0).type_url(), kBadRequestUrl);
  EXPECT_TRUE(bad_request.ParseFromString(details.details(0).value()));
  return bad_request;
}

TEST(RpcStatusTest, NamesTheFieldInMessageAndDetail) {
  const grpc::Status status = ToGrpc(FieldError("spec.model", "is empty"));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(status.error_message(), "spec.model: is empty");
  const google::rpc::BadRequest bad_request = BadRequestOf(status);
  ASSERT_EQ(bad_request.field_violations_size(), 1);
  EXPECT_EQ(bad_request.field_violations(0).field(), "spec.model");
  EXPECT_EQ(bad_request.field_violations(0).description(), "is empty");
}

TEST(RpcStatusTest, NamesTheFieldThatIsNotBuiltYet) {
  const grpc::Status status = ToGrpc(NotBuiltYet("queries[0].lease"));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_EQ(status.error_message(), "queries[0].lease is not built yet");
  EXPECT_EQ(BadRequestOf(status).field_violations(0).field(), "queries[0].lease");
}

TEST(RpcStatusTest, RepeatsCodeAndMessageInTheDetails) {
  const google::rpc::Status details = Details(ToGrpc(FieldError("name", "is empty")));
  EXPECT_EQ(details.code(), 3);
  EXPECT_EQ(details.message(), "name: is empty");
}

TEST(RpcStatusTest, SendsNoDetailsWhereThereAreNone) {
  EXPECT_EQ(ToGrpc(absl::NotFoundError("no cache 7")).error_details(), "");
}

TEST(RpcStatusTest, KeepsEveryCodeBothWays) {
  for (int code = 1; code <= 16; ++code) {
    const absl::Status status(static_cast<absl::StatusCode>(code), "because");
    const grpc::Status sent = ToGrpc(status);
    EXPECT_EQ(static_cast<int>(sent.error_code()), code);
    EXPECT_EQ(FromGrpc(sent), status);
  }
  EXPECT_TRUE(ToGrpc(absl::OkStatus()).ok());
  EXPECT_TRUE(FromGrpc(grpc::Status::OK).ok());
}

TEST(RpcStatusTest, CarriesARetryDelayToTheClient) {
  const absl::Duration delay = absl::Milliseconds(1250);
  const absl::Status sent = WithRetry(absl::ResourceExhaustedError("full"), delay);
  const absl::Status received = FromGrpc(ToGrpc(sent));
  EXPECT_EQ(received, sent);
  EXPECT_EQ(RetryDelay(received), delay);
}

TEST(RpcStatusTest, KeepsTheViolationBesideTheRetryDelay) {
  const absl::Status received = FromGrpc(ToGrpc(WithRetry(FieldError("a", "b"), absl::Seconds(1))));
  EXPECT_EQ(RetryDelay(received), absl::Seconds(1));
  EXPECT_TRUE(received.GetPayload(kBadRequestUrl).has_value());
}

TEST(RpcStatusTest, HasNoRetryDelayWithoutTheDetailOrWithADamagedOne) {
  EXPECT_EQ(RetryDelay(absl::OkStatus()), absl::ZeroDuration());
  EXPECT_EQ(RetryDelay(absl::UnavailableError("draining")), absl::ZeroDuration());
  absl::Status damaged = absl::UnavailableError("draining");
  damaged.SetPayload("type.googleapis.com/google.rpc.RetryInfo", absl::Cord("\xff\xff"));
  EXPECT_EQ(RetryDelay(damaged), absl::ZeroDuration());
}

TEST(RpcStatusTest, KeepsCodeAndMessageWhenDetailsCannotBeRead) {
  const absl::Status status = FromGrpc(grpc::Status(grpc::StatusCode::NOT_FOUND, "no cache 7", "\xff\xff"));
  EXPECT_EQ(status, absl::NotFoundError("no cache 7"));
}

// What the status takes in a response's metadata: the message is percent-encoded, the details are base64.
size_t MetadataBytes(const grpc::Status& status) {
  size_t bytes = (status.error_details().size() + 2) / 3 * 4;
  for (const char c : status.error_message()) bytes += c >= ' ' && c <= '~' && c != '%' ? 1 : 3;
  return bytes;
}

TEST(RpcStatusTest, StaysBelowTheMetadataThatAPeerTakes) {
  std::string text;
  for (int i = 0; i < 4'000; ++i) text += "\xE2\x82\xAC";  // Three bytes a character, nine when percent-encoded.
  const grpc::Status sent = ToGrpc(WithRetry(FieldError(text, text), absl::Seconds(1)));
  EXPECT_LT(MetadataBytes(sent), 8'000);
  EXPECT_EQ(sent.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(sent.error_message(), testing::StartsWith("\xE2\x82\xAC\xE2\x82\xAC"));
  EXPECT_THAT(sent.error_message(), testing::EndsWith("\xE2\x82\xAC..."));
  EXPECT_EQ(Details(sent).message(), sent.error_message());
  EXPECT_EQ(RetryDelay(FromGrpc(sent)), absl::Seconds(1));
}

TEST(RpcStatusTest, KeepsATextOfTheGreatestLengthWhole) {
  const std::string text(kStatusTextBytesMax, 'x');
  EXPECT_EQ(ToGrpc(absl::NotFoundError(text)).error_message(), text);
  EXPECT_EQ(ToGrpc(absl::NotFoundError(text + "y")).error_message().size(), kStatusTextBytesMax);
}

TEST(RpcStatusTest, CarriesABlocksStatusBothWays) {
  v1::Status proto;
  const absl::Status full = WithRetry(absl::ResourceExhaustedError("full"), absl::Milliseconds(500));
  ToProto(full, &proto);
  EXPECT_EQ(proto.code(), 8);
  EXPECT_EQ(proto.message(), "full");
  EXPECT_EQ(proto.retry_seconds(), 0.5);
  EXPECT_EQ(FromProto(proto), full);
}

TEST(RpcStatusTest, OverwritesTheBlocksStatusThatWasThere) {
  v1::Status proto;
  ToProto(WithRetry(absl::ResourceExhaustedError("full"), absl::Seconds(1)), &proto);
  ToProto(absl::OkStatus(), &proto);
  EXPECT_EQ(proto.code(), 0);
  EXPECT_EQ(proto.message(), "");
  EXPECT_EQ(proto.retry_seconds(), 0);
  EXPECT_TRUE(FromProto(proto).ok());
}

}  // namespace
}  // namespace nqkv
