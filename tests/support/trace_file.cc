#include "tests/support/trace_file.h"

#include <zstd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "kernels/status_macros.h"

namespace nqkv {
namespace {

constexpr size_t kBytesMax = size_t{1} << 30;  // Decompressed.

struct ZstdRelease {
  void operator()(ZSTD_DCtx* context) const { ZSTD_freeDCtx(context); }
};

absl::StatusOr<std::string> Decompress(const std::string& compressed) {
  const std::unique_ptr<ZSTD_DCtx, ZstdRelease> context(ZSTD_createDCtx());
  std::string text;
  std::string piece(ZSTD_DStreamOutSize(), '\0');
  ZSTD_inBuffer input = {compressed.data(), compressed.size(), 0};
  size_t left = 1;
  while (input.pos < input.size) {
    ZSTD_outBuffer output = {piece.data(), piece.size(), 0};
    left = ZSTD_decompressStream(context.get(), &output, &input);
    if (ZSTD_isError(left)) return absl::InvalidArgumentError(absl::StrCat("zstd: ", ZSTD_getErrorName(left)));
    text.append(piece, 0, output.pos);
    if (text.size() > kBytesMax) return absl::InvalidArgumentError("more than 1 GiB");
  }
  if (left != 0) return absl::InvalidArgumentError("zstd: the file is cut off");
  return text;
}

absl::StatusOr<std::string> ReadText(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  std::ostringstream bytes;
  bytes << file.rdbuf();
  return absl::EndsWith(path, ".zst") ? Decompress(bytes.str()) : std::move(bytes).str();
}

absl::StatusOr<TraceRequest> ParseRequest(const std::string& line) {
  const nlohmann::json json = nlohmann::json::parse(line, nullptr, false);
  if (!json.is_object()) return absl::InvalidArgumentError("no JSON object");
  const auto tokens = json.find("input_length");
  const auto blocks = json.find("hash_ids");
  if (tokens == json.end() || !tokens->is_number_unsigned()) return absl::InvalidArgumentError("no input_length");
  if (blocks == json.end() || !blocks->is_array()) return absl::InvalidArgumentError("no hash_ids");
  TraceRequest request = {.input_tokens = tokens->get<uint64_t>(), .blocks = {}};
  request.blocks.reserve(blocks->size());
  for (const nlohmann::json& block : *blocks) {
    if (!block.is_number_unsigned() || block.get<uint64_t>() > UINT32_MAX / 16) {
      return absl::InvalidArgumentError("an entry of hash_ids is no block number");
    }
    request.blocks.push_back(block.get<uint32_t>());
  }
  return request;
}

}  // namespace

absl::StatusOr<Trace> ReadTrace(const std::string& path) {
  NQKV_ASSIGN_OR_RETURN(const std::string text, ReadText(path));
  std::istringstream lines(text);
  const std::string name = std::filesystem::path(path).filename().string();
  Trace trace;
  trace.name = name.substr(0, name.find('.'));
  std::string line;
  for (size_t number = 1; std::getline(lines, line); ++number) {
    absl::StatusOr<TraceRequest> request = ParseRequest(line);
    if (!request.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(path, " line ", number, ": ", request.status().message()));
    }
    trace.accesses += request->blocks.size();
    for (const uint32_t block : request->blocks) {
      trace.unique_blocks = std::max<uint64_t>(trace.unique_blocks, block + 1);
    }
    trace.requests.push_back(*std::move(request));
  }
  if (trace.accesses == 0) return absl::InvalidArgumentError(absl::StrCat(path, ": no blocks"));
  return trace;
}

Trace Recut(const Trace& trace, uint32_t parts) {
  Trace recut = {.name = absl::StrCat(trace.name, "-", trace.block_tokens / parts),
                 .block_tokens = trace.block_tokens / parts,
                 .unique_blocks = trace.unique_blocks * parts,
                 .accesses = trace.accesses * parts,
                 .requests = {}};
  for (const TraceRequest& request : trace.requests) {
    TraceRequest& cut = recut.requests.emplace_back();
    cut.input_tokens = request.input_tokens;
    cut.blocks.reserve(request.blocks.size() * parts);
    for (const uint32_t block : request.blocks) {
      for (uint32_t part = 0; part < parts; ++part) cut.blocks.push_back(block * parts + part);
    }
  }
  return recut;
}

}  // namespace nqkv
