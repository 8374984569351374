#include "client/capture.h"

#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/status_macros.h"
#include "proto/key_chain.h"

namespace nqkv::client {
namespace {

constexpr uint32_t kLayersMax = 4096;
constexpr char kFileName[] = "smollm2_135m_kv.safetensors";

std::optional<Dtype> DtypeOf(const std::string& name) {
  if (name == "F16") return Dtype::kFloat16;
  if (name == "BF16") return Dtype::kBfloat16;
  if (name == "F32") return Dtype::kFloat32;
  return std::nullopt;
}

template <typename Integer>
absl::StatusOr<std::vector<uint32_t>> TokensOf(std::span<const std::byte> bytes) {
  std::vector<uint32_t> tokens(bytes.size() / sizeof(Integer));
  for (size_t i = 0; i < tokens.size(); ++i) {
    Integer token = 0;
    std::memcpy(&token, bytes.data() + i * sizeof(Integer), sizeof(Integer));
    if (token < 0 || static_cast<uint64_t>(token) > UINT32_MAX) {
      return absl::InvalidArgumentError(absl::StrCat("capture: tokens[", i, "] is ", token, ", no token id"));
    }
    tokens[i] = static_cast<uint32_t>(token);
  }
  return tokens;
}

absl::StatusOr<PlaneSpec> PlaneOf(const Tensor& tensor, const std::string& name, uint32_t layer, PlaneRole role,
                                  size_t tokens) {
  const std::optional<Dtype> dtype = DtypeOf(tensor.dtype);
  if (!dtype) return absl::InvalidArgumentError(absl::StrCat("capture: ", name, " is ", tensor.dtype, ", no KV dtype"));
  const std::vector<uint64_t>& shape = tensor.shape;
  if (shape.size() != 3 || shape[0] != tokens || shape[1] == 0 || shape[1] > 1024 || shape[2] == 0 || shape[2] > 8192) {
    return absl::InvalidArgumentError(
        absl::StrCat("capture: ", name, " does not have the shape [", tokens, " tokens][kv_heads][head_dim]"));
  }
  return PlaneSpec{.layer = layer,
                   .role = role,
                   .heads = static_cast<uint32_t>(shape[1]),
                   .channels = static_cast<uint32_t>(shape[2]),
                   .dtype = *dtype};
}

uint64_t TokenBytes(const PlaneSpec& plane) { return uint64_t{plane.heads} * plane.channels * DtypeBytes(plane.dtype); }

}  // namespace

absl::StatusOr<Capture> Capture::Load(const std::string& path, uint32_t block_tokens) {
  NQKV_ASSIGN_OR_RETURN(Safetensors file, Safetensors::Open(path));
  absl::StatusOr<Capture> capture = FromSafetensors(std::move(file), block_tokens);
  if (!capture.ok()) return absl::Status(capture.status().code(), absl::StrCat(path, ": ", capture.status().message()));
  return capture;
}

absl::StatusOr<Capture> Capture::FromSafetensors(Safetensors file, uint32_t block_tokens) {
  Capture capture(std::move(file));
  NQKV_RETURN_IF_ERROR(capture.ReadTokens());
  NQKV_RETURN_IF_ERROR(capture.ReadPlanes(block_tokens));
  if (capture.block_count() == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("capture: ", capture.tokens_.size(), " tokens do not fill a block of ", block_tokens));
  }
  return capture;
}

absl::StatusOr<std::string> Capture::DefaultPath() {
  if (const char* path = std::getenv("NQKV_CAPTURE"); path != nullptr && *path != '\0') return std::string(path);
  std::error_code error;
  std::filesystem::path folder = std::filesystem::read_symlink("/proc/self/exe", error).parent_path();
  for (; !error && folder != folder.parent_path(); folder = folder.parent_path()) {
    for (const char* place : {"share/nqkv", "tests/data"}) {
      const std::filesystem::path path = folder / place / kFileName;
      if (std::filesystem::is_regular_file(path, error)) return path.string();
      error.clear();
    }
  }
  return absl::NotFoundError(absl::StrCat("no ", kFileName, " beside the program: name a capture with --capture"));
}

absl::Status Capture::ReadTokens() {
  const Tensor* tensor = file_.Find("tokens");
  if (tensor == nullptr || tensor->shape.size() != 1) {
    return absl::InvalidArgumentError("capture: there is no tensor 'tokens' with one dimension");
  }
  if (tensor->dtype == "I32") {
    NQKV_ASSIGN_OR_RETURN(tokens_, TokensOf<int32_t>(tensor->bytes));
  } else if (tensor->dtype == "I64") {
    NQKV_ASSIGN_OR_RETURN(tokens_, TokensOf<int64_t>(tensor->bytes));
  } else {
    return absl::InvalidArgumentError(absl::StrCat("capture: tokens is ", tensor->dtype, ", neither I32 nor I64"));
  }
  return absl::OkStatus();
}

absl::Status Capture::ReadPlanes(uint32_t block_tokens) {
  LayerGroup group{.id = 0, .kind = GroupKind::kFull, .block_tokens = block_tokens, .planes = {}};
  for (uint32_t layer = 0; layer < kLayersMax && file_.Find(absl::StrCat("layers.", layer, ".key")) != nullptr;
       ++layer) {
    for (const PlaneRole role : {PlaneRole::kKey, PlaneRole::kValue}) {
      const std::string name = absl::StrCat("layers.", layer, role == PlaneRole::kKey ? ".key" : ".value");
      const Tensor* tensor = file_.Find(name);
      if (tensor == nullptr) return absl::InvalidArgumentError(absl::StrCat("capture: there is no tensor ", name));
      NQKV_ASSIGN_OR_RETURN(const PlaneSpec plane, PlaneOf(*tensor, name, layer, role, tokens_.size()));
      group.planes.push_back(plane);
      planes_.push_back(tensor->bytes.data());
      block_bytes_ += block_tokens * TokenBytes(plane);
    }
  }
  if (group.planes.empty()) return absl::InvalidArgumentError("capture: there is no tensor layers.0.key");
  spec_.model = Metadata("model").empty() ? "unknown" : Metadata("model");
  spec_.revision = Metadata("revision");
  if (!Metadata("rope_theta").empty()) spec_.rope_digest = Sha256(absl::StrCat("rope_theta=", Metadata("rope_theta")));
  spec_.layer_groups.push_back(std::move(group));
  return absl::OkStatus();
}

std::span<const std::byte> Capture::Plane(size_t block, size_t plane) const {
  const uint64_t bytes = group().block_tokens * TokenBytes(group().planes[plane]);
  return {planes_[plane] + block * bytes, bytes};
}

PutBlock Capture::Block(size_t block, const std::string& key) const {
  PutBlock out;
  out.key = key;
  out.token_start = uint64_t{block} * group().block_tokens;
  out.first_in_sequence = block == 0;
  for (size_t plane = 0; plane < planes_.size(); ++plane) out.planes.push_back({.data = Plane(block, plane).data()});
  return out;
}

}  // namespace nqkv::client
