// The bytes of the format, against vectors that another implementation wrote (golden_vectors.py) and against the worked
// example of FORMAT.md: a change of the format cannot pass unseen.
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_format.h"
#include "kernels/block_format.h"
#include "kernels/codec.h"

namespace nqkv {
namespace {

std::string ReadFile(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

nlohmann::json Golden() { return nlohmann::json::parse(ReadFile(NQKV_SOURCE_DIR "/tests/data/golden/codec.json")); }

std::vector<std::byte> FromHex(const nlohmann::json& hex) {
  const std::string bytes = absl::HexStringToBytes(hex.get<std::string>());
  std::vector<std::byte> out(bytes.size());
  std::memcpy(out.data(), bytes.data(), bytes.size());
  return out;
}

std::string ToHex(const void* data, size_t size) {
  return absl::BytesToHexString(absl::string_view(static_cast<const char*>(data), size));
}

struct Vector {
  PlaneShape shape;
  PlaneCodec codec;
  std::vector<std::byte> source;
};

Vector Load(const nlohmann::json& json) {
  return {.shape = {.tokens = json["tokens"],
                    .heads = json["heads"],
                    .channels = json["channels"],
                    .dtype = static_cast<Dtype>(json["dtype"].get<int>())},
          .codec = {.id = static_cast<CodecId>(json["codec"].get<int>()),
                    .scale_group = json["scale_group"],
                    .layout = static_cast<PlaneLayout>(json["layout"].get<int>()),
                    .strong_channels = json["strong_channels"]},
          .source = FromHex(json["source"])};
}

void ExpectGolden(EncodeResult (*encode)(const EncodeArgs&), const nlohmann::json& json) {
  SCOPED_TRACE(json["name"].get<std::string>());
  const Vector vector = Load(json);
  const auto head_stride = static_cast<ptrdiff_t>(vector.shape.channels * DtypeBytes(vector.shape.dtype));
  std::vector<std::byte> encoded(EncodedBytes(vector.codec, vector.shape));
  const EncodeResult result = encode({.source = vector.source.data(),
                                      .token_stride = head_stride * static_cast<ptrdiff_t>(vector.shape.heads),
                                      .head_stride = head_stride,
                                      .shape = vector.shape,
                                      .codec = vector.codec,
                                      .encoded = encoded});
  EXPECT_EQ(ToHex(encoded.data(), encoded.size()), json["encoded"]);
  EXPECT_EQ(absl::StrFormat("%08x", result.crc32c), json["crc32c"].get<std::string>());
  EXPECT_EQ(ToHex(&result.errors, sizeof(result.errors)), json["errors"]);
}

TEST(GoldenTest, EncodesToTheVectors) {
  const nlohmann::json golden = Golden();
  ASSERT_GE(golden["planes"].size(), 17u);
  for (const nlohmann::json& json : golden["planes"]) {
    ExpectGolden(&EncodePlane, json);
    ExpectGolden(&EncodePlaneReference, json);
  }
}

TEST(GoldenTest, DecodesTheVectors) {
  const nlohmann::json golden = Golden();
  for (const nlohmann::json& json : golden["planes"]) {
    SCOPED_TRACE(json["name"].get<std::string>());
    const Vector vector = Load(json);
    const std::vector<std::byte> encoded = FromHex(json["encoded"]);
    std::vector<std::byte> decoded(vector.shape.elements() * 4);
    const auto head_stride = static_cast<ptrdiff_t>(vector.shape.channels * 4);
    DecodePlane({.encoded = encoded,
                 .shape = vector.shape,
                 .codec = vector.codec,
                 .head_begin = 0,
                 .head_end = vector.shape.heads,
                 .dtype = Dtype::kFloat32,
                 .target = decoded.data(),
                 .token_stride = head_stride * static_cast<ptrdiff_t>(vector.shape.heads),
                 .head_stride = head_stride});
    EXPECT_EQ(ToHex(decoded.data(), decoded.size()), json["decoded_fp32"]);
  }
}

TEST(GoldenTest, ParsesTheBlockAndWritesItAgain) {
  const nlohmann::json golden = Golden();
  std::vector<std::byte> block = FromHex(golden["blocks"][0]["block"]);
  const std::vector<std::byte> want = block;
  const absl::StatusOr<BlockView> view = BlockView::Parse(block);
  ASSERT_TRUE(view.ok()) << view.status();
  EXPECT_EQ(view->header().range, (PartRange{4, 5, 2, 3}));
  EXPECT_EQ(view->header().token_start, 192u);
  std::vector<PlaneEntry> entries;
  for (size_t i = 0; i < view->plane_count(); ++i) {
    entries.push_back(view->plane(i));
    EXPECT_TRUE(view->CheckPlane(entries.back()).ok());
  }
  const BlockHeader header = view->header();
  std::memset(block.data(), 0xff, PlanesOffset(entries.size()));
  WriteBlockHead(header, entries, block);
  EXPECT_EQ(block, want);
}

// Hex digits of the document's code blocks, without addresses and spaces.
std::string HexOfDocument() {
  std::istringstream lines(ReadFile(NQKV_SOURCE_DIR "/kernels/FORMAT.md"));
  std::string hex;
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind("    ", 0) != 0) continue;
    const size_t colon = line.find(": ");
    const std::string digits = line.substr(colon == std::string::npos ? 4 : colon + 2);
    for (char c : digits.substr(0, digits.find("  "))) {
      if (std::isxdigit(static_cast<unsigned char>(c)) != 0) hex += c;
    }
  }
  return hex;
}

TEST(GoldenTest, TheDocumentShowsTheVectors) {
  const std::string document = HexOfDocument();
  const nlohmann::json golden = Golden();
  int shown = 0;
  for (const nlohmann::json& plane : golden["planes"]) {
    const std::string name = plane["name"];
    if (name != "ramp" && name != "q8-channel" && name != "nqkv4h") continue;
    ++shown;
    EXPECT_NE(document.find(plane["encoded"].get<std::string>()), std::string::npos) << name;
  }
  EXPECT_EQ(shown, 3);
  EXPECT_NE(document.find(golden["blocks"][0]["block"].get<std::string>()), std::string::npos);
}

}  // namespace
}  // namespace nqkv
