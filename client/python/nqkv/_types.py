"""The plain values that calls take and return. Numbers of enums are those of the wire contract."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence
from typing import Any, NamedTuple

from ._errors import Error

_value = dataclasses.dataclass(frozen=True)


class Dtype(enum.IntEnum):
    FLOAT16 = 1
    BFLOAT16 = 2
    FLOAT32 = 3

    @property
    def itemsize(self) -> int:
        return 4 if self is Dtype.FLOAT32 else 2


class PlaneRole(enum.IntEnum):
    KEY = 1
    VALUE = 2
    LATENT = 3
    ROPE = 4


class GroupKind(enum.IntEnum):
    FULL = 1
    MLA = 2


class Codec(enum.IntEnum):
    AUTO = 1
    RAW = 2
    NQKV4 = 3
    NQKV4H = 4
    Q8 = 5


class PlaneLayout(enum.IntEnum):
    HEAD = 1
    ROW = 2


class Provenance(enum.IntEnum):
    ORIGINAL = 1
    ON_LOSSY_PREFIX = 2
    DECODED = 3


class LookupMode(enum.IntEnum):
    PREFIX = 1
    SET = 2


class PutOutcome(enum.IntEnum):
    NONE = 0
    STORED = 1
    ALREADY_PRESENT = 2
    REPLACED = 3


class Range(NamedTuple):
    """Half open: [begin, end)."""

    begin: int
    end: int


@_value
class PlaneSpec:
    """One layer's keys, values, latents or rotary keys. `heads` are those of the whole model."""

    layer: int
    role: PlaneRole
    heads: int
    channels: int
    dtype: Dtype = Dtype.FLOAT16


@_value
class LayerGroup:
    """Layers that share a block size. `planes` are in order of layer, then of role."""

    id: int
    block_tokens: int
    planes: tuple[PlaneSpec, ...]
    kind: GroupKind = GroupKind.FULL


@_value
class CacheSpec:
    """What must be equal for two workers to share blocks; always of the whole model."""

    model: str
    layer_groups: tuple[LayerGroup, ...]
    revision: str = ""
    rope_digest: bytes = b""
    adapter_digest: bytes = b""
    key_scheme: str = ""


def uniform_spec(
    model: str,
    layers: int,
    kv_heads: int,
    head_channels: int,
    dtype: Dtype = Dtype.FLOAT16,
    block_tokens: int = 64,
) -> CacheSpec:
    """The spec of a model whose layers are all alike, with full attention: one group, id 0."""
    planes = tuple(
        PlaneSpec(layer, role, kv_heads, head_channels, dtype)
        for layer in range(layers)
        for role in (PlaneRole.KEY, PlaneRole.VALUE)
    )
    return CacheSpec(model, (LayerGroup(0, block_tokens, planes),))


@_value
class CodecPolicy:
    """How the server encodes. 0 means the server's default."""

    codec: Codec = Codec.AUTO
    scale_group: int = 0
    layout: PlaneLayout = PlaneLayout.HEAD
    floor_error_max: float = 0
    token_norm_error_max: float = 0
    allow_non_finite: bool = False


@_value
class ShardPart:
    """What a shard holds of one layer group. None: all of it."""

    layer_group: int
    layers: Range | None = None
    heads: Range | None = None


@_value
class ShardSpec:
    """Which part of the model this worker holds. As it stands: all of it."""

    tensor_rank: int = 0
    tensor_size: int = 1
    pipeline_rank: int = 0
    pipeline_size: int = 1
    parts: tuple[ShardPart, ...] = ()


@_value
class GroupSizes:
    """Bytes of one block of a layer group, as this worker's shard sees it."""

    layer_group: int
    layers: Range
    heads: Range
    raw_bytes: int
    encoded_bytes_min: int
    encoded_bytes_typical: int
    encoded_bytes_max: int


@_value
class CacheInfo:
    """What the server answered when the cache was opened."""

    created: bool
    spec_fingerprint: bytes
    policy: CodecPolicy
    sizes: tuple[GroupSizes, ...]
    message_bytes_max: int
    message_bytes_best: int
    lookup_keys_max: int
    get_keys_max: int
    delete_keys_max: int
    put_open_blocks_max: int
    release_tokens_max: int
    lookup_wait_seconds_max: float
    lease_seconds_default: float
    lease_seconds_max: float
    server_version: str


@_value
class RetryPolicy:
    """Waits min(backoff_max, backoff_first * multiplier^n) seconds, each taken at random from [1 - jitter, 1] of it, and
    never less than what the server asked for."""

    attempts_max: int = 5
    backoff_first: float = 0.1
    backoff_max: float = 2.0
    multiplier: float = 2.0
    jitter: float = 0.5


@_value
class KeyChain:
    """Keys of consecutive blocks of one layer group, the head of the sequence first."""

    keys: Sequence[bytes]
    layer_group: int = 0
    first_block_index: int = 0


@_value
class LeaseOptions:
    """Keeps what a lookup found until it is loaded: to its release, the end of its seconds or of its session.

    A repeat of `request_id` in the session replaces the lease. `session_id` is that of a `Session`; empty: none. 0 seconds:
    the server's default.
    """

    session_id: str = ""
    request_id: str = ""
    seconds: float = 0.0


@_value
class LookupQuery:
    chains: Sequence[KeyChain]
    mode: LookupMode = LookupMode.PREFIX
    include_blocks: bool = False
    lease: LeaseOptions | None = None
    #: Seconds, within the call's timeout: answer when every key is there, or when this time is up. 0: at once.
    wait_until_present: float = 0.0


@_value
class BlockInfo:
    present: bool
    stored_bytes: int
    provenance: Provenance
    floor_error: float
    token_norm_error: float


@_value
class GroupMatch:
    """PREFIX: the blocks within `matched_tokens`. SET: the keys present, one by one in `present`."""

    layer_group: int
    matched_blocks: int
    present: tuple[bool, ...]
    raw_bytes: int
    stored_bytes: int
    blocks: tuple[BlockInfo, ...]


@_value
class LookupResult:
    """`matched_tokens`: what every chain has (PREFIX). `groups`: one a chain, in order.

    `lease_token` is empty where no lease was asked for, nothing matched, or none was given: `lease_error` says why.
    """

    matched_tokens: int
    groups: tuple[GroupMatch, ...]
    lease_token: bytes = b""
    lease_error: Error | None = None


@dataclasses.dataclass
class PutBlock:
    """A block to store.

    Either `planes`, one array a plane of the range, by layer and then by role, each [tokens][heads][channels] (or
    [tokens][channels] where there is one head) with any strides as long as the channels are contiguous; or `data`, an
    array without gaps that holds all of them one after the other. Arrays are anything with DLPack or the buffer
    protocol on the CPU. Where an array's type is a float it must be the spec's; 16-bit and 32-bit integers pass as bits.
    """

    key: bytes
    planes: Sequence[Any] | None = None
    data: Any = None
    layer_group: int = 0
    layers: Range | None = None
    heads: Range | None = None
    scope: bytes = b""
    token_start: int = 0
    first_in_sequence: bool = False
    provenance: Provenance = Provenance.ORIGINAL


@dataclasses.dataclass
class GetTarget:
    """Where one block goes: writable arrays, as in `PutBlock`. Nothing beside the rows of `planes` is touched."""

    key: bytes
    planes: Sequence[Any] | None = None
    data: Any = None


class _Result:
    error: Error | None

    @property
    def ok(self) -> bool:
        return self.error is None

    def check(self) -> None:
        """Raises the block's error, if it has one."""
        if self.error is not None:
            raise self.error


@_value
class PutResult(_Result):
    error: Error | None
    outcome: PutOutcome
    raw_bytes: int
    stored_bytes: int
    floor_error: float
    token_norm_error: float
    raw_planes: int


@_value
class PlaneInfo:
    """One stored plane that a block was decoded from."""

    layer: int
    role: PlaneRole
    heads: Range
    codec: Codec
    scale_group: int
    layout: PlaneLayout
    stored_bytes: int
    floor_error: float
    token_norm_error: float
    nmse: float
    crc32c: int
    strong_channels: int


@_value
class GetResult(_Result):
    """With an error, the target's content is unspecified. A miss is a NotFoundError in `error`, never raised by itself."""

    error: Error | None
    payload_bytes: int
    stored_bytes: int
    provenance: Provenance
    floor_error: float
    token_norm_error: float
    planes: tuple[PlaneInfo, ...]


@_value
class Removed:
    blocks: int
    bytes: int


@_value
class MultimodalItem:
    """Stands at tokens [token_begin, token_end) of the sequence; `id` is a digest of its content."""

    id: bytes
    token_begin: int
    token_end: int
