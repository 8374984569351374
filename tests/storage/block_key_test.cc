#include "storage/block_key.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/hash/hash_testing.h"

namespace nqkv {
namespace {

TEST(BlockKeyTest, TakesOneTo64Bytes) {
  EXPECT_EQ(BlockKey::Create(0, 1, 2, "").status(), absl::InvalidArgumentError("key is empty"));
  EXPECT_TRUE(BlockKey::Create(0, 1, 2, "k").ok());
  EXPECT_TRUE(BlockKey::Create(0, 1, 2, std::string(64, 'k')).ok());
  EXPECT_EQ(BlockKey::Create(0, 1, 2, std::string(65, 'k')).status(),
            absl::InvalidArgumentError("key has 65 bytes; at most 64"));
}

TEST(BlockKeyTest, GivesBackWhatItWasMadeOf) {
  const BlockKey key = *BlockKey::Create(1, 2, 3, absl::string_view("a\0b", 3));
  EXPECT_EQ(key.tenant(), 1);
  EXPECT_EQ(key.cache(), 2u);
  EXPECT_EQ(key.layer_group(), 3);
  EXPECT_EQ(key.bytes(), absl::string_view("a\0b", 3));
}

TEST(BlockKeyTest, EveryFieldTellsKeysApart) {
  const std::vector<BlockKey> keys = {
      *BlockKey::Create(0, 0, 0, "a"), *BlockKey::Create(1, 0, 0, "a"),
      *BlockKey::Create(0, 1, 0, "a"), *BlockKey::Create(0, 0, 1, "a"),
      *BlockKey::Create(0, 0, 0, "b"), *BlockKey::Create(0, 0, 0, absl::string_view("a\0", 2)),
  };
  for (size_t a = 0; a < keys.size(); ++a) {
    for (size_t b = 0; b < keys.size(); ++b) EXPECT_EQ(keys[a] == keys[b], a == b) << a << " " << b;
  }
  EXPECT_TRUE(absl::VerifyTypeImplementsAbslHashCorrectly(keys));
}

}  // namespace
}  // namespace nqkv
