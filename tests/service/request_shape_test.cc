#include "service/request_shape.h"

#include <functional>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "google/protobuf/dynamic_message.h"
#include "gtest/gtest.h"
#include "nqkv/v1/kv_cache.pb.h"
#include "service/request_parser.h"
#include "tests/service/model_blocks.h"

namespace nqkv {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using ::testing::HasSubstr;
using ::testing::StartsWith;

absl::StatusOr<uint64_t> Check(const RequestShape& shape, const std::string& bytes, size_t piece_bytes = 1 << 20) {
  std::vector<std::span<const std::byte>> pieces = {{}};  // Empty pieces are legal.
  const std::span<const std::byte> all = std::as_bytes(std::span(bytes));
  for (size_t begin = 0; begin < all.size(); begin += piece_bytes) {
    pieces.push_back(all.subspan(begin, std::min(piece_bytes, all.size() - begin)));
    pieces.push_back({});
  }
  return shape.Check(pieces);
}

std::string Varint(uint64_t value) {
  std::string bytes;
  for (; value >= 0x80; value >>= 7) bytes.push_back(static_cast<char>(value | 0x80));
  bytes.push_back(static_cast<char>(value));
  return bytes;
}
std::string Field(int number, const std::string& content) {
  return absl::StrCat(Varint(static_cast<uint64_t>(number) << 3 | 2), Varint(content.size()), content);
}
std::string Repeat(const std::string& bytes, size_t times) {
  std::string repeated;
  for (size_t i = 0; i < times; ++i) repeated += bytes;
  return repeated;
}

v1::GetRequest RichGet() {
  v1::GetRequest request;
  request.set_cache_id(UINT64_MAX);
  request.set_dtype(v1::DTYPE_BFLOAT16);
  request.mutable_chain()->add_keys("a key");
  request.mutable_chain()->add_keys(std::string(64, 'k'));
  request.mutable_layers()->set_end(300);
  request.set_max_floor_error(0.5f);
  request.add_regions()->add_strides(1u << 20);
  request.mutable_regions(0)->add_page_table(7);
  request.set_session_id("session");
  return request;
}

TEST(RequestShapeTest, AgreesWithTheParserOnEveryTruncation) {
  const RequestShape shape = ShapeOf(Rpc::kGet, {});
  const std::string bytes = RichGet().SerializeAsString();
  for (size_t size = 0; size <= bytes.size(); ++size) {
    const std::string cut = bytes.substr(0, size);
    const bool parses = v1::GetRequest().ParseFromString(cut);
    for (const size_t piece_bytes : {1, 3, 1'000}) {
      EXPECT_EQ(Check(shape, cut, piece_bytes).ok(), parses) << size << " of " << bytes.size();
    }
  }
}

TEST(RequestShapeTest, WhatPassesParsesWhateverItsBytesAre) {
  const RequestShape shape = ShapeOf(Rpc::kGet, {});
  v1::GetRequest request = RichGet();
  request.clear_session_id();
  const std::string bytes = request.SerializeAsString();
  constexpr char kSessionTag = v1::GetRequest::kSessionIdFieldNumber << 3 | 2;
  std::mt19937 random(1);
  int passed = 0;
  for (int i = 0; i < 200'000; ++i) {
    std::string changed = bytes;
    for (int change = 0; change < 2; ++change) changed[random() % changed.size()] = static_cast<char>(random());
    // The walk does not look into strings, and one that is not UTF-8 stops the parser.
    if (changed.find(kSessionTag) != std::string::npos) continue;
    if (!Check(shape, changed, 1 + random() % 8).ok()) continue;
    ++passed;
    EXPECT_TRUE(v1::GetRequest().ParseFromString(changed)) << testing::PrintToString(changed);
  }
  EXPECT_GT(passed, 10'000);
}

TEST(RequestShapeTest, TellsAboutWhatTheParsedMessageTakes) {
  v1::LookupRequest lookup;
  for (int q = 0; q < 100; ++q) {
    v1::KeyChain* chain = lookup.add_queries()->add_chains();
    for (int key = 0; key < q; ++key) chain->add_keys(std::string(static_cast<size_t>(key % 65), 'k'));
  }
  const std::string bytes = lookup.SerializeAsString();
  v1::LookupRequest parsed;
  ASSERT_TRUE(parsed.ParseFromString(bytes));
  const uint64_t told = *Check(ShapeOf(Rpc::kLookup, {}), bytes);
  EXPECT_GE(told + sizeof(parsed), parsed.SpaceUsedLong());
  EXPECT_LE(told, 2 * parsed.SpaceUsedLong());

  v1::OpenCacheRequest open;
  *open.mutable_spec() = ModelSpec();
  EXPECT_GE(*Check(ShapeOf(Rpc::kOpenCache, {}), open.SerializeAsString()) + sizeof(open), open.SpaceUsedLong());
}

TEST(RequestShapeTest, BoundsEveryRepeatedFieldOverTheWholeMessage) {
  const ServiceLimits limits = {.lookup_keys_max = 100, .get_keys_max = 10, .delete_keys_max = 20};
  const auto expect = [&](Rpc rpc, const std::string& most, const std::string& one_more, absl::string_view words) {
    EXPECT_TRUE(Check(ShapeOf(rpc, limits), most).ok()) << words;
    const absl::Status status = Check(ShapeOf(rpc, limits), most + one_more).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(std::string(words)));
  };
  const std::string query = Field(3, "");
  expect(Rpc::kLookup, Repeat(query, 4'096), query, "queries: more than 4096 of them in one message");
  const std::string chain = Field(3, Field(1, ""));
  expect(Rpc::kLookup, Field(3, Repeat(Field(1, ""), 65'536)), chain, "queries.chains: more than 65536");
  const std::string fifty_keys = Field(3, Field(1, Repeat(Field(4, "k"), 50)));
  expect(Rpc::kLookup, fifty_keys + fifty_keys, Field(3, Field(1, Field(4, ""))), "queries.chains.keys: more than 100");
  expect(Rpc::kGet, Field(3, Repeat(Field(4, ""), 10)), Field(3, Field(4, "")), "chain.keys: more than 10");
  expect(Rpc::kGet, Field(12, Field(4, std::string(65'536, '\0'))), Field(12, Field(4, std::string(1, '\0'))),
         "regions.page_table: more than 65536");
  expect(Rpc::kDelete, Repeat(Field(3, ""), 20), Field(3, ""), "keys: more than 20");
  expect(Rpc::kOpenCache, Field(2, Repeat(Field(6, Repeat(Field(4, ""), 2'048)), 64)), Field(2, Field(6, Field(4, ""))),
         "spec.layer_groups.planes: more than 131072");
}

// Calls `visit` with each message type below `type`, and how to wrap its bytes up into a request.
using Wrap = std::function<std::string(const std::string&)>;
void VisitTypes(const Descriptor* type, const std::string& path, const Wrap& wrap,
                const std::function<void(const Descriptor*, const std::string&, const Wrap&)>& visit) {
  visit(type, path, wrap);
  for (int i = 0; i < type->field_count(); ++i) {
    const FieldDescriptor* field = type->field(i);
    if (field->message_type() == nullptr) continue;
    const int number = field->number();
    VisitTypes(
        field->message_type(), path.empty() ? field->name() : absl::StrCat(path, ".", field->name()),
        [wrap, number](const std::string& bytes) { return wrap(Field(number, bytes)); }, visit);
  }
}

struct Root {
  const Descriptor* type;
  const RequestShape& shape;
};

TEST(RequestShapeTest, RefusesUnknownFieldsAndOtherWireTypesInEveryMessage) {
  const RequestShape open = ShapeOf(Rpc::kOpenCache, {});
  const RequestShape lookup = ShapeOf(Rpc::kLookup, {});
  const RequestShape get = ShapeOf(Rpc::kGet, {});
  const RequestShape remove = ShapeOf(Rpc::kDelete, {});
  const RequestShape clear = ShapeOf(Rpc::kClear, {});
  const Root roots[] = {{v1::OpenCacheRequest::descriptor(), open}, {v1::LookupRequest::descriptor(), lookup},
                        {v1::GetRequest::descriptor(), get},        {v1::DeleteRequest::descriptor(), remove},
                        {v1::ClearRequest::descriptor(), clear},    {v1::PutRequest::descriptor(), PutShape()}};
  int types = 0;
  for (const Root& root : roots) {
    const Wrap whole = [](const std::string& bytes) { return bytes; };
    VisitTypes(root.type, "", whole, [&](const Descriptor* type, const std::string& path, const Wrap& wrap) {
      ++types;
      const std::string place = path.empty() ? root.type->name() : path;
      for (const uint64_t number : {16, 99, 536'870'911}) {
        const absl::Status status = Check(root.shape, wrap(Varint(number << 3) + "\1")).status();
        EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << place << " " << number;
        EXPECT_EQ(std::string(status.message()),
                  absl::StrCat(place, ": field ", number, " is not known to this server"));
      }
      for (int i = 0; i < type->field_count(); ++i) {
        const uint64_t number = static_cast<uint64_t>(type->field(i)->number());
        for (const uint64_t wire_type : {3, 4, 6, 7}) {
          const absl::Status status = Check(root.shape, wrap(Varint(number << 3 | wire_type))).status();
          EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << type->field(i)->full_name();
          EXPECT_THAT(std::string(status.message()), HasSubstr(absl::StrCat(" has wire type ", wire_type, ", not ")));
        }
      }
    });
  }
  EXPECT_GE(types, 25);
}

TEST(RequestShapeTest, RefusesNumbersThatTheParserDoesNotTake) {
  const RequestShape shape = ShapeOf(Rpc::kClear, {});
  for (const std::string& bytes : {std::string("\x00\x01", 2), std::string("\x88\x80\x80\x80\x80\x00\x01", 7),
                                   std::string("\x08") + std::string(11, '\x80')}) {
    EXPECT_FALSE(v1::ClearRequest().ParseFromString(bytes));
    EXPECT_THAT(std::string(Check(shape, bytes).status().message()),
                StartsWith("malformed message: not a ClearRequest: "));
  }
  EXPECT_TRUE(Check(shape, "\x08" + std::string(9, '\xff') + "\x01").ok());  // The longest number.
}

}  // namespace
}  // namespace nqkv
