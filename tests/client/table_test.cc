#include "client/table.h"

#include "gtest/gtest.h"

namespace nqkv::client {
namespace {

TEST(FormatBytes, ShowsThreeDigits) {
  EXPECT_EQ(FormatBytes(0), "0 B");
  EXPECT_EQ(FormatBytes(999), "999 B");
  EXPECT_EQ(FormatBytes(1000), "1.00 kB");
  EXPECT_EQ(FormatBytes(11'796'480), "11.8 MB");
  EXPECT_EQ(FormatBytes(99'949'999), "99.9 MB");
  EXPECT_EQ(FormatBytes(123'456'789), "123 MB");
  EXPECT_EQ(FormatBytes(999'600'000), "1.00 GB");
  EXPECT_EQ(FormatBytes(UINT64_MAX), "18.4 EB");
}

TEST(Wrap, BreaksAtBlanks) {
  EXPECT_EQ(Wrap("", 10), "\n");
  EXPECT_EQ(Wrap("one two three", 13), "one two three\n");
  EXPECT_EQ(Wrap("one two three", 12), "one two\nthree\n");
  EXPECT_EQ(Wrap("a wordthatistoolong b", 5), "a\nwordthatistoolong\nb\n");
}

TEST(Table, AlignsColumns) {
  Table table({"role", "raw", "x"});
  table.AddRow({"key", "5.90 MB", "1"});
  table.AddRow({"value", "5 B"});
  EXPECT_EQ(table.ToString(),
            " role       raw  x\n"
            " key    5.90 MB  1\n"
            " value      5 B\n");
}

}  // namespace
}  // namespace nqkv::client
