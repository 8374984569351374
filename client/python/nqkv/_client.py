"""Client and Cache, the same over the native module and over grpcio."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from . import _keys
from ._errors import ClosedError, InvalidArgumentError
from ._types import (
    CacheInfo,
    CacheSpec,
    CodecPolicy,
    Dtype,
    GetResult,
    GetTarget,
    KeyChain,
    LookupMode,
    LookupQuery,
    LookupResult,
    MultimodalItem,
    PutBlock,
    PutResult,
    Range,
    Removed,
    RetryPolicy,
    ShardSpec,
)

#: Set to 1 before the first import, it chooses grpcio even where the native module is there.
PURE_PYTHON_VARIABLE = "NQKV_PURE_PYTHON"


def _load() -> tuple[Any, str]:
    if os.environ.get(PURE_PYTHON_VARIABLE, "0") in ("", "0"):
        try:
            from . import _native

            return _native, "native"
        except ImportError as error:
            reason = f"the native module cannot be loaded ({error})"
    else:
        reason = f"{PURE_PYTHON_VARIABLE} is set"
    from . import _grpc

    warnings.warn(f"nqkv: {reason}; using grpcio, which is slower", RuntimeWarning, stacklevel=4)
    return _grpc, "grpcio"


_backend, backend_name = _load()


def chain_keys(
    tokens: Sequence[int] | np.ndarray,
    block_tokens: int,
    *,
    adapter_digest: bytes = b"",
    salt: bytes = b"",
    items: Sequence[MultimodalItem] = (),
) -> list[bytes]:
    """The 32-byte keys of the whole blocks of `tokens` by the scheme nqkv-sha256-v1, the head of the sequence first."""
    items = _keys.check(block_tokens, items)
    implementation = _backend.chain_keys if backend_name == "native" else _keys.chain_keys
    return implementation(_keys.token_array(tokens), block_tokens, adapter_digest, salt, items)


class Cache:
    """An open cache, made by `Client.open_cache`. Thread-safe; every call blocks its thread and lets others run."""

    def __init__(self, name: str, implementation: Any):
        self.name = name
        self._implementation = implementation

    def __enter__(self) -> Cache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the cache; calls that are running end as they would. The blocks stay with the server."""
        self._implementation = None

    def _open(self) -> Any:
        implementation = self._implementation
        if implementation is None:
            raise ClosedError(f"cache '{self.name}' was closed")
        return implementation

    @property
    def info(self) -> CacheInfo:
        """What the server answered when the cache was last opened."""
        return self._open().info()

    def block_bytes(
        self,
        *,
        layer_group: int = 0,
        layers: Range | None = None,
        heads: Range | None = None,
        dtype: Dtype | None = None,
    ) -> int:
        """Raw bytes of one block; what is None is what the shard holds, or each plane's own dtype."""
        return self._open().block_bytes(layer_group, {"layers": layers, "heads": heads}, dtype)

    def lookup(
        self,
        keys: Sequence[bytes],
        *,
        layer_group: int = 0,
        mode: LookupMode = LookupMode.PREFIX,
        include_blocks: bool = False,
        timeout: float | None = None,
    ) -> LookupResult:
        """How much of one chain of keys is present for what this shard needs. A miss is a result."""
        query = LookupQuery((KeyChain(keys, layer_group),), mode, include_blocks)
        return self.lookup_many((query,), timeout=timeout)[0]

    def lookup_many(self, queries: Sequence[LookupQuery], *, timeout: float | None = None) -> list[LookupResult]:
        """One result a query, in order."""
        return self._open().lookup(queries, timeout)

    def put(self, blocks: Iterable[PutBlock], *, timeout: float | None = None) -> list[PutResult]:
        """Stores blocks: one result a block, in order; a failure of one block is in its result.

        The arrays are read until the call returns, and not after: they must not change meanwhile.
        """
        return self._open().put(blocks, timeout)

    def get(
        self,
        targets: Iterable[GetTarget],
        *,
        layer_group: int = 0,
        layers: Range | None = None,
        heads: Range | None = None,
        dtype: Dtype | None = None,
        include_planes: bool = False,
        timeout: float | None = None,
    ) -> list[GetResult]:
        """Fetches blocks into the targets: one result a target, in order; a miss is a NotFoundError in its result.

        `dtype` is what the targets hold; None: each plane's own. The arrays are written until the call returns.
        """
        ranges = {"layers": layers, "heads": heads}
        return self._open().get(targets, layer_group, ranges, dtype, include_planes, timeout)

    def delete(self, keys: Sequence[bytes], *, layer_group: int = 0, timeout: float | None = None) -> Removed:
        """Removes blocks, every range of them."""
        return self._open().delete(layer_group, keys, timeout)

    def clear(self, *, timeout: float | None = None) -> Removed:
        """Removes all blocks of the cache, which stays open."""
        return self._open().clear(timeout)


class Client:
    """A connection to one server: "host:port", "[v6]:port" or "unix:/path". Does not wait for it: the first call does.

    `timeout` is in seconds and of one call, retries included. Thread-safe.
    """

    def __init__(self, server: str, *, timeout: float = 30.0, retry: RetryPolicy | None = None):
        if not timeout > 0:
            raise InvalidArgumentError("timeout: must be above 0")
        self.server = server
        self._implementation: Any = _backend.Client(server, timeout, retry or RetryPolicy())

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the connection. Caches that are open keep it until they are closed."""
        self._implementation = None

    def open_cache(
        self,
        name: str,
        spec: CacheSpec,
        *,
        policy: CodecPolicy | None = None,
        shard: ShardSpec | None = None,
        engine: str = "",
        timeout: float | None = None,
    ) -> Cache:
        """Creates a cache or joins the one of this name. MismatchError where that has another spec or policy."""
        implementation = self._implementation
        if implementation is None:
            raise ClosedError(f"the client of {self.server} was closed")
        return Cache(name, implementation.open_cache(name, spec, policy, shard or ShardSpec(), engine, timeout))
