#include "kernels/crc32c.h"

#include <gtest/gtest.h>

#include <cstring>
#include <span>
#include <vector>

namespace nqkv {
namespace {

std::span<const std::byte> BytesOf(const char* text) { return std::as_bytes(std::span(text, std::strlen(text))); }

TEST(Crc32cTest, HasTheCheckValueOfTheStandard) { EXPECT_EQ(Crc32c(BytesOf("123456789")), 0xe3069283u); }

TEST(Crc32cTest, HasTheVectorsOfRfc3720) {
  EXPECT_EQ(Crc32c(std::vector<std::byte>(32, std::byte{0})), 0x8a9136aau);
  EXPECT_EQ(Crc32c(std::vector<std::byte>(32, std::byte{0xff})), 0x62a8ab43u);
}

TEST(Crc32cTest, OfNothingIsZero) { EXPECT_EQ(Crc32c({}), 0u); }

TEST(Crc32cTest, OfPiecesIsThatOfTheWhole) {
  EXPECT_EQ(ExtendCrc32c(ExtendCrc32c(Crc32c(BytesOf("1234")), {}), BytesOf("56789")), Crc32c(BytesOf("123456789")));
}

}  // namespace
}  // namespace nqkv
