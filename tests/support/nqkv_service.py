"""A running nqkvd and its Python stubs, for tests that are written in Python.

The stubs are generated from proto/ with grpcio-tools at run time: what these tests use is what any user of gRPC gets.
"""

import contextlib
import importlib
import pathlib
import subprocess
import sys
import tempfile
import time
import types

import grpc
import grpc_tools.protoc

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PROTOS = ("nqkv/v1/kv_cache.proto", "nqkv/v1/admin.proto", "google/rpc/status.proto", "google/rpc/error_details.proto")
START_SECONDS = 60
STOP_SECONDS = 30
MESSAGE_BYTES = 1 << 20
CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
)


def generate_stubs(folder):
    """Generates the stubs into `folder` and returns their modules: messages, services, details, status."""
    well_known = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    includes = [f"-I{ROOT / 'proto'}", f"-I{well_known}"]
    outputs = [f"--python_out={folder}", f"--grpc_python_out={folder}"]
    if grpc_tools.protoc.main(["protoc", *includes, *outputs, *PROTOS]) != 0:
        raise RuntimeError("protoc failed")
    sys.path.insert(0, str(folder))
    return types.SimpleNamespace(
        messages=importlib.import_module("nqkv.v1.kv_cache_pb2"),
        services=importlib.import_module("nqkv.v1.kv_cache_pb2_grpc"),
        details=importlib.import_module("google.rpc.error_details_pb2"),
        status=importlib.import_module("google.rpc.status_pb2"),
    )


def _wait_until_ready(process, channel):
    ready = grpc.channel_ready_future(channel)
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(grpc.FutureTimeoutError):
            return ready.result(0.2)
    if process.poll() is None:
        raise RuntimeError(f"nqkvd was not ready within {START_SECONDS} s")
    raise RuntimeError(f"nqkvd ended with {process.returncode} before it was ready")


@contextlib.contextmanager
def running(nqkvd, *flags, folder=None):
    """Starts nqkvd on a socket of its own, yields a channel to it, and ends it as an operator would.

    Its sockets are in `folder`, a new one unless given.
    Raises RuntimeError, with the log, when it does not start or does not end with exit code 0 at SIGTERM.
    """
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(folder or stack.enter_context(tempfile.TemporaryDirectory(prefix="nqkv-")))
        log = stack.enter_context(open(folder / "log", "w+b"))
        addresses = ["--listen=127.0.0.1:0", "--http_listen=", f"--socket_dir={folder}"]
        process = subprocess.Popen([nqkvd, *addresses, *flags], stdout=log, stderr=subprocess.STDOUT)
        channel = stack.enter_context(grpc.insecure_channel(f"unix:{folder}/nqkvd.sock", options=CHANNEL_OPTIONS))
        try:
            _wait_until_ready(process, channel)
            yield channel
            process.terminate()
            if process.wait(STOP_SECONDS) != 0:
                raise RuntimeError(f"nqkvd ended with {process.returncode}")
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            log.seek(0)
            raise RuntimeError(f"{error}; log of nqkvd:\n{log.read().decode(errors='replace')}") from error
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def messages_of(messages, cache, blocks):
    """The PutRequests that store `blocks`: (key, payload, position of the first token) each."""
    for number, (key, payload, token_start) in enumerate(blocks):
        for begin in range(0, len(payload), MESSAGE_BYTES):
            part = payload[begin : begin + MESSAGE_BYTES]
            chunk = messages.PutChunk(block=number, bytes=len(part))
            if begin == 0:
                chunk.begin.key = key
                chunk.begin.payload_bytes = len(payload)
                chunk.begin.token_start = token_start
                chunk.begin.first_in_sequence = token_start == 0
            yield messages.PutRequest(cache_id=cache.cache_id, shard_id=cache.shard_id, chunks=[chunk], payload=part)


def put(messages, stub, cache, blocks):
    """Stores blocks and returns their results in the order given."""
    results = {}
    for response in stub.Put(messages_of(messages, cache, blocks)):
        results.update({result.block: result for result in response.results})
    return [results[number] for number in range(len(blocks))]


def get(messages, stub, cache, keys, **fields):
    """The (result, payload) of each key."""
    request = messages.GetRequest(cache_id=cache.cache_id, shard_id=cache.shard_id, **fields)
    request.chain.keys.extend(keys)
    results, payloads = {}, [bytearray() for _ in keys]
    for response in stub.Get(request):
        offset = 0
        for chunk in response.chunks:
            if chunk.HasField("result"):
                results[chunk.index] = chunk.result
            payloads[chunk.index] += response.payload[offset : offset + chunk.bytes]
            offset += chunk.bytes
        if offset != len(response.payload):
            raise AssertionError(f"chunks cover {offset} of {len(response.payload)} bytes")
    return [(results[index], bytes(payloads[index])) for index in range(len(keys))]
