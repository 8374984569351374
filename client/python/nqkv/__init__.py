"""The client of nqkvd, a shared cache tier for the key/value tensors of LLM inference.

    import nqkv

    spec = nqkv.uniform_spec("my-model", layers=30, kv_heads=3, head_channels=64)
    keys = nqkv.chain_keys(tokens, 64)
    with nqkv.Client("unix:/run/nqkv/nqkvd.sock") as client, client.open_cache("my-model", spec) as cache:
        blocks = cache.lookup(keys).groups[0].matched_blocks
        cache.get([nqkv.GetTarget(key, planes=views(page)) for key, page in zip(keys[:blocks], pages)])

Arrays (NumPy, torch, anything with DLPack or the buffer protocol, in the memory of the CPU) are read and written where
they lie, with any strides over tokens and heads, and other Python threads run meanwhile. `backend_name` says which
implementation is in use: "native" or, slower, "grpcio".
"""

from ._async import AsyncCache, AsyncClient, AsyncLease, AsyncSession
from ._client import Cache, Client, Lease, Session, backend_name, chain_keys
from ._errors import (
    ClosedError,
    DataLossError,
    DeadlineError,
    EndedError,
    Error,
    InvalidArgumentError,
    MismatchError,
    NotFoundError,
    OverloadedError,
    UnavailableError,
    UnimplementedError,
)
from ._types import (
    BlockInfo,
    CacheInfo,
    CacheSpec,
    Codec,
    CodecPolicy,
    Dtype,
    GetResult,
    GetTarget,
    GroupKind,
    GroupMatch,
    GroupSizes,
    KeyChain,
    LayerGroup,
    LeaseOptions,
    LookupMode,
    LookupQuery,
    LookupResult,
    MultimodalItem,
    PlaneInfo,
    PlaneLayout,
    PlaneRole,
    PlaneSpec,
    Provenance,
    PutBlock,
    PutOutcome,
    PutResult,
    Range,
    Removed,
    RetryPolicy,
    ShardPart,
    ShardSpec,
    uniform_spec,
)

__all__ = [name for name in dir() if not name.startswith("_")]
