"""The client in Python over grpcio, for where the native module could not be built: the same calls, slower.

Message classes are made from descriptors that the build has put beside this file, in a pool of their own: they depend on
no version of generated code and cannot collide with another package's.
"""

from __future__ import annotations

import pathlib
import queue
import random
import threading
import time
from typing import Any

import grpc
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from ._arrays import flat_view, plane_view
from ._errors import Error, InvalidArgumentError, NotFoundError, UnavailableError, error_of
from ._types import (
    BlockInfo,
    CacheInfo,
    CacheSpec,
    Codec,
    CodecPolicy,
    Dtype,
    GetResult,
    GroupMatch,
    GroupSizes,
    LookupMode,
    LookupResult,
    PlaneInfo,
    PlaneLayout,
    PlaneRole,
    Provenance,
    PutOutcome,
    PutResult,
    Range,
    Removed,
    RetryPolicy,
    ShardSpec,
)

_SERVICE = "/nqkv.v1.KvCache/"
_MESSAGE_BYTES = 1 << 20  # Where the server has no opinion.
_HEADER_BYTES = 64 << 10  # Of a message, for what is beside the payload.
_DEADLINE_EXCEEDED = 4
_CLOSE_SECONDS = 1.0  # For the server to take the close of a session.
_SESSION_RETRY_SECONDS = 0.1
_SESSION_ENDS = (3, 10, 12)  # Codes with which no second attempt can succeed.
_YEAR = 365.0 * 24 * 3600


def _load_messages() -> dict[str, Any]:
    files = descriptor_pb2.FileDescriptorSet()
    files.ParseFromString((pathlib.Path(__file__).parent / "kv_cache.descriptors").read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    names = {f"nqkv.v1.{message.name}" for file in files.file if file.package == "nqkv.v1" for message in file.message_type}
    names |= {"google.rpc.Status", "google.rpc.RetryInfo"}
    return {
        name.rsplit(".", 1)[1] if name.startswith("nqkv") else name: message_factory.GetMessageClass(
            pool.FindMessageTypeByName(name)
        )
        for name in names
    }


_MESSAGES = _load_messages()


def _retry_seconds(error: grpc.RpcError) -> float:
    for name, value in error.trailing_metadata() or ():
        if name == "grpc-status-details-bin":
            for detail in _MESSAGES["google.rpc.Status"].FromString(value).details:
                if detail.type_url.endswith("/google.rpc.RetryInfo"):
                    delay = _MESSAGES["google.rpc.RetryInfo"].FromString(detail.value).retry_delay
                    return delay.seconds + delay.nanos * 1e-9
    return 0.0


def _from_rpc(error: grpc.RpcError) -> Error:
    return error_of(error.code().value[0], error.details() or "", _retry_seconds(error))


def _from_status(status: Any) -> Error | None:
    return None if status.code == 0 else error_of(status.code, status.message, status.retry_seconds)


def _is_retryable(error: Error) -> bool:
    return error.code == UnavailableError.code or (error.code == 8 and error.retry_after is not None)


class _Deadline:
    def __init__(self, timeout: float):
        self._end = time.monotonic() + min(timeout, _YEAR)

    def left(self) -> float:
        return max(self._end - time.monotonic(), 0.0)


class _Retry:
    def __init__(self, policy: RetryPolicy, deadline: _Deadline):
        self._policy, self._deadline = policy, deadline
        self._attempts, self._backoff = 1, policy.backoff_first

    def again(self, error: Error) -> bool:
        """Whether to try once more; True comes after the wait."""
        if not _is_retryable(error) or self._attempts >= self._policy.attempts_max:
            return False
        wait = max(self._backoff * (1 - self._policy.jitter * random.random()), error.retry_after or 0)
        self._backoff = min(self._backoff * self._policy.multiplier, self._policy.backoff_max)
        if wait >= self._deadline.left():
            return False
        time.sleep(wait)
        self._attempts += 1
        return True


def _check_server(server: str) -> None:
    if server.startswith("unix:"):
        if len(server) < 7 or server[5] != "/":
            raise InvalidArgumentError(f"server: '{server}' has no absolute path after unix:")
        if len(server.encode()) - 5 > 107:
            raise InvalidArgumentError(f"server: '{server}' is longer than a socket path can be")
        return
    host, colon, port = server.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]") and len(host) > 2
    plain = host and not any(character in host for character in ":/ []")
    if not colon or not (bracketed or plain) or not (port.isascii() and port.isdigit()) or not 0 < int(port) <= 65535:
        raise InvalidArgumentError(f"server: '{server}' is neither host:port nor unix:/path")


def _check_retry(policy: RetryPolicy) -> None:
    if policy.attempts_max < 1:
        raise InvalidArgumentError("retry.attempts_max: must be at least 1")
    if not policy.backoff_first >= 0:
        raise InvalidArgumentError("retry.backoff_first: must not be negative")
    if not policy.backoff_max >= policy.backoff_first:
        raise InvalidArgumentError("retry.backoff_max: must not be below backoff_first")
    if not policy.multiplier >= 1:
        raise InvalidArgumentError("retry.multiplier: must be at least 1")
    if not 0 <= policy.jitter <= 1:
        raise InvalidArgumentError("retry.jitter: must be 0 to 1")


def _check_key(key: Any) -> bytes:
    if not isinstance(key, bytes):
        raise InvalidArgumentError("key: must be bytes")
    return key


def _set_range(field: Any, value: Range | None) -> None:
    if value is not None:
        field.begin, field.end = value
        field.SetInParent()


def _range(message: Any) -> Range:
    return Range(message.begin, message.end)


def _provenance(number: int) -> Provenance:
    return Provenance(number) if 0 < number <= 3 else Provenance.ORIGINAL


class Client:
    def __init__(self, server: str, timeout: float, retry: RetryPolicy):
        _check_server(server)
        _check_retry(retry)
        if not timeout > 0:
            raise InvalidArgumentError("timeout: must be above 0")
        self.timeout, self.retry = timeout, retry
        self._channel = grpc.insecure_channel(
            server,
            options=(
                ("grpc.max_receive_message_length", -1),
                ("grpc.enable_retries", 0),
                ("grpc.enable_http_proxy", 0),
                ("grpc.initial_reconnect_backoff_ms", 50),
                ("grpc.min_reconnect_backoff_ms", 50),
                ("grpc.max_reconnect_backoff_ms", 2000),
                ("grpc.keepalive_time_ms", 30_000),
                ("grpc.keepalive_timeout_ms", 10_000),
                ("grpc.use_local_subchannel_pool", 1),
            ),
        )
        self.calls = {
            name: getattr(self._channel, shape)(
                _SERVICE + name,
                request_serializer=_MESSAGES[name + "Request"].SerializeToString,
                response_deserializer=_MESSAGES[name + "Response"].FromString,
            )
            for name, shape in (
                ("OpenCache", "unary_unary"),
                ("Lookup", "unary_unary"),
                ("Put", "stream_stream"),
                ("Get", "unary_stream"),
                ("Session", "stream_stream"),
                ("Release", "unary_unary"),
                ("Touch", "unary_unary"),
                ("Delete", "unary_unary"),
                ("Clear", "unary_unary"),
            )
        }

    def call(self, name: str, request: Any, deadline: _Deadline) -> Any:
        try:
            return self.calls[name](request, timeout=deadline.left())
        except grpc.RpcError as error:
            raise _from_rpc(error) from None

    def open_session(self, owner: str, timeout: float | None) -> Session:
        return Session(self, owner, _Deadline(self.timeout if timeout is None else timeout))

    def open_cache(
        self,
        name: str,
        spec: CacheSpec,
        policy: CodecPolicy | None,
        shard: ShardSpec,
        engine: str,
        timeout: float | None,
    ) -> Cache:
        try:
            request = _open_request(name, spec, policy, shard, engine)
        except (TypeError, ValueError) as error:
            raise InvalidArgumentError(f"spec: {error}") from None
        deadline = _Deadline(self.timeout if timeout is None else timeout)
        retry = _Retry(self.retry, deadline)
        while True:
            try:
                return Cache(self, spec, request, self.call("OpenCache", request, deadline))
            except Error as error:
                if not retry.again(error):
                    raise


class Session:
    """Keeps a session alive: a thread that sends heartbeats over a stream, and takes the session over again on a new
    stream when that breaks."""

    def __init__(self, client: Client, owner: str, deadline: _Deadline):
        self._client, self._owner = client, owner
        self._id, self._error, self._call = "", None, None
        self._heartbeat, self._grace, self._heard = 0.0, 0.0, 0.0
        self._open_by = time.monotonic() + deadline.left()
        self._changed = threading.Condition()
        self._closing = self._ended = False
        self._thread = threading.Thread(target=self._run, name="nqkv-session", daemon=True)
        self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._id, deadline.left())
            if self._id:
                return
            error = self._error or error_of(_DEADLINE_EXCEEDED, "the server did not open the session in time")
        self.close()
        raise error

    def id(self) -> str:
        return self._id

    def error(self) -> Error | None:
        return self._error if self._ended else None

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._ended, _CLOSE_SECONDS)
            if self._call is not None:
                self._call.cancel()
        self._thread.join()

    def _run(self) -> None:
        while True:
            error = self._run_stream()
            with self._changed:
                self._call = None
                self._changed.notify_all()
                self._error = error
                until = self._heard + self._grace if self._id else self._open_by
                final = error.code in _SESSION_ENDS or time.monotonic() >= until
                if self._closing or final or self._changed.wait_for(lambda: self._closing, _SESSION_RETRY_SECONDS):
                    self._ended = True
                    self._changed.notify_all()
                    return

    def _requests(self) -> Any:
        """A heartbeat whenever one is due; ends with the stream, or by closing the session."""
        message = _MESSAGES["SessionRequest"]
        yield message(session_id=self._id) if self._id else message(owner=self._owner)
        beats = 0
        while True:
            with self._changed:
                call, beats = self._call, beats + 1
                answered = lambda: self._closing or self._call is not call or self._beats >= beats  # noqa: E731
                self._changed.wait_for(answered)
                self._changed.wait_for(lambda: self._closing or self._call is not call, self._heartbeat)
                if self._call is not call:
                    return
            if self._closing:
                yield message(close=True)
                return
            yield message()

    def _run_stream(self) -> Error:
        self._beats = 0
        try:
            with self._changed:
                if self._closing:
                    return error_of(1, "the session was closed")
                self._call = call = self._client.calls["Session"](self._requests())
            for response in call:
                with self._changed:
                    self._id = response.session_id
                    self._heartbeat, self._grace = response.heartbeat_seconds, response.session_grace_seconds
                    self._heard = time.monotonic()
                    self._beats += 1
                    self._changed.notify_all()
        except grpc.RpcError as error:
            return _from_rpc(error)
        return error_of(UnavailableError.code, "the server ended the session's stream")


def _open_request(name: str, spec: CacheSpec, policy: CodecPolicy | None, shard: ShardSpec, engine: str) -> Any:
    request = _MESSAGES["OpenCacheRequest"](name=name, engine=engine)
    for field in ("model", "revision", "rope_digest", "adapter_digest", "key_scheme"):
        setattr(request.spec, field, getattr(spec, field))
    for group in spec.layer_groups:
        out = request.spec.layer_groups.add(id=group.id, kind=group.kind, block_tokens=group.block_tokens)
        for plane in group.planes:
            out.planes.add(
                layer=plane.layer, role=plane.role, heads=plane.heads, channels=plane.channels, dtype=plane.dtype
            )
    if policy is not None:
        request.policy.SetInParent()
        for field in ("codec", "scale_group", "layout", "floor_error_max", "token_norm_error_max", "allow_non_finite"):
            setattr(request.policy, field, getattr(policy, field))
    request.shard.SetInParent()
    for field in ("tensor_rank", "tensor_size", "pipeline_rank", "pipeline_size"):
        setattr(request.shard, field, getattr(shard, field))
    for part in shard.parts:
        out = request.shard.parts.add(layer_group=part.layer_group)
        _set_range(out.layers, part.layers)
        _set_range(out.heads, part.heads)
    return request


class _Piece:
    """One plane of a range."""

    def __init__(self, shape: tuple[int, int, int], dtype: Dtype):
        self.shape, self.dtype = shape, dtype
        self.bytes = shape[0] * shape[1] * shape[2] * dtype.itemsize


class _Target:
    """Writes a block's bytes, as they come, to the arrays of one target."""

    def __init__(self, planes: list[np.ndarray] | None, flat: memoryview | None):
        self._planes, self._flat = planes, flat
        self.bytes = len(flat) if flat is not None else sum(plane.nbytes for plane in planes or ())
        self._received, self._plane, self._gathered = 0, 0, bytearray()

    def fits(self, size: int) -> bool:
        return size <= self.bytes if self._flat is not None else size == self.bytes

    def restart(self) -> None:
        self._received, self._plane, self._gathered = 0, 0, bytearray()

    def write(self, part: memoryview) -> None:
        if self._flat is not None:
            self._flat[self._received : self._received + len(part)] = part
            self._received += len(part)
            return
        while len(part) > 0:
            plane = self._planes[self._plane]
            taken = part[: plane.nbytes - len(self._gathered)]
            self._gathered += taken
            part = part[len(taken) :]
            if len(self._gathered) == plane.nbytes:
                plane[...] = np.frombuffer(self._gathered, plane.dtype).reshape(plane.shape)
                self._plane, self._gathered = self._plane + 1, bytearray()


class _Open:
    """One open of a cache by the server."""

    def __init__(self, response: Any):
        self.cache_id, self.shard_id = response.cache_id, response.shard_id
        limits, policy = response.limits, response.policy
        self.info = CacheInfo(
            response.created,
            response.spec_fingerprint,
            CodecPolicy(
                Codec(policy.codec),
                policy.scale_group,
                PlaneLayout(policy.layout),
                policy.floor_error_max,
                policy.token_norm_error_max,
                policy.allow_non_finite,
            ),
            tuple(
                GroupSizes(
                    sizes.layer_group,
                    _range(sizes.part.layers),
                    _range(sizes.part.heads),
                    sizes.raw_bytes,
                    sizes.encoded_bytes_min,
                    sizes.encoded_bytes_typical,
                    sizes.encoded_bytes_max,
                )
                for sizes in response.sizes
            ),
            limits.message_bytes_max,
            limits.message_bytes_best,
            limits.lookup_keys_max,
            limits.get_keys_max,
            limits.delete_keys_max,
            limits.put_open_blocks_max,
            limits.release_tokens_max,
            limits.lookup_wait_seconds_max,
            limits.lease_seconds_default,
            limits.lease_seconds_max,
            response.server_version,
        )

    def payload_bytes(self) -> int:
        best = self.info.message_bytes_best or _MESSAGE_BYTES
        most = self.info.message_bytes_max
        if most == 0:
            return best
        return min(best, most - _HEADER_BYTES if most > 2 * _HEADER_BYTES else max(most // 2, 1))


class Cache:
    def __init__(self, client: Client, spec: CacheSpec, request: Any, response: Any):
        self._client, self._spec, self._request = client, spec, request
        self._open = _Open(response)

    def info(self) -> CacheInfo:
        return self._open.info

    def _call(self, timeout: float | None, attempt: Any) -> None:
        """Runs attempt(open, deadline) until it returns, raises what is not worth another try, or time is up."""
        deadline = _Deadline(self._client.timeout if timeout is None else timeout)
        retry = _Retry(self._client.retry, deadline)
        reopened = False
        while True:
            opened = self._open
            try:
                return attempt(opened, deadline)
            except Error as error:
                failure = error
            if failure.code == NotFoundError.code and not reopened:
                reopened = True
                try:
                    if self._open is opened:
                        self._open = _Open(self._client.call("OpenCache", self._request, deadline))
                    continue
                except Error as error:
                    failure = error
            if not retry.again(failure):
                raise failure

    def _pieces(self, layer_group: int, layers: Range | None, heads: Range | None) -> list[_Piece]:
        group = next((group for group in self._spec.layer_groups if group.id == layer_group), None)
        if group is None:
            raise InvalidArgumentError(f"layer_group: the spec has no group {layer_group}")
        for sizes in self.info().sizes:
            if sizes.layer_group == layer_group:
                layers, heads = layers or sizes.layers, heads or sizes.heads
        pieces = []
        for plane in group.planes:
            if layers[0] <= plane.layer < layers[1]:
                if not 0 <= heads[0] < heads[1] <= plane.heads:
                    raise InvalidArgumentError(
                        f"heads: [{heads[0]}, {heads[1]}) does not lie in the {plane.heads} heads"
                    )
                shape = (group.block_tokens, heads[1] - heads[0], plane.channels)
                pieces.append(_Piece(shape, Dtype(plane.dtype)))
        if not pieces:
            raise InvalidArgumentError(f"layers: group {layer_group} has none in [{layers[0]}, {layers[1]})")
        return pieces

    @staticmethod
    def _views(block: Any, pieces: Any, writable: bool) -> tuple[list[np.ndarray] | None, memoryview | None]:
        if block.planes is None:
            if block.data is None:
                raise InvalidArgumentError("block: has neither planes nor data")
            return None, flat_view(block.data, writable)
        if block.data is not None:
            raise InvalidArgumentError("block: has both planes and data")
        pieces = pieces()
        if len(block.planes) != len(pieces):
            raise InvalidArgumentError(f"planes: {len(block.planes)} given, the range has {len(pieces)}")
        views = [
            plane_view(plane, piece.shape, piece.dtype, f"planes[{number}]", writable)
            for number, (plane, piece) in enumerate(zip(block.planes, pieces))
        ]
        return views, None

    def block_bytes(self, layer_group: int, ranges: dict[str, Range | None], dtype: int | None) -> int:
        pieces = self._pieces(layer_group, ranges["layers"], ranges["heads"])
        if dtype is not None:
            pieces = [_Piece(piece.shape, Dtype(dtype)) for piece in pieces]
        return sum(piece.bytes for piece in pieces)

    def lookup(self, queries: Any, timeout: float | None) -> list[LookupResult]:
        request = _MESSAGES["LookupRequest"]()
        for query in queries:
            out = request.queries.add(mode=query.mode, include_blocks=query.include_blocks)
            if query.wait_until_present != 0:
                out.wait_until_present.seconds_max = query.wait_until_present
            if query.lease is not None:
                out.request_id = query.lease.request_id
                out.lease.session_id, out.lease.seconds = query.lease.session_id, query.lease.seconds
                out.lease.SetInParent()
            for chain in query.chains:
                keys = [_check_key(key) for key in chain.keys]
                out.chains.add(layer_group=chain.layer_group, first_block_index=chain.first_block_index, keys=keys)

        def attempt(opened: _Open, deadline: _Deadline) -> Any:
            request.cache_id, request.shard_id = opened.cache_id, opened.shard_id
            return self._client.call("Lookup", request, deadline)

        response = self._call(timeout, attempt)
        if len(response.results) != len(request.queries):
            raise error_of(13, f"reply: {len(response.results)} results for {len(request.queries)} queries")
        return [_lookup_result(result, query) for result, query in zip(response.results, queries)]

    def put(self, blocks: Any, timeout: float | None) -> list[PutResult]:
        blocks = list(blocks)
        payloads = []
        for block in blocks:
            _check_key(block.key)
            views, flat = self._views(block, lambda: self._pieces(block.layer_group, block.layers, block.heads), False)
            payloads.append(flat if flat is not None else memoryview(b"".join(view.tobytes() for view in views)))
        results: list[PutResult | None] = [None] * len(blocks)
        if blocks:
            try:
                self._call(timeout, lambda opened, deadline: self._put_once(blocks, payloads, results, opened, deadline))
            except Error as error:
                failed = PutResult(error, PutOutcome.NONE, 0, 0, 0.0, 0.0, 0)
                results = [result if _is_final(result) else failed for result in results]
        return results

    def _put_once(self, blocks: Any, payloads: Any, results: Any, opened: _Open, deadline: _Deadline) -> None:
        pending = [number for number, result in enumerate(results) if not _is_final(result)]
        answers: queue.SimpleQueue[None] = queue.SimpleQueue()  # One item a block that may be begun.
        for _ in range(max(opened.info.put_open_blocks_max, 1)):
            answers.put(None)
        stopped = False

        def messages() -> Any:
            limit = opened.payload_bytes()
            for number in pending:
                answers.get()
                if stopped:
                    return
                payload = payloads[number]
                for begin in range(0, max(len(payload), 1), limit):
                    part = bytes(payload[begin : begin + limit])
                    message = _MESSAGES["PutRequest"](cache_id=opened.cache_id, shard_id=opened.shard_id, payload=part)
                    chunk = message.chunks.add(block=number, bytes=len(part))
                    if begin == 0:
                        _fill_begin(chunk.begin, blocks[number], len(payload))
                    yield message

        failure: Error | None = None
        try:
            for response in self._client.calls["Put"](messages(), timeout=deadline.left()):
                for result in response.results:
                    if result.block >= len(results):
                        raise error_of(13, f"reply: a result for block {result.block}")
                    results[result.block] = _put_result(result)
                    answers.put(None)
        except grpc.RpcError as error:
            failure = _from_rpc(error)
        finally:
            stopped = True
            answers.put(None)
        if failure is not None:
            raise failure
        for number in pending:
            if results[number] is None:
                raise error_of(13, f"reply: no result for block {number}")
            if not _is_final(results[number]):
                raise results[number].error

    def get(
        self,
        targets: Any,
        layer_group: int,
        ranges: dict[str, Range | None],
        dtype: int | None,
        include_planes: bool,
        lease_token: bytes,
        timeout: float | None,
    ) -> list[GetResult]:
        def pieces() -> list[_Piece]:
            found = self._pieces(layer_group, ranges["layers"], ranges["heads"])
            return found if dtype is None else [_Piece(piece.shape, Dtype(dtype)) for piece in found]

        targets = list(targets)
        writers = []
        for target in targets:
            _check_key(target.key)
            writers.append(_Target(*self._views(target, pieces, True)))
        results: list[GetResult | None] = [None] * len(targets)

        def attempt(opened: _Open, deadline: _Deadline) -> None:
            left = [number for number, result in enumerate(results) if result is None]
            step = opened.info.get_keys_max or max(len(left), 1)
            for begin in range(0, len(left), step):
                batch = left[begin : begin + step]
                request = _MESSAGES["GetRequest"](
                    cache_id=opened.cache_id, shard_id=opened.shard_id, dtype=dtype or 0, include_planes=include_planes
                )
                request.lease_token = lease_token
                request.chain.layer_group = layer_group
                request.chain.keys.extend(targets[number].key for number in batch)
                _set_range(request.layers, ranges["layers"])
                _set_range(request.heads, ranges["heads"])
                self._get_once(request, batch, writers, results, deadline)

        if targets:
            try:
                self._call(timeout, attempt)
            except Error as error:
                failed = GetResult(error, 0, 0, Provenance.ORIGINAL, 0.0, 0.0, ())
                results = [failed if result is None else result for result in results]
        return results

    def _get_once(self, request: Any, batch: list[int], writers: Any, results: Any, deadline: _Deadline) -> None:
        begun: dict[int, GetResult] = {}
        missing: dict[int, int] = {}  # Bytes that have not come.
        for number in batch:
            writers[number].restart()
        call = self._client.calls["Get"](request, timeout=deadline.left())
        try:
            for response in call:
                payload = memoryview(response.payload)
                for chunk in response.chunks:
                    if chunk.index >= len(batch):
                        raise error_of(13, f"reply: a chunk of block {chunk.index} of {len(batch)}")
                    number = batch[chunk.index]
                    if chunk.HasField("result"):
                        begun[number] = _get_result(chunk.result, writers[number])
                        missing[number] = chunk.result.payload_bytes
                    part, payload = payload[: chunk.bytes], payload[chunk.bytes :]
                    if len(part) != chunk.bytes or chunk.bytes > missing.get(number, -1):
                        raise error_of(13, "reply: chunks and payload do not agree")
                    missing[number] -= chunk.bytes
                    if begun[number].error is None:
                        writers[number].write(part)
        except grpc.RpcError as error:
            raise _from_rpc(error) from None
        finally:
            call.cancel()
            for number, result in begun.items():
                if missing[number] == 0:
                    results[number] = result
        unfinished = sum(results[number] is None for number in batch)
        if unfinished:
            raise error_of(13, f"reply: the stream ended before {unfinished} blocks were whole")

    def release(self, lease_tokens: Any, timeout: float | None) -> int:
        left = [_check_key(token) for token in lease_tokens]
        released = 0

        def attempt(opened: _Open, deadline: _Deadline) -> None:
            nonlocal left, released
            step = opened.info.release_tokens_max or max(len(left), 1)
            while left:
                request = _MESSAGES["ReleaseRequest"](lease_tokens=left[:step])
                released += self._client.call("Release", request, deadline).released
                left = left[step:]

        self._call(timeout, attempt)
        return released

    def touch(self, layer_group: int, keys: Any, timeout: float | None) -> None:
        left = [_check_key(key) for key in keys]

        def attempt(opened: _Open, deadline: _Deadline) -> None:
            nonlocal left
            step = opened.info.delete_keys_max or max(len(left), 1)
            while left:  # From the last batch to the first, as within each.
                request = _MESSAGES["TouchRequest"](
                    cache_id=opened.cache_id, layer_group=layer_group, keys=left[-step:]
                )
                self._client.call("Touch", request, deadline)
                left = left[:-step]

        self._call(timeout, attempt)

    def delete(self, layer_group: int, keys: Any, timeout: float | None) -> Removed:
        left = [_check_key(key) for key in keys]
        blocks = size = 0

        def attempt(opened: _Open, deadline: _Deadline) -> None:
            nonlocal left, blocks, size
            step = opened.info.delete_keys_max or max(len(left), 1)
            while left:
                request = _MESSAGES["DeleteRequest"](
                    cache_id=opened.cache_id, layer_group=layer_group, keys=left[:step]
                )
                response = self._client.call("Delete", request, deadline)
                blocks, size = blocks + response.deleted_blocks, size + response.freed_bytes
                left = left[step:]

        self._call(timeout, attempt)
        return Removed(blocks, size)

    def clear(self, timeout: float | None) -> Removed:
        def attempt(opened: _Open, deadline: _Deadline) -> Any:
            return self._client.call("Clear", _MESSAGES["ClearRequest"](cache_id=opened.cache_id), deadline)

        response = self._call(timeout, attempt)
        return Removed(response.deleted_blocks, response.freed_bytes)


def _is_final(result: PutResult | None) -> bool:
    return result is not None and (result.error is None or not _is_retryable(result.error))


def _fill_begin(begin: Any, block: Any, payload_bytes: int) -> None:
    begin.key, begin.layer_group, begin.payload_bytes = block.key, block.layer_group, payload_bytes
    begin.scope, begin.token_start, begin.first_in_sequence = block.scope, block.token_start, block.first_in_sequence
    begin.provenance = block.provenance
    _set_range(begin.layers, block.layers)
    _set_range(begin.heads, block.heads)


def _put_result(result: Any) -> PutResult:
    return PutResult(
        _from_status(result.status),
        PutOutcome(result.outcome) if result.outcome <= 3 else PutOutcome.NONE,
        result.raw_bytes,
        result.stored_bytes,
        result.floor_error,
        result.token_norm_error,
        result.raw_planes,
    )


def _get_result(result: Any, target: _Target) -> GetResult:
    error = _from_status(result.status)
    if error is None and not target.fits(result.payload_bytes):
        error = error_of(11, f"target: has {target.bytes} bytes, the block needs {result.payload_bytes}")
    planes = tuple(
        PlaneInfo(
            plane.layer,
            PlaneRole(plane.role),
            _range(plane.heads),
            Codec(plane.codec),
            plane.scale_group,
            PlaneLayout(plane.layout or 1),
            plane.stored_bytes,
            plane.floor_error,
            plane.token_norm_error,
            plane.nmse,
            plane.crc32c,
            plane.strong_channels,
        )
        for plane in result.planes
    )
    provenance = _provenance(result.provenance)
    return GetResult(
        error, result.payload_bytes, result.stored_bytes, provenance, result.floor_error, result.token_norm_error, planes
    )


def _lookup_result(result: Any, query: Any) -> LookupResult:
    if len(result.groups) != len(query.chains):
        raise error_of(13, f"reply: {len(result.groups)} groups for {len(query.chains)} chains")
    groups = []
    for match, chain in zip(result.groups, query.chains):
        present: tuple[bool, ...] = ()
        if query.mode == LookupMode.SET:
            if len(match.present) != (len(chain.keys) + 7) // 8:
                raise error_of(13, "reply: the bits of presence do not agree with the keys")
            present = tuple(bool(match.present[i // 8] >> (i % 8) & 1) for i in range(len(chain.keys)))
        blocks = tuple(
            BlockInfo(
                block.present,
                block.stored_bytes,
                _provenance(block.provenance),
                block.floor_error,
                block.token_norm_error,
            )
            for block in match.blocks
        )
        groups.append(
            GroupMatch(match.layer_group, match.matched_blocks, present, match.raw_bytes, match.stored_bytes, blocks)
        )
    return LookupResult(
        result.matched_tokens, tuple(groups), result.lease_token, _from_status(result.lease_status)
    )
