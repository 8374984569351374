#include "client/safetensors.h"

#include <fstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/safetensors_file.h"
#include "tests/support/temp_dir.h"

namespace nqkv::client {
namespace {

using ::testing::HasSubstr;
using testing::SafetensorsBuilder;
using testing::SafetensorsBytes;

absl::StatusOr<Safetensors> Parse(const std::string& file) {
  return Safetensors::Parse({reinterpret_cast<const std::byte*>(file.data()), file.size()});
}

void ExpectRefused(const std::string& file, const char* message) {
  const absl::Status status = Parse(file).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(message));
}

// One tensor `t` described by `json` over four bytes of data.
void ExpectTensorRefused(const std::string& json, const char* message) {
  ExpectRefused(SafetensorsBytes("{\"t\":" + json + "}", "abcd"), message);
}

TEST(Safetensors, GivesTensorsAndMetadata) {
  const std::string bytes =
      SafetensorsBuilder().Add("a", "F16", {2, 1}, "abcd").Add("b", "I64", {1}, "12345678").Metadata("k", "v").Build();
  const auto file = Parse(bytes);
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_NE(file->Find("a"), nullptr);
  EXPECT_EQ(file->Find("a")->dtype, "F16");
  EXPECT_EQ(file->Find("a")->shape, (std::vector<uint64_t>{2, 1}));
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(file->Find("b")->bytes.data()), 8), "12345678");
  EXPECT_EQ(file->Find("c"), nullptr);
  EXPECT_EQ(file->Metadata("k"), "v");
  EXPECT_EQ(file->Metadata("none"), "");
}

TEST(Safetensors, TakesScalarsAndEmptyTensors) {
  const auto file = Parse(SafetensorsBuilder()
                              .Add("empty", "F32", {0, 5}, "")
                              .Add("scalar", "F32", {}, "abcd")
                              .Add("end", "F32", {0}, "")
                              .Build());
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_TRUE(file->Find("empty")->bytes.empty());
  EXPECT_EQ(file->Find("scalar")->bytes.size(), 4u);
}

TEST(Safetensors, RefusesAFileThatIsNone) {
  ExpectRefused("", "too short");
  ExpectRefused("1234567", "too short");
  ExpectRefused(std::string(8, '\xff'), "longer than the file");
  ExpectRefused(SafetensorsBytes("", ""), "not a JSON object");
  ExpectRefused(SafetensorsBytes("[]", ""), "not a JSON object");
  ExpectRefused(SafetensorsBytes("{\"t\":", ""), "not a JSON object");
  ExpectRefused(SafetensorsBytes("{} trailing", ""), "not a JSON object");
  ExpectRefused(SafetensorsBytes(std::string("{\"\xff\":1}"), ""), "not a JSON object");
}

TEST(Safetensors, RefusesAHeaderThatIsTooLong) {
  ExpectRefused(SafetensorsBytes("{}" + std::string(Safetensors::kHeaderBytesMax, ' '), ""), "header has over");
}

TEST(Safetensors, RefusesAHeaderThatIsNestedTooDeep) {
  ExpectRefused(SafetensorsBytes(std::string(1'000'000, '['), ""), "nested too deep");
  ExpectRefused(SafetensorsBytes("{\"t\":{\"shape\":[[[1]]]}}", ""), "nested too deep");
}

TEST(Safetensors, RefusesATensorThatContradictsItself) {
  ExpectTensorRefused("5", "is not an object");
  ExpectTensorRefused("{}", "has no dtype");
  ExpectTensorRefused(R"({"dtype":5})", "has no dtype");
  ExpectTensorRefused(R"({"dtype":"F17","shape":[1],"data_offsets":[0,4]})", "unknown dtype");
  ExpectTensorRefused(R"({"dtype":"F32","data_offsets":[0,4]})", "shape is not an array");
  ExpectTensorRefused(R"({"dtype":"F32","shape":[-1],"data_offsets":[0,4]})", "not of whole numbers");
  ExpectTensorRefused(R"({"dtype":"F32","shape":[1.0],"data_offsets":[0,4]})", "not of whole numbers");
  ExpectTensorRefused(R"({"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4]})", "at most 8");
  ExpectTensorRefused(R"({"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]})", "overflows");
  ExpectTensorRefused(R"({"dtype":"F32","shape":[1],"data_offsets":[0]})", "data_offsets do not lie");
  ExpectTensorRefused(R"({"dtype":"F32","shape":[1],"data_offsets":[4,0]})", "data_offsets do not lie");
  ExpectTensorRefused(R"({"dtype":"F32","shape":[1],"data_offsets":[1,5]})", "data_offsets do not lie");
  ExpectTensorRefused(R"({"dtype":"F32","shape":[1],"data_offsets":[0,18446744073709551615]})", "do not lie");
  ExpectTensorRefused(R"({"dtype":"F32","shape":[1],"data_offsets":[0,99999999999999999999]})", "not of whole numbers");
  ExpectTensorRefused(R"({"dtype":"F16","shape":[1],"data_offsets":[0,4]})", "span 4 bytes, the shape needs 2");
}

TEST(Safetensors, RefusesTensorsThatOverlapOrLeaveGaps) {
  const std::string half = R"({"dtype":"F16","shape":[1],"data_offsets":)";
  ExpectRefused(SafetensorsBytes("{\"a\":" + half + "[0,2]},\"b\":" + half + "[1,3]}}", "abcd"), "gaps or overlap");
  ExpectRefused(SafetensorsBytes("{\"a\":" + half + "[0,2]},\"b\":" + half + "[0,2]}}", "ab"), "gaps or overlap");
  ExpectRefused(SafetensorsBytes("{\"a\":" + half + "[2,4]}}", "abcd"), "gaps or overlap");
  ExpectRefused(SafetensorsBytes("{\"a\":" + half + "[0,2]}}", "abcd"), "longer than its tensors");
}

TEST(Safetensors, RefusesATensorNamedTwice) {
  const std::string tensor = R"("a":{"dtype":"F16","shape":[1],"data_offsets":[0,2]})";
  ExpectRefused(SafetensorsBytes("{" + tensor + "," + tensor + "}", "ab"), "names a tensor twice");
}

TEST(Safetensors, RefusesMetadataThatIsNotOfStrings) {
  ExpectRefused(SafetensorsBytes(R"({"__metadata__":5})", ""), "not an object");
  ExpectRefused(SafetensorsBytes(R"({"__metadata__":{"a":5}})", ""), "not of strings");
}

TEST(Safetensors, SurvivesEveryTruncationAndChangedByte) {
  const std::string bytes = SafetensorsBuilder().Add("a", "F16", {2}, "abcd").Metadata("k", "v").Build();
  for (size_t size = 0; size < bytes.size(); ++size) EXPECT_FALSE(Parse(bytes.substr(0, size)).ok()) << size;
  for (size_t i = 0; i < bytes.size(); ++i) {
    for (int value = 0; value < 256; value += 5) {
      std::string changed = bytes;
      changed[i] = static_cast<char>(value);
      Parse(changed).IgnoreError();
    }
  }
}

TEST(Safetensors, OpensFilesAndSaysWhichItCannot) {
  const testing::TempDir dir;
  std::ofstream(dir.File("good")) << SafetensorsBuilder().Add("a", "F16", {2}, "abcd").Build();
  std::ofstream(dir.File("bad")) << "no safetensors";
  EXPECT_EQ(Safetensors::Open(dir.File("good"))->Find("a")->bytes.size(), 4u);
  EXPECT_THAT(std::string(Safetensors::Open(dir.File("bad")).status().message()), HasSubstr("/bad: safetensors: "));
  EXPECT_TRUE(absl::IsNotFound(Safetensors::Open(dir.File("none")).status()));
  EXPECT_THAT(std::string(Safetensors::Open(dir.path()).status().message()), HasSubstr("not a regular file"));
}

}  // namespace
}  // namespace nqkv::client
