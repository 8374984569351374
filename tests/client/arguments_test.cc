#include "client/arguments.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace nqkv::client {
namespace {

using ::testing::HasSubstr;

const CommandLine kCommand{.name = "put",
                           .positional = "CACHE",
                           .summary = "Store blocks.",
                           .flags = {{"block_tokens", "N", "tokens a block"}, {"json", "", "print JSON"}},
                           .examples = {"nqkv put x"}};

absl::StatusOr<Arguments> Parse(std::vector<std::string> words) { return Arguments::Parse(kCommand, words); }

void ExpectUsageError(std::vector<std::string> words, const char* message) {
  const absl::Status status = Parse(std::move(words)).status();
  EXPECT_TRUE(IsUsageError(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr(message));
}

TEST(Arguments, TakesFlagsInEveryForm) {
  for (const std::vector<std::string>& words :
       {std::vector<std::string>{"chat", "--block_tokens", "16", "--json"},
        std::vector<std::string>{"--json", "--block_tokens=16", "chat"},
        std::vector<std::string>{"--block-tokens=16", "--json", "--", "chat"}}) {
    const auto arguments = Parse(words);
    ASSERT_TRUE(arguments.ok()) << arguments.status();
    EXPECT_EQ(arguments->positional(0), "chat");
    EXPECT_EQ(arguments->GetNumber("block_tokens", 64, 1, 1024).value(), 16u);
    EXPECT_TRUE(arguments->Has("json"));
  }
}

TEST(Arguments, FallsBackToDefaults) {
  const auto arguments = Parse({"chat"});
  EXPECT_EQ(arguments->GetNumber("block_tokens", 64, 1, 1024).value(), 64u);
  EXPECT_EQ(arguments->Get("block_tokens", "x"), "x");
  EXPECT_FALSE(arguments->Has("json"));
}

TEST(Arguments, SaysWhatIsWrong) {
  ExpectUsageError({}, "CACHE is missing");
  ExpectUsageError({"a", "b"}, "unexpected 'b'");
  ExpectUsageError({"a", "--nonsense"}, "unknown flag --nonsense");
  ExpectUsageError({"a", "--block_tokens"}, "needs a value, N");
  ExpectUsageError({"a", "--json=1"}, "takes no value");
  for (const char* value : {"0", "1025", "-1", "x", "", "1e3"}) {
    const auto arguments = Parse({"a", "--block_tokens", value});
    ASSERT_TRUE(arguments.ok());
    EXPECT_TRUE(IsUsageError(arguments->GetNumber("block_tokens", 64, 1, 1024).status())) << value;
  }
}

TEST(Arguments, TellsUsageErrorsFromOthers) {
  EXPECT_FALSE(IsUsageError(absl::InvalidArgumentError("the server said so")));
  EXPECT_TRUE(IsReported(Reported(absl::AbortedError("told"))));
  EXPECT_FALSE(IsReported(absl::AbortedError("not told")));
}

TEST(HelpText, ShowsFlagsAndExamples) {
  EXPECT_EQ(HelpText(kCommand),
            "Store blocks.\n\nUsage: nqkv put CACHE [flags]\n\nFlags:\n"
            "  --block_tokens N  tokens a block\n"
            "  --json            print JSON\n"
            "\nExamples:\n  nqkv put x\n");
}

}  // namespace
}  // namespace nqkv::client
