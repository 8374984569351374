#include "service/byte_size.h"

#include <string>

#include "gtest/gtest.h"

namespace nqkv {
namespace {

// 0 for what does not parse.
uint64_t Parse(const std::string& text) {
  ByteSize size;
  std::string error;
  const bool parsed = AbslParseFlag(text, &size, &error);
  EXPECT_EQ(parsed, error.empty()) << text;
  return parsed ? size.bytes : 0;
}

TEST(ByteSizeTest, ReadsSizesAsPeopleWriteThem) {
  EXPECT_EQ(Parse("1048576"), 1'048'576u);
  EXPECT_EQ(Parse("40GiB"), uint64_t{40} << 30);
  EXPECT_EQ(Parse("40 GiB"), uint64_t{40} << 30);
  EXPECT_EQ(Parse("1.5KiB"), 1'536u);
  EXPECT_EQ(Parse("2GB"), 2'000'000'000u);
  EXPECT_EQ(Parse("7B"), 7u);
  EXPECT_EQ(Parse("18446744073709551615"), UINT64_MAX);
}

TEST(ByteSizeTest, RefusesWhatIsNoSize) {
  for (const char* text : {"", "GiB", "-1", "4x", "1.2.3GiB", "40gib", "99999999TiB", "1e9"}) {
    ByteSize size;
    std::string error;
    EXPECT_FALSE(AbslParseFlag(text, &size, &error)) << text;
    EXPECT_NE(error.find(text), std::string::npos);
  }
}

TEST(ByteSizeTest, WritesWhatItReads) {
  for (const char* text : {"40GiB", "1536B", "3KiB", "1TiB"}) {
    ByteSize size;
    std::string error;
    ASSERT_TRUE(AbslParseFlag(text, &size, &error));
    ByteSize again;
    ASSERT_TRUE(AbslParseFlag(AbslUnparseFlag(size), &again, &error));
    EXPECT_EQ(again.bytes, size.bytes);
  }
  EXPECT_EQ(AbslUnparseFlag({}), "0");
  EXPECT_EQ(ShowBytes(1'610'612'736), "1.5 GiB");
}

}  // namespace
}  // namespace nqkv
