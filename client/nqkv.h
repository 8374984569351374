// The client library of nqkvd, a shared cache tier for the key/value tensors of LLM inference.
//
//   auto client = nqkv::client::Client::Connect("unix:/run/nqkv/nqkvd.sock");
//   auto cache = (*client)->OpenCache({.name = "my-model", .spec = spec});
//   auto keys = nqkv::client::ChainKeys(tokens, 64);
//   auto match = (*cache)->Lookup({.chains = {{.keys = keys}}});
//
// Threads: Client and Cache are thread-safe; every call blocks the thread that makes it, and calls of several threads
// run side by side over one connection. Everything else is a plain value.
//
// Time: a call ends by its timeout, retries included. Put returns only when the transport has let go of the caller's
// memory, which can take a second or two more when the server stopped reading: then the connection is broken to get the
// memory back. Over TCP that is left to the system: TCP_USER_TIMEOUT is 10 s.
//
// Retries: UNAVAILABLE, CANCELLED (a server that stops) and RESOURCE_EXHAUSTED where the server says when to come back
// are tried again within the timeout and the RetryPolicy; nothing else is. Every call is idempotent. A cache that the
// server has forgotten (it was restarted) is opened again once a call, with the same options.
//
// Needs std and Abseil's Status alone; no protobuf or gRPC type appears here.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace nqkv::client {

// ---------------------------------------------------------------------------------------------------------------------
// What a cache is. The numbers are those of the wire contract, nqkv/v1/kv_cache.proto, which also gives every limit.

enum class Dtype : uint8_t { kFloat16 = 1, kBfloat16 = 2, kFloat32 = 3 };
enum class PlaneRole : uint8_t { kKey = 1, kValue = 2, kLatent = 3, kRope = 4 };
enum class GroupKind : uint8_t { kFull = 1, kMla = 2 };
enum class Codec : uint8_t { kAuto = 1, kRaw = 2, kNqkv4 = 3, kNqkv4h = 4, kQ8 = 5 };
enum class PlaneLayout : uint8_t { kHead = 1, kRow = 2 };
enum class Provenance : uint8_t { kOriginal = 1, kOnLossyPrefix = 2, kDecoded = 3 };

constexpr size_t DtypeBytes(Dtype dtype) { return dtype == Dtype::kFloat32 ? 4 : 2; }

// Half open: [begin, end).
struct Range {
  uint32_t begin = 0;
  uint32_t end = 0;

  bool operator==(const Range&) const = default;
};

// One layer's keys, values, latents or rotary keys. Raw it is [tokens][heads][channels].
struct PlaneSpec {
  uint32_t layer = 0;
  PlaneRole role = PlaneRole::kKey;
  uint32_t heads = 0;     // KV heads of the whole model.
  uint32_t channels = 0;  // A head's width.
  Dtype dtype = Dtype::kFloat16;

  bool operator==(const PlaneSpec&) const = default;
};

// Layers that share a block size.
struct LayerGroup {
  uint32_t id = 0;
  GroupKind kind = GroupKind::kFull;
  uint32_t block_tokens = 64;
  std::vector<PlaneSpec> planes;  // By layer, then by role.

  bool operator==(const LayerGroup&) const = default;
};

// What must be equal for two workers to share blocks; always of the whole model.
struct CacheSpec {
  std::string model;
  std::string revision;
  std::string rope_digest;
  std::string adapter_digest;
  std::string key_scheme;  // Empty: "nqkv-sha256-v1".
  std::vector<LayerGroup> layer_groups;
};

// The spec of a model whose layers are all alike, with full attention: one group, id 0.
CacheSpec UniformSpec(const std::string& model, uint32_t layers, uint32_t kv_heads, uint32_t head_channels,
                      Dtype dtype = Dtype::kFloat16, uint32_t block_tokens = 64);

// How the server encodes. 0 means the server's default.
struct CodecPolicy {
  Codec codec = Codec::kAuto;
  uint32_t scale_group = 0;
  PlaneLayout layout = PlaneLayout::kHead;
  float floor_error_max = 0;
  float token_norm_error_max = 0;
  bool allow_non_finite = false;
};

struct ShardPart {
  uint32_t layer_group = 0;
  std::optional<Range> layers;  // Unset: all.
  std::optional<Range> heads;   // Unset: all.
};

// Which part of the model this worker holds. As it stands: all of it.
struct ShardSpec {
  uint32_t tensor_rank = 0;
  uint32_t tensor_size = 1;
  uint32_t pipeline_rank = 0;
  uint32_t pipeline_size = 1;
  std::vector<ShardPart> parts;
};

struct CacheOptions {
  std::string name;
  CacheSpec spec;
  std::optional<CodecPolicy> policy;  // Unset: what the cache has.
  ShardSpec shard;
  std::string engine;  // Who opens, for the server's log: "vllm 0.26.0".
};

// Bytes of one block of a layer group, as this worker's shard sees it.
struct GroupSizes {
  uint32_t layer_group = 0;
  Range layers;
  Range heads;
  uint64_t raw_bytes = 0;
  uint64_t encoded_bytes_min = 0;
  uint64_t encoded_bytes_typical = 0;
  uint64_t encoded_bytes_max = 0;
};

// What the server answered when the cache was opened.
struct CacheInfo {
  bool created = false;
  std::string spec_fingerprint;
  CodecPolicy policy;
  std::vector<GroupSizes> sizes;
  uint64_t message_bytes_max = 0;
  uint64_t message_bytes_best = 0;
  uint32_t lookup_keys_max = 0;
  uint32_t get_keys_max = 0;
  uint32_t delete_keys_max = 0;
  uint32_t put_open_blocks_max = 0;
  uint32_t release_tokens_max = 0;
  std::chrono::milliseconds lookup_wait_max{0};
  std::chrono::milliseconds lease_duration_default{0};
  std::chrono::milliseconds lease_duration_max{0};
  std::string server_version;
};

// ---------------------------------------------------------------------------------------------------------------------
// Keys

// A multimodal item that stands at tokens [token_begin, token_end) of the sequence.
struct MultimodalItem {
  std::string id;
  uint64_t token_begin = 0;
  uint64_t token_end = 0;
};

// What beside the tokens decides a block's content.
struct KeyInputs {
  std::string adapter_digest;
  std::string salt;
  std::vector<MultimodalItem> items;  // By token_begin.
};

// Keys of the whole blocks of `tokens` by the scheme nqkv-sha256-v1, the head of the sequence first; block_tokens > 0.
std::vector<std::string> ChainKeys(std::span<const uint32_t> tokens, uint32_t block_tokens,
                                   const KeyInputs& inputs = {});

// ---------------------------------------------------------------------------------------------------------------------
// Lookup

enum class LookupMode : uint8_t { kPrefix = 1, kSet = 2 };

// Keys of consecutive blocks of one layer group, the head of the sequence first.
struct KeyChain {
  uint32_t layer_group = 0;
  uint32_t first_block_index = 0;
  std::vector<std::string> keys;
};

// Keeps what a lookup found until it is loaded: its blocks are pinned until Release, the end of its time or of its
// session. It does not end under a Get that names it, and each gives it its time anew.
struct LeaseOptions {
  std::string session_id;                 // Session::id(). Empty: none.
  std::string request_id;                 // A repeat, in this session, replaces the lease. Empty: nothing is replaced.
  std::chrono::milliseconds duration{0};  // 0: the server's default.
};

struct LookupQuery {
  std::vector<KeyChain> chains;  // One for each layer group; kPrefix needs them all.
  LookupMode mode = LookupMode::kPrefix;
  bool include_blocks = false;  // Fill GroupMatch::blocks.
  std::optional<LeaseOptions> lease;
  // Answer when every key is there, or when this time is up; it must lie within the call's timeout. 0: at once.
  std::chrono::milliseconds wait_until_present{0};
};

struct BlockInfo {
  bool present = false;
  uint64_t stored_bytes = 0;
  Provenance provenance = Provenance::kOriginal;
  float floor_error = 0;
  float token_norm_error = 0;
};

struct GroupMatch {
  uint32_t layer_group = 0;
  uint32_t matched_blocks = 0;  // kPrefix: blocks within matched_tokens. kSet: keys present.
  std::vector<bool> present;    // kSet: one a key.
  uint64_t raw_bytes = 0;       // Of the matched blocks.
  uint64_t stored_bytes = 0;
  std::vector<BlockInfo> blocks;
};

struct LookupResult {
  uint64_t matched_tokens = 0;     // kPrefix: what every chain has.
  std::vector<GroupMatch> groups;  // One a chain, in order.
  std::string lease_token;         // For Get and Release, on any connection. Empty: none was asked for or given.
  absl::Status lease_status;       // Why none was given; OK too when nothing matched.
};

// ---------------------------------------------------------------------------------------------------------------------
// Put and Get

// One plane in the caller's memory: element (t, h, d) at t * token_stride + h * head_stride + d * DtypeBytes.
struct PlaneSource {
  const void* data = nullptr;
  ptrdiff_t token_stride = 0;  // Bytes. 0: heads * head_stride.
  ptrdiff_t head_stride = 0;   // Bytes. 0: channels * DtypeBytes.
};

// A block to store: its memory is either one piece (`data`, `bytes`: the planes of the range, by layer and then by
// role, each [tokens][heads][channels]) or one PlaneSource a plane. Memory without gaps is sent from where it lies.
struct PutBlock {
  std::string key;
  uint32_t layer_group = 0;
  const void* data = nullptr;
  uint64_t bytes = 0;
  std::vector<PlaneSource> planes;  // Used when not empty.
  std::optional<Range> layers;      // Unset: what the shard holds.
  std::optional<Range> heads;       // Unset: what the shard holds.
  std::string scope;
  uint64_t token_start = 0;
  bool first_in_sequence = false;
  Provenance provenance = Provenance::kOriginal;
};

enum class PutOutcome : uint8_t { kNone = 0, kStored = 1, kAlreadyPresent = 2, kReplaced = 3 };

struct PutResult {
  absl::Status status;
  PutOutcome outcome = PutOutcome::kNone;
  uint64_t raw_bytes = 0;
  uint64_t stored_bytes = 0;
  float floor_error = 0;  // The worst of its planes.
  float token_norm_error = 0;
  uint32_t raw_planes = 0;  // Planes that `auto` stored raw, since the cheaper codec broke the bound.
};

// One plane in the caller's memory, as PlaneSource. Its rows must not overlap.
struct PlaneTarget {
  void* data = nullptr;
  ptrdiff_t token_stride = 0;  // Bytes. 0: heads * head_stride.
  ptrdiff_t head_stride = 0;   // Bytes. 0: channels * DtypeBytes, in the dtype that is asked for.
};

// Where one block goes: `bytes` bytes at `data`, laid out as in PutBlock, or one PlaneTarget a plane. What lies between
// the rows of planes with gaps is not touched.
struct GetTarget {
  std::string key;
  void* data = nullptr;
  uint64_t bytes = 0;
  std::vector<PlaneTarget> planes;  // Used when not empty.
};

// What is asked for of each block.
struct GetOptions {
  uint32_t layer_group = 0;
  std::optional<Range> layers;  // Unset: what the shard holds.
  std::optional<Range> heads;   // Unset: what the shard holds.
  std::optional<Dtype> dtype;   // Unset: each plane's own.
  bool include_planes = false;  // Fill GetResult::planes.
  std::string lease_token;      // Read under this lease: ABORTED when it has ended.
};

// One stored plane.
struct PlaneInfo {
  uint32_t layer = 0;
  PlaneRole role = PlaneRole::kKey;
  Range heads;
  Codec codec = Codec::kRaw;
  uint32_t scale_group = 0;
  uint32_t strong_channels = 0;  // Of each head, stored by themselves.
  PlaneLayout layout = PlaneLayout::kHead;
  uint64_t stored_bytes = 0;
  float floor_error = 0;
  float token_norm_error = 0;
  float nmse = 0;
  uint32_t crc32c = 0;  // Of the stored bytes.
};

struct GetResult {
  absl::Status status;  // OK: the target holds the block. NOT_FOUND: a miss. Else the target's content is unspecified.
  uint64_t payload_bytes = 0;
  uint64_t stored_bytes = 0;
  Provenance provenance = Provenance::kOriginal;
  float floor_error = 0;
  float token_norm_error = 0;
  std::vector<PlaneInfo> planes;
};

struct Removed {
  uint64_t blocks = 0;
  uint64_t bytes = 0;  // Stored bytes that were freed.
};

// ---------------------------------------------------------------------------------------------------------------------
// Calls

// Waits min(backoff_max, backoff_first * multiplier^n), each taken at random from [1 - jitter, 1] of it, and never less
// than what the server asked for.
struct RetryPolicy {
  int attempts_max = 5;  // 1: never again.
  std::chrono::milliseconds backoff_first{100};
  std::chrono::milliseconds backoff_max{2000};
  double multiplier = 2;
  double jitter = 0.5;
};

struct ClientOptions {
  std::chrono::milliseconds timeout{30'000};  // Of one call, retries included.
  RetryPolicy retry;
};

struct CallOptions {
  std::optional<std::chrono::milliseconds> timeout;  // Unset: the client's.
};

struct SessionOptions {
  std::string owner;  // Who it is, for the server's lists: "vllm 0.26.0 rank 3". At most 256 bytes.
};

// A session, which leases end with. A thread of its own keeps it alive and takes it over again when its connection
// breaks, as long as the server's grace lasts. Ends when it is destroyed. Thread-safe; may outlive its Client.
class Session {
 public:
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  std::string id() const;
  // OK as long as it lives; then why it has ended: open a new one.
  absl::Status status() const;

 private:
  friend class Client;
  class Impl;
  explicit Session(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// An open cache. Keeps its connection alive, so it may outlive its Client.
class Cache {
 public:
  ~Cache();
  Cache(const Cache&) = delete;
  Cache& operator=(const Cache&) = delete;

  const std::string& name() const;
  // As last opened.
  CacheInfo info() const;

  // Raw bytes of one block for these options, from the spec.
  //
  // Errors:
  //   INVALID_ARGUMENT  an unknown layer group, or a range that lies outside the spec.
  absl::StatusOr<uint64_t> BlockBytes(const GetOptions& options) const;

  // How much of each query is present: one result a query, in order.
  //
  // Errors: INVALID_ARGUMENT (keys, groups), and what every call may end with. A miss is a result.
  absl::StatusOr<std::vector<LookupResult>> Lookup(std::span<const LookupQuery> queries,
                                                   const CallOptions& options = {});
  absl::StatusOr<LookupResult> Lookup(const LookupQuery& query, const CallOptions& options = {});

  // Stores blocks: one result a block, in order. A block that has no result when the call ends gets the call's status.
  // The memory is read until the call returns, and not after.
  std::vector<PutResult> Put(std::span<const PutBlock> blocks, const CallOptions& options = {});

  // Fetches blocks into the targets: one result a target, in order. A block that has no result, or not all its bytes,
  // when the call ends gets the call's status. Splits what is more than the server takes at once.
  //
  // Status of a block beyond the contract's: OUT_OF_RANGE, the target is too small; payload_bytes says what is needed.
  std::vector<GetResult> Get(std::span<const GetTarget> targets, const GetOptions& get,
                             const CallOptions& options = {});

  // Ends leases and says how many of them: the others had ended by themselves, or were replaced.
  absl::StatusOr<uint32_t> Release(std::span<const std::string> lease_tokens, const CallOptions& options = {});

  // Marks blocks as just used, from the last key to the first.
  absl::Status Touch(uint32_t layer_group, std::span<const std::string> keys, const CallOptions& options = {});

  // Removes blocks, every range of them.
  absl::StatusOr<Removed> Delete(uint32_t layer_group, std::span<const std::string> keys,
                                 const CallOptions& options = {});

  // Removes all blocks of the cache, which stays open.
  absl::StatusOr<Removed> Clear(const CallOptions& options = {});

 private:
  friend class Client;
  class Impl;
  explicit Cache(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// A connection to one server.
class Client {
 public:
  // `server` is "host:port", "[v6]:port" or "unix:/path". Does not wait for the server: the first call does.
  //
  // Errors:
  //   INVALID_ARGUMENT  `server` is none of these, or an option is out of range; it is named.
  static absl::StatusOr<std::unique_ptr<Client>> Connect(const std::string& server, const ClientOptions& options = {});
  ~Client();
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  // Creates a cache or joins the one of this name.
  //
  // Errors:
  //   INVALID_ARGUMENT     the spec contradicts itself; the field is named.
  //   FAILED_PRECONDITION  the name is taken by another spec or policy; every differing field is named.
  absl::StatusOr<std::unique_ptr<Cache>> OpenCache(const CacheOptions& cache, const CallOptions& options = {});

  // Errors:
  //   RESOURCE_EXHAUSTED   the server has too many sessions.
  absl::StatusOr<std::unique_ptr<Session>> OpenSession(const SessionOptions& session = {},
                                                       const CallOptions& options = {});

 private:
  class Impl;
  explicit Client(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Makes malloc keep large blocks instead of mapping and unmapping each one, which about doubles what gRPC moves in
// bulk. It changes the whole process (memory stays at its peak), so it is the application's choice; call it first in
// main. False when the C library refuses or is not glibc.
bool TuneMalloc();

}  // namespace nqkv::client
