// Small models and their KV blocks for tests: made of a seed, so that a failure can be repeated.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/block_layout.h"
#include "kernels/codec.h"
#include "nqkv/v1/kv_cache.pb.h"

namespace nqkv {

struct ModelShape {
  uint32_t layers = 4;
  uint32_t heads = 8;
  uint32_t channels = 64;
  uint32_t block_tokens = 16;
  v1::Dtype dtype = v1::DTYPE_FLOAT16;
};

// One FULL layer group with id 0.
v1::CacheSpec ModelSpec(const ModelShape& shape = {});
GroupLayout ModelLayout(const ModelShape& shape = {});

// The part's bytes as the wire has them. An element depends on its place in the model and the seed only, so a part is
// a cut of the whole. fp16, normal distribution.
std::string RawPart(const GroupLayout& group, const PartRange& range, uint32_t seed);
std::string RawBlock(const GroupLayout& group, uint32_t seed);

// What must come back when each plane of the part goes through the reference codec.
std::string RoundTrip(const GroupLayout& group, const PartRange& range, uint32_t seed, const PlaneCodec& codec,
                      Dtype dtype = Dtype::kFloat16);

// "key 7": any bytes make a key.
std::string KeyOf(int number);

// The PutRequests that store the blocks, each whole in its own message.
struct PutBlock {
  std::string key;
  std::string payload;
  uint32_t number = 0;
};
v1::PutRequest PutMessageOf(uint64_t cache_id, uint32_t shard_id, const std::vector<PutBlock>& blocks);

}  // namespace nqkv
