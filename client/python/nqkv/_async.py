"""The same calls for asyncio: each runs in a thread of its client's own pool, and the event loop goes on."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
from collections.abc import Callable
from typing import Any, TypeVar

from ._client import Cache, Client, Lease, Session
from ._types import CacheInfo, CacheSpec, GetResult, LookupResult, PutResult, Removed, RetryPolicy

T = TypeVar("T")


class _Threads:
    def __init__(self, calls_max: int):
        self._pool = concurrent.futures.ThreadPoolExecutor(calls_max, thread_name_prefix="nqkv")

    async def run(self, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """A cancelled call still uses the caller's arrays, so the cancellation is passed on when it has ended."""
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._pool, functools.partial(function, *arguments, **options))
        cancelled: asyncio.CancelledError | None = None
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            future.exception()
            raise cancelled
        return future.result()

    def close(self) -> None:
        self._pool.shutdown(wait=False)


class AsyncSession:
    """As `Session`, for asyncio."""

    def __init__(self, session: Session, threads: _Threads):
        self._session, self._threads = session, threads

    async def __aenter__(self) -> AsyncSession:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def id(self) -> str:
        return self._session.id

    def check(self) -> None:
        self._session.check()

    async def close(self) -> None:
        await self._threads.run(self._session.close)


class AsyncLease:
    """As `Lease`, for asyncio."""

    def __init__(self, lease: Lease, threads: _Threads):
        self._lease, self._threads = lease, threads

    async def __aenter__(self) -> AsyncLease:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.release()

    @property
    def result(self) -> LookupResult:
        return self._lease.result

    @property
    def token(self) -> bytes:
        return self._lease.token

    async def release(self) -> None:
        await self._threads.run(self._lease.release)


class AsyncCache:
    """As `Cache`, each call a coroutine. A cancelled call ends only when the arrays are free, within its timeout."""

    def __init__(self, cache: Cache, threads: _Threads):
        self._cache, self._threads = cache, threads

    async def __aenter__(self) -> AsyncCache:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._cache.close()

    @property
    def name(self) -> str:
        return self._cache.name

    @property
    def info(self) -> CacheInfo:
        return self._cache.info

    def block_bytes(self, **options: Any) -> int:
        return self._cache.block_bytes(**options)

    async def lookup(self, keys: Any, **options: Any) -> LookupResult:
        return await self._threads.run(self._cache.lookup, keys, **options)

    async def lookup_many(self, queries: Any, **options: Any) -> list[LookupResult]:
        return await self._threads.run(self._cache.lookup_many, queries, **options)

    async def put(self, blocks: Any, **options: Any) -> list[PutResult]:
        return await self._threads.run(self._cache.put, blocks, **options)

    async def get(self, targets: Any, **options: Any) -> list[GetResult]:
        if isinstance(options.get("lease"), AsyncLease):
            options["lease"] = options["lease"].token
        return await self._threads.run(self._cache.get, targets, **options)

    async def lease(self, keys: Any, *, session: AsyncSession | Session | None = None, **options: Any) -> AsyncLease:
        plain = session._session if isinstance(session, AsyncSession) else session
        lease = await self._threads.run(self._cache.lease, keys, session=plain, **options)
        return AsyncLease(lease, self._threads)

    async def release(self, lease_tokens: Any, **options: Any) -> int:
        return await self._threads.run(self._cache.release, lease_tokens, **options)

    async def touch(self, keys: Any, **options: Any) -> None:
        await self._threads.run(self._cache.touch, keys, **options)

    async def delete(self, keys: Any, **options: Any) -> Removed:
        return await self._threads.run(self._cache.delete, keys, **options)

    async def clear(self, **options: Any) -> Removed:
        return await self._threads.run(self._cache.clear, **options)


class AsyncClient:
    """As `Client`, for asyncio. At most `calls_max` calls run at once; more wait for their turn."""

    def __init__(self, server: str, *, timeout: float = 30.0, retry: RetryPolicy | None = None, calls_max: int = 8):
        self._client = Client(server, timeout=timeout, retry=retry)
        self._threads = _Threads(calls_max)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()
        self._threads.close()

    async def open_session(self, **options: Any) -> AsyncSession:
        return AsyncSession(await self._threads.run(self._client.open_session, **options), self._threads)

    async def open_cache(self, name: str, spec: CacheSpec, **options: Any) -> AsyncCache:
        return AsyncCache(await self._threads.run(self._client.open_cache, name, spec, **options), self._threads)
