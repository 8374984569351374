#include "client/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/status_macros.h"
#include "nlohmann/json.hpp"

namespace nqkv::client {
namespace {

using nlohmann::json;

constexpr size_t kDimensionsMax = 8;
constexpr int kDepthMax = 3;  // Header, tensor, shape.

absl::Status Malformed(absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("safetensors: ", what));
}

absl::Status Malformed(const std::string& name, absl::string_view what) {
  return Malformed(absl::StrCat("tensor '", name.substr(0, 100), "': ", what));
}

// 0: unknown.
uint64_t ElementBytes(const std::string& dtype) {
  static const std::map<std::string, uint64_t> kBytes = {
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E5M2", 1}, {"F8_E4M3", 1}, {"U16", 2}, {"I16", 2}, {"F16", 2},
      {"BF16", 2}, {"U32", 4}, {"I32", 4}, {"F32", 4},     {"U64", 8},     {"I64", 8}, {"F64", 8}};
  const auto it = kBytes.find(dtype);
  return it == kBytes.end() ? 0 : it->second;
}

absl::StatusOr<json> ParseHeader(absl::string_view text) {
  std::set<std::string> names;
  bool repeated = false;
  bool too_deep = false;
  const json::parser_callback_t check = [&](int depth, json::parse_event_t event, json& value) {
    if (depth > kDepthMax) too_deep = true;
    if (event == json::parse_event_t::key && depth == 1) repeated |= !names.insert(value.get<std::string>()).second;
    return !too_deep;
  };
  json header = json::parse(text.begin(), text.end(), check, /*allow_exceptions=*/false);
  if (too_deep) return Malformed("the header is nested too deep");
  if (!header.is_object()) return Malformed("the header is not a JSON object");
  if (repeated) return Malformed("the header names a tensor twice");
  return header;
}

// `count` unsigned numbers at most, in an array.
absl::StatusOr<std::vector<uint64_t>> Numbers(const json& object, const char* key, size_t count_max) {
  const auto it = object.find(key);
  if (it == object.end() || !it->is_array() || it->size() > count_max) {
    return absl::InvalidArgumentError(absl::StrCat(key, " is not an array of at most ", count_max, " numbers"));
  }
  std::vector<uint64_t> numbers;
  for (const json& number : *it) {
    if (!number.is_number_unsigned()) return absl::InvalidArgumentError(absl::StrCat(key, " is not of whole numbers"));
    numbers.push_back(number.get<uint64_t>());
  }
  return numbers;
}

absl::StatusOr<Tensor> ParseTensor(const json& object, std::span<const std::byte> data) {
  if (!object.is_object()) return absl::InvalidArgumentError("is not an object");
  const auto dtype = object.find("dtype");
  if (dtype == object.end() || !dtype->is_string()) return absl::InvalidArgumentError("has no dtype");
  Tensor tensor{.dtype = dtype->get<std::string>(), .shape = {}, .bytes = {}};
  uint64_t bytes = ElementBytes(tensor.dtype);
  if (bytes == 0) return absl::InvalidArgumentError("has an unknown dtype");
  NQKV_ASSIGN_OR_RETURN(tensor.shape, Numbers(object, "shape", kDimensionsMax));
  for (const uint64_t size : tensor.shape) {
    if (__builtin_mul_overflow(bytes, size, &bytes)) return absl::InvalidArgumentError("shape overflows");
  }
  NQKV_ASSIGN_OR_RETURN(const std::vector<uint64_t> offsets, Numbers(object, "data_offsets", 2));
  if (offsets.size() != 2 || offsets[0] > offsets[1] || offsets[1] > data.size()) {
    return absl::InvalidArgumentError(absl::StrCat("data_offsets do not lie in the ", data.size(), " bytes of data"));
  }
  if (offsets[1] - offsets[0] != bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("data_offsets span ", offsets[1] - offsets[0], " bytes, the shape needs ", bytes));
  }
  tensor.bytes = data.subspan(offsets[0], bytes);
  return tensor;
}

absl::Status CheckTiling(const std::map<std::string, Tensor>& tensors, std::span<const std::byte> data) {
  std::vector<std::span<const std::byte>> pieces;
  pieces.reserve(tensors.size());
  for (const auto& [name, tensor] : tensors) pieces.push_back(tensor.bytes);
  // Empty tensors first, where they stand beside another.
  std::sort(pieces.begin(), pieces.end(),
            [](const auto& a, const auto& b) { return std::pair(a.data(), a.size()) < std::pair(b.data(), b.size()); });
  const std::byte* end = data.data();
  for (const auto& piece : pieces) {
    if (piece.data() != end) return Malformed("the tensors leave gaps or overlap");
    end += piece.size();
  }
  return end == data.data() + data.size() ? absl::OkStatus() : Malformed("the file is longer than its tensors");
}

absl::Status OpenError(const std::string& path) {
  const int error = errno;
  return absl::ErrnoToStatus(error, path);
}

struct Mapping {
  void* data = nullptr;
  size_t bytes = 0;
  ~Mapping() {
    if (data != nullptr) munmap(data, bytes);
  }
};

absl::StatusOr<std::shared_ptr<Mapping>> MapFile(const std::string& path) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file < 0) return OpenError(path);
  struct stat info = {};
  auto mapping = std::make_shared<Mapping>();
  absl::Status status;
  if (fstat(file, &info) != 0) {
    status = OpenError(path);
  } else if (!S_ISREG(info.st_mode)) {
    status = absl::InvalidArgumentError(absl::StrCat(path, ": not a regular file"));
  } else if (info.st_size < 8) {
    status = absl::InvalidArgumentError(absl::StrCat(path, ": too short for a safetensors file"));
  } else {
    mapping->bytes = static_cast<size_t>(info.st_size);
    void* data = mmap(nullptr, mapping->bytes, PROT_READ, MAP_PRIVATE, file, 0);
    if (data == MAP_FAILED) {
      status = OpenError(path);
    } else {
      mapping->data = data;
    }
  }
  close(file);
  if (!status.ok()) return status;
  return mapping;
}

}  // namespace

absl::StatusOr<Safetensors> Safetensors::Open(const std::string& path) {
  NQKV_ASSIGN_OR_RETURN(std::shared_ptr<Mapping> mapping, MapFile(path));
  absl::StatusOr<Safetensors> file = Parse({static_cast<const std::byte*>(mapping->data), mapping->bytes});
  if (!file.ok()) return absl::Status(file.status().code(), absl::StrCat(path, ": ", file.status().message()));
  file->mapping_ = std::move(mapping);
  return file;
}

absl::StatusOr<Safetensors> Safetensors::Parse(std::span<const std::byte> file) {
  uint64_t header_bytes = 0;
  if (file.size() < sizeof(header_bytes)) return Malformed("the file is too short");
  std::memcpy(&header_bytes, file.data(), sizeof(header_bytes));  // Little-endian, as every machine that this runs on.
  file = file.subspan(sizeof(header_bytes));
  if (header_bytes > file.size()) return Malformed("the header is longer than the file");
  if (header_bytes > kHeaderBytesMax) return Malformed(absl::StrCat("the header has over ", kHeaderBytesMax, " bytes"));
  const absl::string_view text(reinterpret_cast<const char*>(file.data()), header_bytes);
  const std::span<const std::byte> data = file.subspan(header_bytes);
  NQKV_ASSIGN_OR_RETURN(const json header, ParseHeader(text));
  Safetensors result;
  for (const auto& [name, value] : header.items()) {
    if (name == "__metadata__") continue;
    absl::StatusOr<Tensor> tensor = ParseTensor(value, data);
    if (!tensor.ok()) return Malformed(name, tensor.status().message());
    result.tensors_.emplace(name, *std::move(tensor));
  }
  NQKV_RETURN_IF_ERROR(CheckTiling(result.tensors_, data));
  const auto metadata = header.find("__metadata__");
  if (metadata == header.end()) return result;
  if (!metadata->is_object()) return Malformed("__metadata__ is not an object");
  for (const auto& [key, value] : metadata->items()) {
    if (!value.is_string()) return Malformed("__metadata__ is not of strings");
    result.metadata_.emplace(key, value.get<std::string>());
  }
  return result;
}

const Tensor* Safetensors::Find(const std::string& name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second;
}

std::string Safetensors::Metadata(const std::string& key) const {
  const auto it = metadata_.find(key);
  return it == metadata_.end() ? "" : it->second;
}

}  // namespace nqkv::client
