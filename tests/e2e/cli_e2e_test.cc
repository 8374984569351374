// The command line against a real nqkvd.
#include <fstream>
#include <sstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/support/nqkvd_process.h"
#include "tests/support/run_program.h"
#include "tests/support/safetensors_file.h"

namespace nqkv {
namespace {

using ::testing::HasSubstr;
using testing::ProgramResult;
using ::testing::StartsWith;

class CliE2eTest : public ::testing::Test {
 protected:
  CliE2eTest() : server_(NQKVD, {"--host_bytes=128MiB"}) {
    std::ofstream(dir_.File("capture"), std::ios::binary) << testing::CaptureBytes(200, 2, 2, 64);
  }
  ProgramResult Run(std::vector<std::string> words) {
    words.insert(words.begin(), NQKV_CLI);
    return testing::RunProgram(words, {"NQKV_SOCKET_DIR=" + server_.socket_dir(), "NQKV_SERVER="});
  }
  nlohmann::json Json(std::vector<std::string> words) {
    words.push_back("--json");
    const ProgramResult result = Run(std::move(words));
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return nlohmann::json::parse(result.out, nullptr, false);
  }

  testing::TempDir dir_;
  testing::NqkvdProcess server_;
};

TEST_F(CliE2eTest, DemoEndsWellOnTheRealCapture) {
  const ProgramResult result = Run({"demo", "--capture", NQKV_REAL_CAPTURE});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.err, "");
  EXPECT_THAT(result.out, StartsWith("HuggingFaceTB/SmolLM2-135M-Instruct: 512 tokens, 30 layers"));
  EXPECT_THAT(result.out, HasSubstr("found 512 of 512 tokens"));
  EXPECT_THAT(result.out, HasSubstr("found 256\n"));
  std::istringstream lines(result.out);
  for (std::string line; std::getline(lines, line);) EXPECT_LE(line.size(), 100u) << line;
}

TEST_F(CliE2eTest, DemoChecksEveryCodec) {
  // And the most bits that a key may take with it.
  const std::vector<std::pair<const char*, double>> codecs = {
      {"auto", 9},         {"raw", 17},        {"nqkv4-g64", 4.7},  {"nqkv4-g128", 4.7},
      {"nqkv4-g256", 4.7}, {"nqkv4-row", 4.7}, {"nqkv4h-g64", 5.5}, {"q8", 9}};
  for (const auto& [codec, bits_max] : codecs) {
    const nlohmann::json json = Json({"demo", "--capture", dir_.File("capture"), "--codec", codec, "--repeats", "1"});
    EXPECT_EQ(json["equal_to_reference"], true) << codec;
    EXPECT_EQ(json["matched_tokens"], 192) << codec;
    EXPECT_THAT(json["codec"].get<std::string>(), StartsWith(codec));
    EXPECT_GT(json["roles"]["key"]["bits_per_element"], 4.0) << codec;
    EXPECT_LT(json["roles"]["key"]["bits_per_element"], bits_max) << codec;
  }
}

TEST_F(CliE2eTest, DemoRunsAgainOnTheSameServer) {
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(Json({"demo", "--capture", dir_.File("capture"), "--repeats", "1"})["equal_to_reference"], true);
  }
  EXPECT_EQ(Json({"stat"})["caches"].size(), 1u);
}

TEST_F(CliE2eTest, StatCountsWhatWasStored) {
  const nlohmann::json before = Json({"stat"});
  EXPECT_EQ(before["blocks"], 0);
  EXPECT_EQ(before["ready"], true);
  EXPECT_GT(before["capacity_bytes"], 64 << 20);
  const std::string capture = dir_.File("capture");
  const nlohmann::json put = Json({"put", "c", "--capture", capture, "--codec", "nqkv4-g64"});
  EXPECT_EQ(put["stored_blocks"], 3);
  EXPECT_EQ(Json({"lookup", "c", "--capture", capture})["matched_tokens"], 192);
  const nlohmann::json after = Json({"stat"});
  EXPECT_EQ(after["blocks"], 3);
  EXPECT_EQ(after["stored_bytes"], put["stored_bytes"]);
  EXPECT_EQ(after["raw_bytes"], put["raw_bytes"]);
  EXPECT_EQ(after["hit_keys_total"], 3);
  EXPECT_NEAR(after["capacity_factor"].get<double>(), 3.7, 0.1);
  ASSERT_EQ(after["caches"].size(), 1u);
  EXPECT_EQ(after["caches"][0]["name"], "c");
  EXPECT_EQ(after["caches"][0]["codec"], "nqkv4-g64");
  const ProgramResult text = Run({"stat"});
  EXPECT_THAT(text.out, HasSubstr("3 in 1 cache, 0 B being written, 0 parts pinned"));
}

TEST_F(CliE2eTest, GetsWhatItPut) {
  const std::string capture = dir_.File("capture");
  EXPECT_EQ(Run({"put", "c", "--capture", capture, "--codec", "raw"}).exit_code, 0);
  EXPECT_EQ(Run({"get", "c", "--capture", capture, "--output", dir_.File("first")}).exit_code, 0);
  // What came out can be put again under other keys, and comes out the same.
  EXPECT_EQ(Run({"put", "c", "--capture", capture, "--file", dir_.File("first"), "--key", "01,02,03"}).exit_code, 0);
  EXPECT_EQ(Run({"get", "c", "--capture", capture, "--key", "01,02,03", "--output", dir_.File("second")}).exit_code, 0);
  const auto read = [&](const char* name) {
    std::ifstream file(dir_.File(name), std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  };
  EXPECT_FALSE(read("first").empty());
  EXPECT_EQ(read("first"), read("second"));
}

TEST_F(CliE2eTest, SaysWhatTheServerRefuses) {
  const std::string capture = dir_.File("capture");
  EXPECT_EQ(Run({"open", "c", "--capture", capture}).exit_code, 0);
  const ProgramResult other = Run({"open", "c", "--capture", capture, "--block_tokens", "32"});
  EXPECT_EQ(other.exit_code, 1);
  EXPECT_THAT(other.err, StartsWith("nqkv open: FAILED_PRECONDITION: "));
  EXPECT_THAT(other.err, HasSubstr("block_tokens (64, asked for 32)"));
  const ProgramResult missing = Run({"get", "c", "--capture", capture, "--key", "0a"});
  EXPECT_EQ(missing.exit_code, 1);
  EXPECT_THAT(missing.err, StartsWith("nqkv get: NOT_FOUND: block 0a: "));
}

}  // namespace
}  // namespace nqkv
