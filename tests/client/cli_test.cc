// The command line as a process, against a server in this one.
#include <fstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/support/fake_kv_cache.h"
#include "tests/support/run_program.h"
#include "tests/support/safetensors_file.h"
#include "tests/support/temp_dir.h"

namespace nqkv::client {
namespace {

using ::testing::HasSubstr;
using testing::ProgramResult;
using ::testing::StartsWith;

class CliTest : public ::testing::Test {
 protected:
  CliTest() : server_(&fake_, dir_.File("nqkvd.sock")) {
    std::ofstream(dir_.File("capture"), std::ios::binary) << testing::CaptureBytes(200, 2, 2, 64);
  }
  ProgramResult Run(std::vector<std::string> words) {
    words.insert(words.begin(), NQKV_CLI);
    return testing::RunProgram(words, {"NQKV_SOCKET_DIR=" + dir_.path(), "NQKV_SERVER="});
  }
  ProgramResult Demo() { return Run({"demo", "--capture", dir_.File("capture"), "--codec", "raw", "--repeats", "2"}); }
  void ExpectUsage(const ProgramResult& result, const char* message) {
    EXPECT_EQ(result.exit_code, 2);
    EXPECT_EQ(result.out, "");
    EXPECT_THAT(result.err, HasSubstr(message));
  }

  testing::TempDir dir_;
  testing::FakeKvCache fake_;
  testing::FakeServer server_;
};

TEST_F(CliTest, DemoEndsWellWhenEveryByteIsRight) {
  const ProgramResult result = Demo();
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.err, "");
  EXPECT_THAT(result.out, HasSubstr("found 192 of 192 tokens"));
  EXPECT_THAT(result.out, HasSubstr("others from token 96           found 64"));
  EXPECT_THAT(result.out, HasSubstr("equal the reference codec's"));
  size_t begin = 0;
  for (size_t end; (end = result.out.find('\n', begin)) != std::string::npos; begin = end + 1) {
    EXPECT_LE(end - begin, 100u) << result.out.substr(begin, end - begin);
  }
}

TEST_F(CliTest, DemoPrintsJson) {
  const ProgramResult result =
      Run({"demo", "--capture", dir_.File("capture"), "--codec", "raw", "--repeats", "1", "--json"});
  const auto json = nlohmann::json::parse(result.out, nullptr, false);
  ASSERT_TRUE(json.is_object()) << result.out << result.err;
  EXPECT_EQ(json["matched_tokens"], 192);
  EXPECT_EQ(json["diverging_matched_tokens"], 64);
  EXPECT_EQ(json["roles"]["key"]["bits_per_element"], 16.0);
  EXPECT_EQ(json["roles"]["value"]["nmse"], 0.0);
  EXPECT_EQ(json["roles"]["both"]["cosine_min"], 1.0);
  EXPECT_EQ(json["equal_to_reference"], true);
}

TEST_F(CliTest, DemoFailsWhenTheServerFlipsABit) {
  testing::FakeKvCache::Behaviour behaviour;
  behaviour.on_get = [](v1::GetResponse* response) {
    if (response->chunks(0).index() == 1) response->mutable_payload()->at(5) ^= 1;
  };
  fake_.set_behaviour(behaviour);
  const ProgramResult result = Demo();
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, HasSubstr("DATA_LOSS: block 1, layer 0, key: byte 5 differs from the reference codec's"));
  EXPECT_THAT(result.out, ::testing::Not(HasSubstr("Checked")));
}

TEST_F(CliTest, DemoFailsWhenABlockIsMissing) {
  testing::FakeKvCache::Behaviour behaviour;
  behaviour.on_get = [](v1::GetResponse* response) {
    if (response->chunks(0).index() != 2) return;
    response->mutable_chunks(0)->mutable_result()->Clear();
    response->mutable_chunks(0)->mutable_result()->mutable_status()->set_code(5);
    response->mutable_chunks(0)->set_bytes(0);
    response->clear_payload();
  };
  fake_.set_behaviour(behaviour);
  const ProgramResult result = Demo();
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, HasSubstr("get of block 2"));
}

TEST_F(CliTest, DemoReportsAPutThatFails) {
  fake_.FailNext("Put", {absl::InvalidArgumentError("no")});
  const ProgramResult result = Demo();
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_EQ(result.err, "nqkv demo-worker: INVALID_ARGUMENT: put of block 0: no\n");
}

TEST_F(CliTest, PutsLooksUpAndGetsACapture) {
  const std::string capture = dir_.File("capture");
  ProgramResult result = Run({"open", "c", "--capture", capture});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, StartsWith("Created c, codec "));
  result = Run({"put", "c", "--capture", capture});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, StartsWith("Stored 3 blocks; 197 kB raw"));
  result = Run({"put", "c", "--capture", capture, "--json"});
  EXPECT_EQ(nlohmann::json::parse(result.out, nullptr, false)["present_blocks"], 3);
  result = Run({"lookup", "c", "--capture", capture});
  EXPECT_THAT(result.out, StartsWith("3 of 3 blocks, 192 tokens"));
  result = Run({"get", "c", "--capture", capture, "--output", dir_.File("out")});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(std::filesystem::file_size(dir_.File("out")), 3u * 64 * 2 * 2 * 2 * 64 * 2);
  result = Run({"lookup", "c", "--capture", capture, "--salt", "other", "--json"});
  EXPECT_EQ(nlohmann::json::parse(result.out, nullptr, false)["matched_blocks"], 0);
}

TEST_F(CliTest, PutsAndGetsARawFileByKey) {
  const std::string bytes(2 * 2 * 4 * 8 * 2, 'r');
  std::ofstream(dir_.File("raw")) << bytes;
  const std::vector<std::string> spec = {"--model",    "m", "--layers",       "2", "--kv_heads", "1",
                                         "--head_dim", "8", "--block_tokens", "4"};
  std::vector<std::string> put = {"put", "c", "--key", "00ff,01", "--file", dir_.File("raw")};
  put.insert(put.end(), spec.begin(), spec.end());
  EXPECT_EQ(Run(put).exit_code, 0);
  EXPECT_EQ(fake_.block(std::string("\x00\xff", 2)), bytes.substr(0, bytes.size() / 2));
  std::vector<std::string> lookup = {"lookup", "c", "--key", "00ff,02,01", "--set", "--json"};
  lookup.insert(lookup.end(), spec.begin(), spec.end());
  EXPECT_EQ(nlohmann::json::parse(Run(lookup).out, nullptr, false)["present"], (std::vector<bool>{true, false, true}));
  std::vector<std::string> get = {"get", "c", "--key", "02"};
  get.insert(get.end(), spec.begin(), spec.end());
  const ProgramResult missing = Run(get);
  EXPECT_EQ(missing.exit_code, 1);
  EXPECT_EQ(missing.err, "nqkv get: NOT_FOUND: block 02: no such block\n");
}

TEST_F(CliTest, ReadsASpecFromAFile) {
  std::ofstream(dir_.File("spec")) << R"({"model": "m", "layerGroups": [{"kind": "LAYER_GROUP_KIND_FULL",
    "blockTokens": 16, "planes": [{"role": "PLANE_ROLE_KEY", "heads": 1, "channels": 64, "dtype": "DTYPE_BFLOAT16"}]}]})";
  std::ofstream(dir_.File("odd")) << R"({"layerGroups": [{"kind": "LAYER_GROUP_KIND_STATE"}]})";
  std::ofstream(dir_.File("bad")) << "{";
  EXPECT_EQ(Run({"open", "c", "--spec", dir_.File("spec")}).exit_code, 0);
  EXPECT_THAT(Run({"open", "c", "--spec", dir_.File("odd")}).err, HasSubstr("layer_groups[0].kind: not a kind"));
  EXPECT_THAT(Run({"open", "c", "--spec", dir_.File("bad")}).err, HasSubstr("no CacheSpec as JSON"));
  EXPECT_THAT(Run({"open", "c", "--spec", dir_.File("none")}).err, HasSubstr("cannot be opened"));
}

TEST_F(CliTest, ExplainsItself) {
  const ProgramResult overview = Run({"help"});
  EXPECT_EQ(overview.exit_code, 0);
  for (const char* command : {"open", "lookup", "put", "get", "stat", "demo"}) {
    EXPECT_THAT(overview.out, HasSubstr(command));
    const ProgramResult help = Run({"help", command});
    EXPECT_EQ(help.exit_code, 0);
    EXPECT_THAT(help.out, HasSubstr(std::string("Usage: nqkv ") + command));
    EXPECT_THAT(help.out, HasSubstr("Examples:"));
    EXPECT_THAT(help.out, HasSubstr("--json"));
    EXPECT_EQ(Run({command, "--help"}).out, help.out);
  }
  EXPECT_THAT(overview.out, ::testing::Not(HasSubstr("demo-worker")));
}

TEST_F(CliTest, EndsWithTwoWhenCalledWrongly) {
  EXPECT_EQ(Run({}).exit_code, 2);
  ExpectUsage(Run({"nonsense"}), "no command 'nonsense'");
  ExpectUsage(Run({"help", "nonsense"}), "no command 'nonsense'");
  ExpectUsage(Run({"open"}), "CACHE is missing");
  ExpectUsage(Run({"open", "c"}), "--model is missing");
  ExpectUsage(Run({"open", "c", "--capture", dir_.File("capture"), "--server", "nonsense"}), "neither host:port");
  ExpectUsage(Run({"open", "c", "--capture", dir_.File("capture"), "--codec", "mp3"}), "'mp3' is not auto");
  ExpectUsage(Run({"lookup", "c", "--capture", dir_.File("capture"), "--key", "0"}), "'0' is not an even number");
  ExpectUsage(Run({"lookup", "c", "--capture", dir_.File("capture"), "--tokens", "1,x"}), "'x' is not a token id");
  ExpectUsage(Run({"put", "c", "--model", "m", "--layers", "1", "--kv_heads", "1", "--head_dim", "64"}), "no keys");
  ExpectUsage(Run({"demo", "--repeats", "0"}), "--repeats: '0' is not a number");
}

TEST_F(CliTest, EndsWithOneAndOneLineWhenItFails) {
  for (const ProgramResult& result :
       {Run({"demo", "--capture", dir_.File("none")}), Run({"stat"}),
        Run({"open", "c", "--capture", dir_.File("capture"), "--server", "unix:" + dir_.File("none.sock")})}) {
    EXPECT_EQ(result.exit_code, 1);
    EXPECT_EQ(result.out, "");
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
  }
}

}  // namespace
}  // namespace nqkv::client
