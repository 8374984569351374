#include "proto/key_chain.h"

#include <fstream>
#include <numeric>
#include <set>

#include "absl/strings/escaping.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace nqkv {
namespace {

using ::testing::ElementsAreArray;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;

std::string Bytes(const nlohmann::json& vector, const char* name) {
  return absl::HexStringToBytes(vector.value(name, std::string()));
}

KeyInputs InputsOf(const nlohmann::json& vector) {
  KeyInputs inputs{.adapter_digest = Bytes(vector, "adapter_digest"), .salt = Bytes(vector, "salt")};
  for (const auto& item : vector.value("items", nlohmann::json::array())) {
    inputs.items.push_back({.id = Bytes(item, "id"),
                            .token_begin = item.at("token_begin").get<uint64_t>(),
                            .token_end = item.at("token_end").get<uint64_t>()});
  }
  return inputs;
}

std::vector<std::string> Hex(const std::vector<std::string>& keys) {
  std::vector<std::string> hex;
  for (const std::string& key : keys) hex.push_back(absl::BytesToHexString(key));
  return hex;
}

std::vector<uint32_t> Tokens(size_t count) {
  std::vector<uint32_t> tokens(count);
  std::iota(tokens.begin(), tokens.end(), 1);
  return tokens;
}

TEST(KeyChainTest, AgreesWithTheVectorsOfKeysMd) {
  std::ifstream file(NQKV_KEY_VECTORS);
  const nlohmann::json vectors = nlohmann::json::parse(file);
  EXPECT_EQ(vectors.at("key_scheme").get<std::string>(), std::string(kKeyScheme));
  ASSERT_THAT(vectors.at("keys"), SizeIs(testing::Ge(10)));
  for (const nlohmann::json& vector : vectors.at("keys")) {
    const auto tokens = vector.at("tokens").get<std::vector<uint32_t>>();
    const std::vector<std::string> keys =
        ChainKeys(tokens, vector.at("block_tokens").get<uint32_t>(), InputsOf(vector));
    EXPECT_THAT(Hex(keys), ElementsAreArray(vector.at("keys").get<std::vector<std::string>>()))
        << vector.at("name").get<std::string>();
  }
}

TEST(KeyChainTest, HashesAsFips180Says) {
  EXPECT_EQ(absl::BytesToHexString(Sha256("abc")), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST(KeyChainTest, GivesNoKeyToARestShorterThanABlock) {
  EXPECT_THAT(ChainKeys(Tokens(63), 64), IsEmpty());
  EXPECT_THAT(ChainKeys({}, 64), IsEmpty());
  EXPECT_THAT(ChainKeys(Tokens(64), 64), SizeIs(1));
  EXPECT_THAT(ChainKeys(Tokens(127), 64), SizeIs(1));
}

TEST(KeyChainTest, GivesAPrefixOfTheKeysToAPrefixOfTheTokens) {
  const std::vector<std::string> all = ChainKeys(Tokens(256), 16);
  const std::vector<std::string> prefix = ChainKeys(Tokens(100), 16);
  ASSERT_THAT(prefix, SizeIs(6));
  EXPECT_THAT(prefix, ElementsAreArray(all.begin(), all.begin() + 6));
}

TEST(KeyChainTest, ChangesEveryKeyFromAChangedTokenOn) {
  std::vector<uint32_t> tokens = Tokens(64);
  const std::vector<std::string> before = ChainKeys(tokens, 16);
  tokens[20] ^= 1;
  const std::vector<std::string> after = ChainKeys(tokens, 16);
  EXPECT_EQ(before[0], after[0]);
  for (size_t i = 1; i < 4; ++i) EXPECT_NE(before[i], after[i]) << i;
}

TEST(KeyChainTest, TellsEveryExtraInputApart) {
  const std::vector<uint32_t> tokens = Tokens(8);
  const std::vector<KeyInputs> inputs = {
      {},
      {.adapter_digest = "a"},
      {.salt = "a"},
      {.adapter_digest = "a", .salt = "b"},
      {.adapter_digest = "ab"},
      {.items = {{.id = "a", .token_begin = 0, .token_end = 2}}},
      {.items = {{.id = "b", .token_begin = 0, .token_end = 2}}},
      {.items = {{.id = "a", .token_begin = 1, .token_end = 2}}},
      {.items = {{.id = "a", .token_begin = 0, .token_end = 1}, {.id = "a", .token_begin = 1, .token_end = 2}}},
  };
  std::set<std::string> seen;
  for (const KeyInputs& input : inputs) seen.insert(ChainKeys(tokens, 8, input).front());
  EXPECT_THAT(seen, SizeIs(inputs.size()));
}

TEST(KeyChainTest, LetsAnItemChangeOnlyTheBlocksFromItsFirstOn) {
  const std::vector<std::string> plain = ChainKeys(Tokens(12), 4);
  const std::vector<std::string> with_item =
      ChainKeys(Tokens(12), 4, {.items = {{.id = "a", .token_begin = 4, .token_end = 8}}});
  EXPECT_EQ(plain[0], with_item[0]);
  EXPECT_NE(plain[1], with_item[1]);
  EXPECT_NE(plain[2], with_item[2]);
}

}  // namespace
}  // namespace nqkv
