// Any replies to a Get are refused or write inside the targets only.
//
// The input is a piece size and messages, each with its length before it.
#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "client/get_stream.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace nqkv::client;
  if (size < 1) return 0;
  const int piece = data[0] % 32 + 1;
  ++data, --size;
  // Of their exact size, so that the address sanitizer sees a byte too many.
  std::vector<std::vector<char>> memory = {std::vector<char>(0), std::vector<char>(7), std::vector<char>(100)};
  std::vector<GetTarget> targets;
  std::vector<GetResult> results(memory.size());
  std::vector<const GetTarget*> target_pointers;
  std::vector<GetResult*> result_pointers;
  for (std::vector<char>& bytes : memory) targets.push_back({.key = "k", .data = bytes.data(), .bytes = bytes.size()});
  // Two tokens of two heads, with gaps after each row of eight bytes but the last.
  const std::vector<PlanePiece> planes = {
      {.spec = {.heads = 2, .channels = 4, .dtype = Dtype::kFloat16}, .tokens = 2, .heads = 2}};
  memory.emplace_back(3 * 12 + 8);
  targets.push_back({.key = "k", .planes = {{.data = memory.back().data(), .token_stride = 24, .head_stride = 12}}});
  results.resize(memory.size());
  for (size_t i = 0; i < memory.size(); ++i) {
    target_pointers.push_back(&targets[i]);
    result_pointers.push_back(&results[i]);
  }
  GetAssembler assembler(target_pointers, planes, result_pointers);
  while (size > 0) {
    const size_t length = std::min<size_t>(data[0], size - 1);
    google::protobuf::io::ArrayInputStream message(data + 1, static_cast<int>(length), piece);
    if (!assembler.Add(&message).ok()) break;
    data += length + 1;
    size -= length + 1;
  }
  return 0;
}
