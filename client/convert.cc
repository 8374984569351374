#include "client/convert.h"

#include <algorithm>
#include <chrono>

#include "absl/strings/str_cat.h"
#include "kernels/status_macros.h"
#include "proto/rpc_status.h"

namespace nqkv::client {
namespace {

// Clamped to what the type holds.
std::chrono::milliseconds FromSeconds(double seconds) {
  return std::chrono::milliseconds(static_cast<int64_t>(1000 * std::clamp(seconds, 0.0, 1e9)));
}

Range FromProto(const v1::Range& range) { return {.begin = range.begin(), .end = range.end()}; }

v1::ShardSpec ToProto(const ShardSpec& shard) {
  v1::ShardSpec out;
  out.set_tensor_rank(shard.tensor_rank);
  out.set_tensor_size(shard.tensor_size);
  out.set_pipeline_rank(shard.pipeline_rank);
  out.set_pipeline_size(shard.pipeline_size);
  for (const ShardPart& part : shard.parts) {
    v1::ShardPart* part_out = out.add_parts();
    part_out->set_layer_group(part.layer_group);
    if (part.layers) *part_out->mutable_layers() = ToProto(*part.layers);
    if (part.heads) *part_out->mutable_heads() = ToProto(*part.heads);
  }
  return out;
}

v1::CodecPolicy ToProto(const CodecPolicy& policy) {
  v1::CodecPolicy out;
  out.set_codec(static_cast<v1::Codec>(policy.codec));
  out.set_scale_group(policy.scale_group);
  out.set_layout(static_cast<v1::PlaneLayout>(policy.layout));
  out.set_floor_error_max(policy.floor_error_max);
  out.set_token_norm_error_max(policy.token_norm_error_max);
  out.set_allow_non_finite(policy.allow_non_finite);
  return out;
}

CodecPolicy FromProto(const v1::CodecPolicy& policy) {
  CodecPolicy out;
  out.codec = static_cast<Codec>(policy.codec());
  out.scale_group = policy.scale_group();
  out.layout = static_cast<PlaneLayout>(policy.layout());
  out.floor_error_max = policy.floor_error_max();
  out.token_norm_error_max = policy.token_norm_error_max();
  out.allow_non_finite = policy.allow_non_finite();
  return out;
}

Provenance FromProto(v1::Provenance provenance) {
  // What a newer server may say beyond these is treated as the worst that we know.
  if (provenance == v1::PROVENANCE_UNSPECIFIED || provenance == v1::PROVENANCE_ORIGINAL) return Provenance::kOriginal;
  return provenance == v1::PROVENANCE_ON_LOSSY_PREFIX ? Provenance::kOnLossyPrefix : Provenance::kDecoded;
}

PlaneInfo FromProto(const v1::PlaneInfo& plane) {
  PlaneInfo out;
  out.layer = plane.layer();
  out.role = static_cast<PlaneRole>(plane.role());
  out.heads = FromProto(plane.heads());
  out.codec = static_cast<Codec>(plane.codec());
  out.scale_group = plane.scale_group();
  out.strong_channels = plane.strong_channels();
  out.layout = static_cast<PlaneLayout>(plane.layout());
  out.stored_bytes = plane.stored_bytes();
  out.floor_error = plane.floor_error();
  out.token_norm_error = plane.token_norm_error();
  out.nmse = plane.nmse();
  out.crc32c = plane.crc32c();
  return out;
}

BlockInfo FromProto(const v1::BlockInfo& block) {
  BlockInfo out;
  out.present = block.present();
  out.stored_bytes = block.stored_bytes();
  out.provenance = FromProto(block.provenance());
  out.floor_error = block.floor_error();
  out.token_norm_error = block.token_norm_error();
  return out;
}

absl::StatusOr<PlaneSpec> PlaneFromProto(const v1::PlaneSpec& plane) {
  if (plane.role() < v1::PLANE_ROLE_KEY || plane.role() > v1::PLANE_ROLE_ROPE) {
    return absl::InvalidArgumentError("role: not a role that this client knows");
  }
  if (plane.dtype() < v1::DTYPE_FLOAT16 || plane.dtype() > v1::DTYPE_FLOAT32) {
    return absl::InvalidArgumentError("dtype: not a dtype that this client knows");
  }
  return PlaneSpec{.layer = plane.layer(),
                   .role = static_cast<PlaneRole>(plane.role()),
                   .heads = plane.heads(),
                   .channels = plane.channels(),
                   .dtype = static_cast<Dtype>(plane.dtype())};
}

absl::StatusOr<LayerGroup> GroupFromProto(const v1::LayerGroup& group) {
  if (group.kind() != v1::LAYER_GROUP_KIND_FULL && group.kind() != v1::LAYER_GROUP_KIND_MLA) {
    return absl::InvalidArgumentError("kind: not a kind that this client knows");
  }
  LayerGroup out{.id = group.id(),
                 .kind = static_cast<GroupKind>(group.kind()),
                 .block_tokens = group.block_tokens(),
                 .planes = {}};
  for (int i = 0; i < group.planes_size(); ++i) {
    absl::StatusOr<PlaneSpec> plane = PlaneFromProto(group.planes(i));
    if (!plane.ok()) return absl::InvalidArgumentError(absl::StrCat("planes[", i, "].", plane.status().message()));
    out.planes.push_back(*plane);
  }
  return out;
}

absl::Status CheckMatch(const v1::GroupMatch& match, const KeyChain& chain, bool include_blocks) {
  if (match.layer_group() != chain.layer_group) return absl::InternalError("reply: another layer group than asked for");
  if (match.matched_blocks() > chain.keys.size()) return absl::InternalError("reply: more blocks than keys");
  if (include_blocks && static_cast<size_t>(match.blocks_size()) > chain.keys.size()) {
    return absl::InternalError("reply: more block descriptions than keys");
  }
  return absl::OkStatus();
}

GroupMatch MatchFromProto(const v1::GroupMatch& match, const KeyChain& chain, LookupMode mode) {
  GroupMatch out;
  out.layer_group = match.layer_group();
  out.matched_blocks = match.matched_blocks();
  out.raw_bytes = match.raw_bytes();
  out.stored_bytes = match.stored_bytes();
  if (mode == LookupMode::kSet) {
    out.present.resize(chain.keys.size());
    for (size_t i = 0; i < chain.keys.size() && i / 8 < match.present().size(); ++i) {
      out.present[i] = (static_cast<uint8_t>(match.present()[i / 8]) >> (i % 8) & 1) != 0;
    }
  }
  for (const v1::BlockInfo& block : match.blocks()) out.blocks.push_back(FromProto(block));
  return out;
}

}  // namespace

v1::Range ToProto(const Range& range) {
  v1::Range out;
  out.set_begin(range.begin);
  out.set_end(range.end);
  return out;
}

v1::CacheSpec ToProto(const CacheSpec& spec) {
  v1::CacheSpec out;
  out.set_model(spec.model);
  out.set_revision(spec.revision);
  out.set_rope_digest(spec.rope_digest);
  out.set_adapter_digest(spec.adapter_digest);
  out.set_key_scheme(spec.key_scheme);
  for (const LayerGroup& group : spec.layer_groups) {
    v1::LayerGroup* group_out = out.add_layer_groups();
    group_out->set_id(group.id);
    group_out->set_kind(static_cast<v1::LayerGroupKind>(group.kind));
    group_out->set_block_tokens(group.block_tokens);
    for (const PlaneSpec& plane : group.planes) {
      v1::PlaneSpec* plane_out = group_out->add_planes();
      plane_out->set_layer(plane.layer);
      plane_out->set_role(static_cast<v1::PlaneRole>(plane.role));
      plane_out->set_heads(plane.heads);
      plane_out->set_channels(plane.channels);
      plane_out->set_dtype(static_cast<v1::Dtype>(plane.dtype));
    }
  }
  return out;
}

v1::OpenCacheRequest ToProto(const CacheOptions& options) {
  v1::OpenCacheRequest out;
  out.set_name(options.name);
  *out.mutable_spec() = ToProto(options.spec);
  if (options.policy) *out.mutable_policy() = ToProto(*options.policy);
  *out.mutable_shard() = ToProto(options.shard);
  out.set_engine(options.engine);
  return out;
}

v1::LookupQuery ToProto(const LookupQuery& query) {
  v1::LookupQuery out;
  for (const KeyChain& chain : query.chains) {
    v1::KeyChain* chain_out = out.add_chains();
    chain_out->set_layer_group(chain.layer_group);
    chain_out->set_first_block_index(chain.first_block_index);
    for (const std::string& key : chain.keys) chain_out->add_keys(key);
  }
  out.set_mode(static_cast<v1::LookupMode>(query.mode));
  out.set_include_blocks(query.include_blocks);
  if (query.wait_until_present.count() > 0) {
    out.mutable_wait_until_present()->set_seconds_max(std::chrono::duration<double>(query.wait_until_present).count());
  }
  if (query.lease) {
    out.set_request_id(query.lease->request_id);
    out.mutable_lease()->set_session_id(query.lease->session_id);
    out.mutable_lease()->set_seconds(std::chrono::duration<double>(query.lease->duration).count());
  }
  return out;
}

absl::StatusOr<CacheSpec> FromProto(const v1::CacheSpec& spec) {
  CacheSpec out{.model = spec.model(),
                .revision = spec.revision(),
                .rope_digest = spec.rope_digest(),
                .adapter_digest = spec.adapter_digest(),
                .key_scheme = spec.key_scheme(),
                .layer_groups = {}};
  for (int i = 0; i < spec.layer_groups_size(); ++i) {
    absl::StatusOr<LayerGroup> group = GroupFromProto(spec.layer_groups(i));
    if (!group.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("layer_groups[", i, "].", group.status().message()));
    }
    out.layer_groups.push_back(*std::move(group));
  }
  return out;
}

CacheInfo FromProto(const v1::OpenCacheResponse& response) {
  CacheInfo out;
  out.created = response.created();
  out.spec_fingerprint = response.spec_fingerprint();
  out.policy = FromProto(response.policy());
  for (const v1::LayerGroupSizes& sizes : response.sizes()) {
    out.sizes.push_back({.layer_group = sizes.layer_group(),
                         .layers = FromProto(sizes.part().layers()),
                         .heads = FromProto(sizes.part().heads()),
                         .raw_bytes = sizes.raw_bytes(),
                         .encoded_bytes_min = sizes.encoded_bytes_min(),
                         .encoded_bytes_typical = sizes.encoded_bytes_typical(),
                         .encoded_bytes_max = sizes.encoded_bytes_max()});
  }
  out.message_bytes_max = response.limits().message_bytes_max();
  out.message_bytes_best = response.limits().message_bytes_best();
  out.lookup_keys_max = response.limits().lookup_keys_max();
  out.get_keys_max = response.limits().get_keys_max();
  out.delete_keys_max = response.limits().delete_keys_max();
  out.put_open_blocks_max = response.limits().put_open_blocks_max();
  out.lookup_wait_max = FromSeconds(response.limits().lookup_wait_seconds_max());
  out.release_tokens_max = response.limits().release_tokens_max();
  out.lease_duration_default = FromSeconds(response.limits().lease_seconds_default());
  out.lease_duration_max = FromSeconds(response.limits().lease_seconds_max());
  out.server_version = response.server_version();
  return out;
}

PutResult FromProto(const v1::BlockPutResult& result) {
  PutResult out;
  out.status = nqkv::FromProto(result.status());
  if (result.outcome() > v1::PUT_OUTCOME_UNSPECIFIED && result.outcome() <= v1::PUT_OUTCOME_REPLACED) {
    out.outcome = static_cast<PutOutcome>(result.outcome());
  }
  out.raw_bytes = result.raw_bytes();
  out.stored_bytes = result.stored_bytes();
  out.floor_error = result.floor_error();
  out.token_norm_error = result.token_norm_error();
  out.raw_planes = result.raw_planes();
  return out;
}

GetResult FromProto(const v1::BlockGetResult& result) {
  GetResult out;
  out.status = nqkv::FromProto(result.status());
  out.payload_bytes = result.payload_bytes();
  out.stored_bytes = result.stored_bytes();
  out.provenance = FromProto(result.provenance());
  out.floor_error = result.floor_error();
  out.token_norm_error = result.token_norm_error();
  for (const v1::PlaneInfo& plane : result.planes()) out.planes.push_back(FromProto(plane));
  return out;
}

absl::StatusOr<LookupResult> FromProto(const v1::LookupResult& result, const LookupQuery& query) {
  if (static_cast<size_t>(result.groups_size()) != query.chains.size()) {
    return absl::InternalError(
        absl::StrCat("reply: ", result.groups_size(), " groups for ", query.chains.size(), " chains"));
  }
  LookupResult out;
  out.matched_tokens = result.matched_tokens();
  for (size_t i = 0; i < query.chains.size(); ++i) {
    const v1::GroupMatch& match = result.groups(static_cast<int>(i));
    NQKV_RETURN_IF_ERROR(CheckMatch(match, query.chains[i], query.include_blocks));
    out.groups.push_back(MatchFromProto(match, query.chains[i], query.mode));
  }
  out.lease_token = result.lease_token();
  out.lease_status = nqkv::FromProto(result.lease_status());
  return out;
}

}  // namespace nqkv::client
