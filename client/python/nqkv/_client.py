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
    LeaseOptions,
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


class Session:
    """A session, made by `Client.open_session`, which leases end with.

    A thread of its own keeps it alive, also over broken connections, until `close`. Thread-safe.
    """

    def __init__(self, implementation: Any):
        self._implementation = implementation
        self._id: str = implementation.id()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def id(self) -> str:
        return self._id

    def check(self) -> None:
        """Raises why the session has ended, if it has."""
        implementation = self._implementation
        if implementation is None:
            raise ClosedError("the session was closed")
        error = implementation.error()
        if error is not None:
            raise error

    def close(self) -> None:
        """Ends the session, and its leases with it."""
        implementation, self._implementation = self._implementation, None
        if implementation is not None:
            implementation.close()


class Lease:
    """What a lookup found, kept until `release`. Made by `Cache.lease`; `result` is the lookup's."""

    def __init__(self, cache: Cache, result: LookupResult):
        self.result = result
        self._cache: Cache | None = cache

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def token(self) -> bytes:
        """Names the lease on any connection, in other processes too. Empty where nothing was found."""
        return self.result.lease_token

    def release(self) -> None:
        """Lets the blocks go. Does nothing where the lease has ended by itself."""
        cache, self._cache = self._cache, None
        if cache is not None and self.token:
            cache.release([self.token])


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
        lease: LeaseOptions | None = None,
        wait_until_present: float = 0.0,
        timeout: float | None = None,
    ) -> LookupResult:
        """How much of one chain of keys is present for what this shard needs. A miss is a result.

        With `wait_until_present` (seconds, within the timeout) the answer comes when every key is there, or after that time.
        """
        query = LookupQuery((KeyChain(keys, layer_group),), mode, include_blocks, lease, wait_until_present)
        return self.lookup_many((query,), timeout=timeout)[0]

    def lease(
        self,
        keys: Sequence[bytes],
        *,
        session: Session | None = None,
        request_id: str = "",
        seconds: float = 0.0,
        layer_group: int = 0,
        mode: LookupMode = LookupMode.PREFIX,
        include_blocks: bool = False,
        wait_until_present: float = 0.0,
        timeout: float | None = None,
    ) -> Lease:
        """Looks up one chain of keys and keeps what was found, until the lease is released, its time is up or its
        session ends. Raises where the server cannot give a lease: OverloadedError, EndedError."""
        options = LeaseOptions("" if session is None else session.id, request_id, seconds)
        result = self.lookup(
            keys,
            layer_group=layer_group,
            mode=mode,
            include_blocks=include_blocks,
            lease=options,
            wait_until_present=wait_until_present,
            timeout=timeout,
        )
        if result.lease_error is not None:
            raise result.lease_error
        return Lease(self, result)

    def release(self, lease_tokens: Sequence[bytes], *, timeout: float | None = None) -> int:
        """Ends leases; returns how many of them had not ended by themselves or been replaced."""
        return self._open().release(lease_tokens, timeout)

    def touch(self, keys: Sequence[bytes], *, layer_group: int = 0, timeout: float | None = None) -> None:
        """Marks blocks as just used, from the last key to the first."""
        self._open().touch(layer_group, keys, timeout)

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
        lease: Lease | bytes | None = None,
        timeout: float | None = None,
    ) -> list[GetResult]:
        """Fetches blocks into the targets: one result a target, in order; a miss is a NotFoundError in its result.

        `dtype` is what the targets hold; None: each plane's own. The arrays are written until the call returns. Under a
        `lease`, or the token of one, its blocks are there; EndedError in each result where it has ended.
        """
        ranges = {"layers": layers, "heads": heads}
        token = lease.token if isinstance(lease, Lease) else lease or b""
        return self._open().get(targets, layer_group, ranges, dtype, include_planes, token, timeout)

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

    def open_session(self, *, owner: str = "", timeout: float | None = None) -> Session:
        """Opens a session, which leases end with. `owner` says who it is, for the server's lists."""
        implementation = self._implementation
        if implementation is None:
            raise ClosedError(f"the client of {self.server} was closed")
        return Session(implementation.open_session(owner, timeout))

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
