#include "service/request_check.h"

#include <algorithm>
#include <fstream>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/dynamic_message.h"
#include "gtest/gtest.h"
#include "nqkv/v1/kv_cache.pb.h"
#include "tests/service/call_fixture.h"

namespace nqkv {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::EnumValueDescriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using ::testing::HasSubstr;

std::unique_ptr<Message> NewMessage(const Descriptor* type) {
  return std::unique_ptr<Message>(google::protobuf::MessageFactory::generated_factory()->GetPrototype(type)->New());
}

// Any value that is not the default.
void SetField(Message* message, const FieldDescriptor* field) {
  const auto* reflection = message->GetReflection();
  const bool repeated = field->is_repeated();
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_MESSAGE:
      repeated ? reflection->AddMessage(message, field) : reflection->MutableMessage(message, field);
      return;
    case FieldDescriptor::CPPTYPE_STRING:
      return reflection->SetString(message, field, "x");
    case FieldDescriptor::CPPTYPE_UINT32:
      return reflection->SetUInt32(message, field, 1);
    case FieldDescriptor::CPPTYPE_FLOAT:
      return reflection->SetFloat(message, field, 0.5f);
    case FieldDescriptor::CPPTYPE_BOOL:
      return reflection->SetBool(message, field, true);
    default:
      FAIL() << "no value for " << field->full_name();
  }
}

// The request type in which a message of `type` can stand, with one of it inside.
struct Inside {
  std::unique_ptr<Message> request;
  Message* message = nullptr;
};

Message* FindOrAdd(Message* message, const Descriptor* type) {
  if (message->GetDescriptor() == type) return message;
  for (int i = 0; i < message->GetDescriptor()->field_count(); ++i) {
    const FieldDescriptor* field = message->GetDescriptor()->field(i);
    if (field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE) continue;
    const auto* reflection = message->GetReflection();
    Message* child =
        field->is_repeated() ? reflection->AddMessage(message, field) : reflection->MutableMessage(message, field);
    if (Message* found = FindOrAdd(child, type)) return found;
    reflection->ClearField(message, field);
  }
  return nullptr;
}

Inside RequestWith(const Descriptor* type) {
  const auto* service = google::protobuf::DescriptorPool::generated_pool()->FindServiceByName("nqkv.v1.KvCache");
  for (int i = 0; i < service->method_count(); ++i) {
    Inside inside;
    inside.request = NewMessage(service->method(i)->input_type());
    inside.message = FindOrAdd(inside.request.get(), type);
    if (inside.message != nullptr) return inside;
  }
  return {};
}

// What a client that sends this is told.
absl::Status AnswerOf(ServiceParts* parts, const Message& request) {
  const CacheCalls calls = parts->calls();
  if (const auto* open = dynamic_cast<const v1::OpenCacheRequest*>(&request)) {
    v1::OpenCacheResponse response;
    return calls.OpenCache(parts->tenant(), *open, &response);
  }
  if (const auto* lookup = dynamic_cast<const v1::LookupRequest*>(&request)) {
    v1::LookupResponse response;
    return calls.Lookup(parts->tenant(), *lookup, &response);
  }
  if (const auto* put = dynamic_cast<const v1::PutRequest*>(&request)) {
    FakePut stream(parts);
    stream.Send(*put);
    stream.HalfClose();
    return stream.Wait();
  }
  if (const auto* get = dynamic_cast<const v1::GetRequest*>(&request)) {
    FakeGet stream(parts);
    stream.Start(*get);
    return stream.Wait();
  }
  return absl::InternalError(request.GetTypeName());
}

TEST(RequestCheckTest, LetsAnEmptyRequestOfEachRpcPass) {
  v1::OpenCacheRequest::descriptor();
  const auto* service = google::protobuf::DescriptorPool::generated_pool()->FindServiceByName("nqkv.v1.KvCache");
  ASSERT_EQ(service->method_count(), 9);
  for (int i = 0; i < service->method_count(); ++i) {
    EXPECT_TRUE(CheckRequest(*NewMessage(service->method(i)->input_type())).ok());
  }
}

TEST(RequestCheckTest, RefusesEachFieldThatIsNotBuiltYetByItsName) {
  ServiceParts parts;
  const auto* pool = google::protobuf::DescriptorPool::generated_pool();
  for (const NotBuiltField& entry : NotBuiltFields()) {
    const Descriptor* type = pool->FindMessageTypeByName(std::string(entry.message));
    ASSERT_NE(type, nullptr) << std::string(entry.message);
    const FieldDescriptor* field = type->FindFieldByName(std::string(entry.field));
    ASSERT_NE(field, nullptr) << std::string(entry.field);
    const Inside inside = RequestWith(type);
    ASSERT_NE(inside.message, nullptr) << "no request holds " << std::string(entry.message);
    EXPECT_TRUE(CheckRequest(*inside.request).ok()) << std::string(entry.message);
    SetField(inside.message, field);
    const absl::Status status = AnswerOf(&parts, *inside.request);
    EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << std::string(entry.field) << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(absl::StrCat(entry.field, " is not built yet")));
  }
}

TEST(RequestCheckTest, RefusesEachEnumValueThatIsNotBuiltYetByItsName) {
  ServiceParts parts;
  const auto* pool = google::protobuf::DescriptorPool::generated_pool();
  int checked = 0;
  for (const NotBuiltValue& entry : NotBuiltValues()) {
    const auto* type = pool->FindEnumTypeByName(std::string(entry.type));
    const EnumValueDescriptor* value = type->FindValueByName(std::string(entry.value));
    ASSERT_NE(value, nullptr) << std::string(entry.value);
    for (const Descriptor* message_type :
         {v1::PlaneSpec::descriptor(), v1::LayerGroup::descriptor(), v1::CodecPolicy::descriptor(),
          v1::PutBegin::descriptor(), v1::GetRequest::descriptor()}) {
      for (int i = 0; i < message_type->field_count(); ++i) {
        const FieldDescriptor* field = message_type->field(i);
        if (field->enum_type() != type) continue;
        const Inside inside = RequestWith(message_type);
        inside.message->GetReflection()->SetEnum(inside.message, field, value);
        const absl::Status status = AnswerOf(&parts, *inside.request);
        EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << value->full_name() << ": " << status;
        EXPECT_THAT(std::string(status.message()), HasSubstr(value->name()));
        ++checked;
      }
    }
  }
  EXPECT_GE(checked, static_cast<int>(NotBuiltValues().size()));
}

// Names, "Message.field" and "Enum.VALUE", whose comment in the .proto says "Not built yet".
std::set<std::string> MarkedInContract() {
  std::ifstream proto(NQKV_PROTO_FILE);
  std::set<std::string> names;
  std::string scope;
  for (std::string line; std::getline(proto, line);) {
    const std::vector<std::string> words = absl::StrSplit(line, ' ', absl::SkipEmpty());
    if (words.size() == 3 && words[2] == "{") scope = words[1];
    const auto equals = std::find(words.begin(), words.end(), "=");
    if (equals == words.end() || equals == words.begin() || !absl::StrContains(line, "Not built yet")) continue;
    names.insert(absl::StrCat("nqkv.v1.", scope, ".", *(equals - 1)));
  }
  return names;
}

TEST(RequestCheckTest, RefusesExactlyWhatTheContractMarks) {
  std::set<std::string> refused;
  for (const NotBuiltField& entry : NotBuiltFields()) refused.insert(absl::StrCat(entry.message, ".", entry.field));
  for (const NotBuiltValue& entry : NotBuiltValues()) refused.insert(absl::StrCat(entry.type, ".", entry.value));
  std::set<std::string> marked = MarkedInContract();
  ASSERT_FALSE(marked.empty()) << NQKV_PROTO_FILE;
  for (const char* in_responses :
       {"nqkv.v1.LookupResult.estimated_load_seconds", "nqkv.v1.PutOutcome.PUT_OUTCOME_REPLACED"}) {
    EXPECT_EQ(marked.erase(in_responses), 1u) << in_responses;
  }
  EXPECT_EQ(refused, marked);
}

TEST(RequestCheckTest, NamesTheFieldsPath) {
  v1::LookupRequest request;
  request.add_queries();
  request.add_queries()->add_chains();
  request.mutable_queries(1)->add_chains()->set_run_first_key("k");
  EXPECT_EQ(std::string(CheckRequest(request).message()), "queries[1].chains[1].run_first_key is not built yet");
}

TEST(RequestCheckTest, RefusesEnumNumbersThatItDoesNotKnow) {
  v1::OpenCacheRequest request;
  request.mutable_policy()->set_codec(static_cast<v1::Codec>(77));
  const absl::Status status = CheckRequest(request);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(std::string(status.message()), "policy.codec: unknown value 77");
}

}  // namespace
}  // namespace nqkv
