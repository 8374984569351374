#include <nqkv/nqkv.h>

#include <cstdio>
#include <vector>

// Opens a cache at a server that is not there: exercises the whole link line, and ends well when the error is the right
// one.
int main() {
  const std::vector<uint32_t> tokens(200, 7);
  const std::vector<std::string> keys = nqkv::client::ChainKeys(tokens, 64);
  nqkv::client::ClientOptions options;
  options.retry.attempts_max = 1;
  auto client = nqkv::client::Client::Connect("unix:/nonexistent/nqkvd.sock", options);
  if (!client.ok()) return 1;
  const auto cache = (*client)->OpenCache({.name = "c", .spec = nqkv::client::UniformSpec("m", 2, 2, 64)});
  std::printf("%zu keys, %s\n", keys.size(), cache.status().ToString().c_str());
  return keys.size() == 3 && absl::IsUnavailable(cache.status()) ? 0 : 1;
}
