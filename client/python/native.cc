// The extension module nqkv._native: the C++ client for Python.
//
// Arrays are read and written where they lie, by DLPack or the buffer protocol; the interpreter is released while a
// call runs. Values come from and go to the dataclasses of nqkv/_types.py.
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "client/block_planes.h"
#include "client/nqkv.h"
#include "nanobind/nanobind.h"
#include "nanobind/ndarray.h"
#include "nanobind/stl/optional.h"
#include "nanobind/stl/string.h"
#include "proto/rpc_status.h"

namespace nb = nanobind;

namespace nqkv::client {
namespace {

nb::object ErrorOf(const absl::Status& status) {
  if (status.ok()) return nb::none();
  return nb::module_::import_("nqkv._errors")
      .attr("error_of")(static_cast<int>(status.code()), std::string(status.message()),
                        absl::ToDoubleSeconds(RetryDelay(status)));
}

[[noreturn]] void Raise(const absl::Status& status) {
  nb::object error = ErrorOf(status);
  PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(error.ptr())), error.ptr());
  throw nb::python_error();
}

[[noreturn]] void RaiseInvalid(const std::string& message) { Raise(absl::InvalidArgumentError(message)); }

// ---------------------------------------------------------------------------------------------------------------------
// From Python

std::string BytesOf(nb::handle value, const char* what) {
  if (!nb::isinstance<nb::bytes>(value)) RaiseInvalid(absl::StrCat(what, ": must be bytes"));
  const auto bytes = nb::borrow<nb::bytes>(value);
  return std::string(bytes.c_str(), bytes.size());
}

template <typename T>
T NumberOf(nb::handle object, const char* field) {
  T value{};
  if (!nb::try_cast(object.attr(field), value)) RaiseInvalid(absl::StrCat(field, ": not a number that fits"));
  return value;
}

template <typename Enum>
Enum EnumOf(nb::handle object, const char* field) {
  return static_cast<Enum>(NumberOf<uint8_t>(object, field));
}

std::optional<Range> RangeOf(nb::handle object, const char* field) {
  nb::object value = object.attr(field);
  if (value.is_none()) return std::nullopt;
  Range range;
  if (!nb::isinstance<nb::sequence>(value) || nb::len(value) != 2 || !nb::try_cast(value[0], range.begin) ||
      !nb::try_cast(value[1], range.end)) {
    RaiseInvalid(absl::StrCat(field, ": must be (begin, end)"));
  }
  return range;
}

std::vector<std::string> KeysOf(nb::handle keys) {
  std::vector<std::string> out;
  for (nb::handle key : keys) out.push_back(BytesOf(key, "key"));
  return out;
}

CacheSpec SpecOf(nb::handle spec) {
  CacheSpec out{.model = nb::cast<std::string>(spec.attr("model")),
                .revision = nb::cast<std::string>(spec.attr("revision")),
                .rope_digest = BytesOf(spec.attr("rope_digest"), "rope_digest"),
                .adapter_digest = BytesOf(spec.attr("adapter_digest"), "adapter_digest"),
                .key_scheme = nb::cast<std::string>(spec.attr("key_scheme")),
                .layer_groups = {}};
  for (nb::handle group : spec.attr("layer_groups")) {
    LayerGroup group_out{.id = NumberOf<uint32_t>(group, "id"),
                         .kind = EnumOf<GroupKind>(group, "kind"),
                         .block_tokens = NumberOf<uint32_t>(group, "block_tokens"),
                         .planes = {}};
    for (nb::handle plane : group.attr("planes")) {
      group_out.planes.push_back({.layer = NumberOf<uint32_t>(plane, "layer"),
                                  .role = EnumOf<PlaneRole>(plane, "role"),
                                  .heads = NumberOf<uint32_t>(plane, "heads"),
                                  .channels = NumberOf<uint32_t>(plane, "channels"),
                                  .dtype = EnumOf<Dtype>(plane, "dtype")});
    }
    out.layer_groups.push_back(std::move(group_out));
  }
  return out;
}

std::optional<CodecPolicy> PolicyOf(nb::handle policy) {
  if (policy.is_none()) return std::nullopt;
  return CodecPolicy{.codec = EnumOf<Codec>(policy, "codec"),
                     .scale_group = NumberOf<uint32_t>(policy, "scale_group"),
                     .layout = EnumOf<PlaneLayout>(policy, "layout"),
                     .floor_error_max = NumberOf<float>(policy, "floor_error_max"),
                     .token_norm_error_max = NumberOf<float>(policy, "token_norm_error_max"),
                     .allow_non_finite = NumberOf<bool>(policy, "allow_non_finite")};
}

ShardSpec ShardOf(nb::handle shard) {
  ShardSpec out{.tensor_rank = NumberOf<uint32_t>(shard, "tensor_rank"),
                .tensor_size = NumberOf<uint32_t>(shard, "tensor_size"),
                .pipeline_rank = NumberOf<uint32_t>(shard, "pipeline_rank"),
                .pipeline_size = NumberOf<uint32_t>(shard, "pipeline_size"),
                .parts = {}};
  for (nb::handle part : shard.attr("parts")) {
    out.parts.push_back({.layer_group = NumberOf<uint32_t>(part, "layer_group"),
                         .layers = RangeOf(part, "layers"),
                         .heads = RangeOf(part, "heads")});
  }
  return out;
}

std::chrono::milliseconds Milliseconds(double seconds) {
  constexpr double kYear = 365.0 * 24 * 3600;
  if (!(seconds >= 0)) RaiseInvalid("a time must not be negative");
  return std::chrono::milliseconds(static_cast<int64_t>(std::min(seconds, kYear) * 1000));
}

double Seconds(std::chrono::milliseconds duration) { return std::chrono::duration<double>(duration).count(); }

std::optional<LeaseOptions> LeaseOf(nb::handle lease) {
  if (lease.is_none()) return std::nullopt;
  return LeaseOptions{.session_id = nb::cast<std::string>(lease.attr("session_id")),
                      .request_id = nb::cast<std::string>(lease.attr("request_id")),
                      .duration = Milliseconds(NumberOf<double>(lease, "seconds"))};
}

CallOptions CallOptionsOf(std::optional<double> timeout) {
  CallOptions options;
  if (timeout) options.timeout = Milliseconds(*timeout);
  return options;
}

// ---------------------------------------------------------------------------------------------------------------------
// Arrays

// Keeps every array of a call alive; destroyed with the interpreter held.
template <typename Array>
using Arrays = std::vector<Array>;
using ReadArray = nb::ndarray<nb::ro>;
using WriteArray = nb::ndarray<>;

// NumPy has no bfloat16 of its own: the one of ml_dtypes goes neither by DLPack nor by the buffer protocol.
bool IsForeignBfloat16(nb::handle object) {
  return nb::hasattr(object, "dtype") && nb::hasattr(object, "__array_interface__") &&
         nb::str(nb::object(object.attr("dtype"))).equal(nb::str("bfloat16"));
}

template <typename Array>
Array ImportArray(nb::handle object, const std::string& what, bool* bfloat16) {
  Array array;
  bool imported = nb::try_cast(object, array);
  *bfloat16 = !imported && IsForeignBfloat16(object);
  if (*bfloat16) imported = nb::try_cast(nb::object(object.attr("view")("uint16")), array);
  if (!imported) {
    RaiseInvalid(absl::StrCat(what, ": not an array", std::is_same_v<Array, WriteArray> ? " that can be written" : "",
                              " (DLPack or the buffer protocol)"));
  }
  if (array.device_type() != nb::device::cpu::value && array.device_type() != nb::device::cuda_host::value) {
    RaiseInvalid(absl::StrCat(what, ": is not in the memory of the CPU"));
  }
  return array;
}

bool DtypeMatches(const nb::dlpack::dtype& dtype, bool bfloat16, Dtype wanted) {
  if (dtype.lanes != 1 || dtype.bits != 8 * DtypeBytes(wanted)) return false;
  if (bfloat16) return wanted == Dtype::kBfloat16;
  switch (static_cast<nb::dlpack::dtype_code>(dtype.code)) {
    case nb::dlpack::dtype_code::Int:
    case nb::dlpack::dtype_code::UInt:
      return true;
    case nb::dlpack::dtype_code::Float:
      return wanted != Dtype::kBfloat16;
    case nb::dlpack::dtype_code::Bfloat:
      return wanted == Dtype::kBfloat16;
    default:
      return false;
  }
}

struct Strides {
  ptrdiff_t token = 0;
  ptrdiff_t head = 0;
};

// Checks that the array has the plane's shape and type, so that nothing outside it is touched.
template <typename Array>
Strides StridesOf(const Array& array, bool bfloat16, const PlanePiece& plane, const std::string& what) {
  const bool flat = array.ndim() == 2 && plane.heads == 1;
  if (!flat && array.ndim() != 3) RaiseInvalid(absl::StrCat(what, ": has ", array.ndim(), " dimensions, not 3"));
  const size_t channel = flat ? 1 : 2;
  if (array.shape(0) != plane.tokens || (!flat && array.shape(1) != plane.heads) ||
      array.shape(channel) != plane.spec.channels) {
    std::string shape;
    for (size_t i = 0; i < array.ndim(); ++i) absl::StrAppend(&shape, i == 0 ? "" : ", ", array.shape(i));
    RaiseInvalid(absl::StrCat(what, ": has shape (", shape, "), the plane (", plane.tokens, ", ", plane.heads, ", ",
                              plane.spec.channels, ")"));
  }
  if (!DtypeMatches(array.dtype(), bfloat16, plane.spec.dtype)) {
    RaiseInvalid(absl::StrCat(what, ": its type is not the plane's"));
  }
  if (array.stride(channel) != 1) RaiseInvalid(absl::StrCat(what, ": its channels are not contiguous"));
  const auto item = static_cast<ptrdiff_t>(DtypeBytes(plane.spec.dtype));
  Strides strides{.token = array.stride(0) * item, .head = flat ? 0 : array.stride(1) * item};
  if (plane.tokens == 1) strides.token = 0;
  if (plane.heads == 1) strides.head = 0;
  if ((plane.tokens > 1 && strides.token == 0) || (plane.heads > 1 && strides.head == 0)) {
    RaiseInvalid(absl::StrCat(what, ": repeats one row"));
  }
  return strides;
}

// Bytes of an array without gaps.
template <typename Array>
uint64_t ContiguousBytes(const Array& array, const char* what) {
  int64_t expected = 1;
  for (size_t i = array.ndim(); i-- > 0;) {
    if (array.shape(i) > 1 && array.stride(i) != expected) RaiseInvalid(absl::StrCat(what, ": is not contiguous"));
    expected *= static_cast<int64_t>(array.shape(i));
  }
  return array.nbytes();
}

// Fills `block` (a PutBlock or GetTarget) with the memory that `object` names.
template <typename Array, typename Block, typename Plane>
void SetMemory(nb::handle object, const absl::StatusOr<std::vector<PlanePiece>>& pieces, Block* block,
               std::vector<Plane>* planes, Arrays<Array>* arrays) {
  nb::object given = object.attr("planes");
  bool bfloat16 = false;
  if (given.is_none()) {
    nb::object data = object.attr("data");
    if (data.is_none()) RaiseInvalid("block: has neither planes nor data");
    arrays->push_back(ImportArray<Array>(data, "data", &bfloat16));
    block->bytes = ContiguousBytes(arrays->back(), "data");
    block->data = const_cast<void*>(static_cast<const void*>(arrays->back().data()));
    return;
  }
  if (!object.attr("data").is_none()) RaiseInvalid("block: has both planes and data");
  if (!pieces.ok()) Raise(pieces.status());
  if (nb::len(given) != pieces->size()) {
    RaiseInvalid(absl::StrCat("planes: ", nb::len(given), " given, the range has ", pieces->size()));
  }
  planes->reserve(pieces->size());
  for (size_t i = 0; i < pieces->size(); ++i) {
    const std::string what = absl::StrCat("planes[", i, "]");
    Array array = ImportArray<Array>(nb::object(given[i]), what, &bfloat16);
    const Strides strides = StridesOf(array, bfloat16, (*pieces)[i], what);
    planes->push_back({.data = const_cast<void*>(static_cast<const void*>(array.data())),
                       .token_stride = strides.token,
                       .head_stride = strides.head});
    arrays->push_back(std::move(array));
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// To Python

class Types {
 public:
  Types() : module_(nb::module_::import_("nqkv._types")) {}
  template <typename... Arguments>
  nb::object Make(const char* name, Arguments&&... arguments) const {
    return module_.attr(name)(std::forward<Arguments>(arguments)...);
  }
  nb::object Range(const client::Range& range) const { return Make("Range", range.begin, range.end); }
  template <typename Enum>
  nb::object Number(const char* name, Enum value) const {
    return Make(name, static_cast<int>(value));
  }

 private:
  nb::module_ module_;
};

nb::bytes ToBytes(const std::string& bytes) { return nb::bytes(bytes.data(), bytes.size()); }

nb::object ToPython(const Types& types, const CacheInfo& info) {
  nb::list sizes;
  for (const GroupSizes& group : info.sizes) {
    sizes.append(types.Make("GroupSizes", group.layer_group, types.Range(group.layers), types.Range(group.heads),
                            group.raw_bytes, group.encoded_bytes_min, group.encoded_bytes_typical,
                            group.encoded_bytes_max));
  }
  const CodecPolicy& policy = info.policy;
  return types.Make("CacheInfo", info.created, ToBytes(info.spec_fingerprint),
                    types.Make("CodecPolicy", types.Number("Codec", policy.codec), policy.scale_group,
                               types.Number("PlaneLayout", policy.layout), policy.floor_error_max,
                               policy.token_norm_error_max, policy.allow_non_finite),
                    nb::tuple(sizes), info.message_bytes_max, info.message_bytes_best, info.lookup_keys_max,
                    info.get_keys_max, info.delete_keys_max, info.put_open_blocks_max, info.release_tokens_max,
                    Seconds(info.lookup_wait_max), Seconds(info.lease_duration_default),
                    Seconds(info.lease_duration_max), info.server_version);
}

nb::object ToPython(const Types& types, const LookupResult& result) {
  nb::list groups;
  for (const GroupMatch& match : result.groups) {
    nb::list present, blocks;
    for (const bool is_present : match.present) present.append(is_present);
    for (const BlockInfo& block : match.blocks) {
      blocks.append(types.Make("BlockInfo", block.present, block.stored_bytes,
                               types.Number("Provenance", block.provenance), block.floor_error,
                               block.token_norm_error));
    }
    groups.append(types.Make("GroupMatch", match.layer_group, match.matched_blocks, nb::tuple(present), match.raw_bytes,
                             match.stored_bytes, nb::tuple(blocks)));
  }
  return types.Make("LookupResult", result.matched_tokens, nb::tuple(groups), ToBytes(result.lease_token),
                    ErrorOf(result.lease_status));
}

nb::object ToPython(const Types& types, const PutResult& result) {
  return types.Make("PutResult", ErrorOf(result.status), types.Number("PutOutcome", result.outcome), result.raw_bytes,
                    result.stored_bytes, result.floor_error, result.token_norm_error, result.raw_planes);
}

nb::object ToPython(const Types& types, const GetResult& result) {
  nb::list planes;
  for (const PlaneInfo& plane : result.planes) {
    planes.append(types.Make("PlaneInfo", plane.layer, types.Number("PlaneRole", plane.role), types.Range(plane.heads),
                             types.Number("Codec", plane.codec), plane.scale_group,
                             types.Number("PlaneLayout", plane.layout), plane.stored_bytes, plane.floor_error,
                             plane.token_norm_error, plane.nmse, plane.crc32c, plane.strong_channels));
  }
  return types.Make("GetResult", ErrorOf(result.status), result.payload_bytes, result.stored_bytes,
                    types.Number("Provenance", result.provenance), result.floor_error, result.token_norm_error,
                    nb::tuple(planes));
}

nb::object ToPython(const Types& types, const absl::StatusOr<Removed>& removed) {
  if (!removed.ok()) Raise(removed.status());
  return types.Make("Removed", removed->blocks, removed->bytes);
}

// ---------------------------------------------------------------------------------------------------------------------
// Calls

// An open cache. Thread-safe, as Cache is.
class PyCache {
 public:
  PyCache(std::unique_ptr<Cache> cache, CacheSpec spec) : cache_(std::move(cache)), spec_(std::move(spec)) {}

  nb::object Info() const { return ToPython(Types(), cache_->info()); }

  uint64_t BlockBytes(uint32_t layer_group, nb::handle ranges, nb::handle dtype) const {
    const absl::StatusOr<uint64_t> bytes = cache_->BlockBytes(OptionsOf(layer_group, ranges, dtype, false));
    if (!bytes.ok()) Raise(bytes.status());
    return *bytes;
  }

  nb::list Lookup(nb::handle queries, std::optional<double> timeout) {
    std::vector<LookupQuery> asked;
    for (nb::handle query : queries) {
      LookupQuery out{.chains = {},
                      .mode = EnumOf<LookupMode>(query, "mode"),
                      .include_blocks = NumberOf<bool>(query, "include_blocks"),
                      .lease = LeaseOf(query.attr("lease")),
                      .wait_until_present = Milliseconds(NumberOf<double>(query, "wait_until_present"))};
      for (nb::handle chain : query.attr("chains")) {
        out.chains.push_back({.layer_group = NumberOf<uint32_t>(chain, "layer_group"),
                              .first_block_index = NumberOf<uint32_t>(chain, "first_block_index"),
                              .keys = KeysOf(chain.attr("keys"))});
      }
      asked.push_back(std::move(out));
    }
    const CallOptions options = CallOptionsOf(timeout);
    absl::StatusOr<std::vector<LookupResult>> results;
    {
      nb::gil_scoped_release release;
      results = cache_->Lookup(asked, options);
    }
    if (!results.ok()) Raise(results.status());
    const Types types;
    nb::list out;
    for (const LookupResult& result : *results) out.append(ToPython(types, result));
    return out;
  }

  nb::list Put(nb::handle blocks, std::optional<double> timeout) {
    const CacheInfo info = cache_->info();
    std::vector<PutBlock> given;
    Arrays<ReadArray> arrays;
    for (nb::handle block : blocks) {
      PutBlock out{.key = BytesOf(block.attr("key"), "key"),
                   .layer_group = NumberOf<uint32_t>(block, "layer_group"),
                   .planes = {},
                   .layers = RangeOf(block, "layers"),
                   .heads = RangeOf(block, "heads"),
                   .scope = BytesOf(block.attr("scope"), "scope"),
                   .token_start = NumberOf<uint64_t>(block, "token_start"),
                   .first_in_sequence = NumberOf<bool>(block, "first_in_sequence"),
                   .provenance = EnumOf<Provenance>(block, "provenance")};
      SetMemory(block, PlanesOf(spec_, info, out.layer_group, out.layers, out.heads), &out, &out.planes, &arrays);
      given.push_back(std::move(out));
    }
    const CallOptions options = CallOptionsOf(timeout);
    std::vector<PutResult> results;
    {
      nb::gil_scoped_release release;
      results = cache_->Put(given, options);
    }
    const Types types;
    nb::list out;
    for (const PutResult& result : results) out.append(ToPython(types, result));
    return out;
  }

  nb::list Get(nb::handle targets, uint32_t layer_group, nb::handle ranges, nb::handle dtype, bool include_planes,
               nb::handle lease_token, std::optional<double> timeout) {
    GetOptions get = OptionsOf(layer_group, ranges, dtype, include_planes);
    get.lease_token = BytesOf(lease_token, "lease");
    absl::StatusOr<std::vector<PlanePiece>> pieces =
        PlanesOf(spec_, cache_->info(), layer_group, get.layers, get.heads);
    if (pieces.ok() && get.dtype) {
      for (PlanePiece& piece : *pieces) piece.spec.dtype = *get.dtype;
    }
    std::vector<GetTarget> given;
    Arrays<WriteArray> arrays;
    for (nb::handle target : targets) {
      GetTarget out{.key = BytesOf(target.attr("key"), "key"), .planes = {}};
      SetMemory(target, pieces, &out, &out.planes, &arrays);
      given.push_back(std::move(out));
    }
    const CallOptions options = CallOptionsOf(timeout);
    std::vector<GetResult> results;
    {
      nb::gil_scoped_release release;
      results = cache_->Get(given, get, options);
    }
    const Types types;
    nb::list out;
    for (const GetResult& result : results) out.append(ToPython(types, result));
    return out;
  }

  uint32_t Release(nb::handle lease_tokens, std::optional<double> timeout) {
    const std::vector<std::string> given = KeysOf(lease_tokens);
    const CallOptions options = CallOptionsOf(timeout);
    absl::StatusOr<uint32_t> released;
    {
      nb::gil_scoped_release release;
      released = cache_->Release(given, options);
    }
    if (!released.ok()) Raise(released.status());
    return *released;
  }

  void Touch(uint32_t layer_group, nb::handle keys, std::optional<double> timeout) {
    const std::vector<std::string> given = KeysOf(keys);
    const CallOptions options = CallOptionsOf(timeout);
    absl::Status status;
    {
      nb::gil_scoped_release release;
      status = cache_->Touch(layer_group, given, options);
    }
    if (!status.ok()) Raise(status);
  }

  nb::object Delete(uint32_t layer_group, nb::handle keys, std::optional<double> timeout) {
    const std::vector<std::string> given = KeysOf(keys);
    const CallOptions options = CallOptionsOf(timeout);
    absl::StatusOr<Removed> removed;
    {
      nb::gil_scoped_release release;
      removed = cache_->Delete(layer_group, given, options);
    }
    return ToPython(Types(), removed);
  }

  nb::object Clear(std::optional<double> timeout) {
    const CallOptions options = CallOptionsOf(timeout);
    absl::StatusOr<Removed> removed;
    {
      nb::gil_scoped_release release;
      removed = cache_->Clear(options);
    }
    return ToPython(Types(), removed);
  }

 private:
  // `ranges`: (layers, heads).
  static GetOptions OptionsOf(uint32_t layer_group, nb::handle ranges, nb::handle dtype, bool include_planes) {
    GetOptions options{.layer_group = layer_group, .include_planes = include_planes};
    const nb::object pair = nb::module_::import_("types").attr("SimpleNamespace")(**nb::borrow<nb::dict>(ranges));
    options.layers = RangeOf(pair, "layers");
    options.heads = RangeOf(pair, "heads");
    if (!dtype.is_none()) options.dtype = static_cast<Dtype>(nb::cast<uint8_t>(dtype));
    return options;
  }

  const std::unique_ptr<Cache> cache_;
  const CacheSpec spec_;
};

// Its thread needs no interpreter.
class PySession {
 public:
  explicit PySession(std::unique_ptr<Session> session) : session_(std::move(session)) {}
  ~PySession() { Close(); }

  std::string Id() const { return session_->id(); }
  nb::object Error() const { return ErrorOf(session_->status()); }
  void Close() {
    nb::gil_scoped_release release;
    session_.reset();
  }

 private:
  std::unique_ptr<Session> session_;
};

class PyClient {
 public:
  PyClient(const std::string& server, double timeout, nb::handle retry) {
    ClientOptions options{.timeout = Milliseconds(timeout), .retry = {}};
    options.retry = {.attempts_max = NumberOf<int>(retry, "attempts_max"),
                     .backoff_first = Milliseconds(NumberOf<double>(retry, "backoff_first")),
                     .backoff_max = Milliseconds(NumberOf<double>(retry, "backoff_max")),
                     .multiplier = NumberOf<double>(retry, "multiplier"),
                     .jitter = NumberOf<double>(retry, "jitter")};
    absl::StatusOr<std::unique_ptr<Client>> client = Client::Connect(server, options);
    if (!client.ok()) Raise(client.status());
    client_ = *std::move(client);
  }

  PySession* OpenSession(const std::string& owner, std::optional<double> timeout) {
    const CallOptions options = CallOptionsOf(timeout);
    absl::StatusOr<std::unique_ptr<Session>> opened;
    {
      nb::gil_scoped_release release;
      opened = client_->OpenSession({.owner = owner}, options);
    }
    if (!opened.ok()) Raise(opened.status());
    return new PySession(*std::move(opened));
  }

  PyCache* OpenCache(const std::string& name, nb::handle spec, nb::handle policy, nb::handle shard,
                     const std::string& engine, std::optional<double> timeout) {
    const CacheOptions cache{
        .name = name, .spec = SpecOf(spec), .policy = PolicyOf(policy), .shard = ShardOf(shard), .engine = engine};
    const CallOptions options = CallOptionsOf(timeout);
    absl::StatusOr<std::unique_ptr<Cache>> opened;
    {
      nb::gil_scoped_release release;
      opened = client_->OpenCache(cache, options);
    }
    if (!opened.ok()) Raise(opened.status());
    return new PyCache(*std::move(opened), cache.spec);
  }

 private:
  std::unique_ptr<Client> client_;
};

nb::list PyChainKeys(const nb::ndarray<const uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>& tokens,
                     uint32_t block_tokens, const nb::bytes& adapter_digest, const nb::bytes& salt, nb::handle items) {
  KeyInputs inputs{
      .adapter_digest = BytesOf(adapter_digest, "adapter_digest"), .salt = BytesOf(salt, "salt"), .items = {}};
  for (nb::handle item : items) {
    inputs.items.push_back({.id = BytesOf(item.attr("id"), "id"),
                            .token_begin = NumberOf<uint64_t>(item, "token_begin"),
                            .token_end = NumberOf<uint64_t>(item, "token_end")});
  }
  std::vector<std::string> keys;
  {
    nb::gil_scoped_release release;
    keys = ChainKeys({tokens.data(), tokens.shape(0)}, block_tokens, inputs);
  }
  nb::list out;
  for (const std::string& key : keys) out.append(ToBytes(key));
  return out;
}

}  // namespace

NB_MODULE(_native, module) {
  nb::class_<PyClient>(module, "Client")
      .def(nb::init<const std::string&, double, nb::handle>())
      .def("open_session", &PyClient::OpenSession, nb::arg("owner"), nb::arg("timeout").none())
      .def("open_cache", &PyClient::OpenCache, nb::arg("name"), nb::arg("spec"), nb::arg("policy").none(),
           nb::arg("shard"), nb::arg("engine"), nb::arg("timeout").none());
  nb::class_<PySession>(module, "Session")
      .def("id", &PySession::Id)
      .def("error", &PySession::Error)
      .def("close", &PySession::Close);
  nb::class_<PyCache>(module, "Cache")
      .def("info", &PyCache::Info)
      .def("block_bytes", &PyCache::BlockBytes, nb::arg(), nb::arg(), nb::arg().none())
      .def("lookup", &PyCache::Lookup, nb::arg(), nb::arg().none())
      .def("put", &PyCache::Put, nb::arg(), nb::arg().none())
      .def("get", &PyCache::Get, nb::arg(), nb::arg(), nb::arg(), nb::arg().none(), nb::arg(), nb::arg(),
           nb::arg().none())
      .def("release", &PyCache::Release, nb::arg(), nb::arg().none())
      .def("touch", &PyCache::Touch, nb::arg(), nb::arg(), nb::arg().none())
      .def("delete", &PyCache::Delete, nb::arg(), nb::arg(), nb::arg().none())
      .def("clear", &PyCache::Clear, nb::arg().none());
  module.def("chain_keys", &PyChainKeys);
  module.def("tune_malloc", &TuneMalloc);
}

}  // namespace nqkv::client
