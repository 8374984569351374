#!/usr/bin/env python3
"""nqkvd --warm_restart, killed at any moment while workers store. Usage: warm_restart_test.py NQKVD [ROUNDS]

No block is ever served that was not committed whole, bytes equal what was put, and what a worker was told is stored is found
again. build/venv/bin/python tests/e2e/warm_restart_test.py build/release/bin/nqkvd
"""

import pathlib
import random
import subprocess
import sys
import tempfile
import threading
import unittest

TESTS = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS / "support")]

import grpc

import nqkv_service

NQKVD = None
ROUNDS = 10
WRITERS = 3
BLOCK_TOKENS = 16
LAYERS, HEADS, CHANNELS = 2, 2, 64
PAYLOAD_BYTES = LAYERS * 2 * BLOCK_TOKENS * HEADS * CHANNELS * 2
LOST = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


def payload_of(number):
    """Finite fp16 values that follow from the number."""
    return bytes(byte & 0x3B for byte in random.Random(number).randbytes(PAYLOAD_BYTES))


class Service:
    """One process on the arena of the test."""

    def __init__(self, folder, stubs, *flags):
        self.log_path = pathlib.Path(folder) / "log"
        self.log = open(self.log_path, "wb")
        arguments = [NQKVD, "--listen=127.0.0.1:0", "--http_listen=", f"--socket_dir={folder}", "--host_bytes=64MiB",
                     f"--arena_path={folder}/arena", "--warm_restart", *flags]
        self.process = subprocess.Popen(arguments, stdout=self.log, stderr=subprocess.STDOUT)
        self.channel = grpc.insecure_channel(f"unix:{folder}/nqkvd.sock", options=nqkv_service.CHANNEL_OPTIONS)
        nqkv_service._wait_until_ready(self.process, self.channel)
        self.messages = stubs.messages
        self.stub = stubs.services.KvCacheStub(self.channel)

    def open(self, model="model"):
        messages = self.messages
        spec = messages.CacheSpec(model=model, revision="1")
        group = spec.layer_groups.add(kind=messages.LAYER_GROUP_KIND_FULL, block_tokens=BLOCK_TOKENS)
        for layer in range(LAYERS):
            for role in (messages.PLANE_ROLE_KEY, messages.PLANE_ROLE_VALUE):
                group.planes.add(layer=layer, role=role, heads=HEADS, channels=CHANNELS, dtype=messages.DTYPE_FLOAT16)
        request = messages.OpenCacheRequest(name="cache", spec=spec)
        request.policy.codec = messages.CODEC_RAW
        return self.stub.OpenCache(request)

    def get(self, cache, numbers):
        return nqkv_service.get(self.messages, self.stub, cache, [key_of(number) for number in numbers])

    def put(self, cache, number):
        results = nqkv_service.put(self.messages, self.stub, cache, [(key_of(number), payload_of(number), 0)])
        return results[0].status.code == 0

    def end(self, kill=False):
        self.process.kill() if kill else self.process.terminate()
        self.process.wait(60)
        self.channel.close()
        self.log.close()
        return self.log_path.read_text(errors="replace")


def key_of(number):
    return b"block-%d" % number


class WarmRestartTest(unittest.TestCase):
    def setUp(self):
        self.folder = self.enterContext(tempfile.TemporaryDirectory(prefix="nqkv-"))
        self.service = None
        self.addCleanup(lambda: self.service is not None and self.service.process.poll() is None and self.service.end(kill=True))

    @classmethod
    def setUpClass(cls):
        folder = cls.enterClassContext(tempfile.TemporaryDirectory(prefix="nqkv-stubs-"))
        cls.stubs = nqkv_service.generate_stubs(folder)

    def start(self, *flags):
        self.service = Service(self.folder, self.stubs, *flags)
        return self.service

    def check(self, cache, stored, begun):
        """What was told to be stored is there, what was begun may be; nothing else than what was put ever is."""
        numbers = sorted(begun)
        for first in range(0, len(numbers), 256):
            part = numbers[first : first + 256]
            for number, (result, payload) in zip(part, self.service.get(cache, part)):
                if result.status.code == 0:
                    self.assertEqual(payload, payload_of(number))
                else:
                    self.assertEqual(result.status.code, grpc.StatusCode.NOT_FOUND.value[0], result.status.message)
                    self.assertNotIn(number, stored)

    def test_what_was_stored_outlives_sigkill_at_any_moment(self):
        dice = random.Random(5)
        stored, begun = set(), set()
        numbers = iter(range(10**9))
        lock = threading.Lock()

        def write(service, cache):
            while True:
                with lock:
                    number = next(numbers)
                    begun.add(number)
                try:
                    if service.put(cache, number):
                        with lock:
                            stored.add(number)
                except grpc.RpcError as error:
                    if error.code() not in LOST:
                        raise
                    return

        for _ in range(ROUNDS):
            service = self.start()
            cache = service.open()
            self.check(cache, stored, begun)
            if len(begun) > 2000:  # Before the memory is full, as then blocks are evicted.
                service.stub.Clear(service.messages.ClearRequest(cache_id=cache.cache_id))
                stored.clear()
                begun.clear()
            goal = len(stored) + dice.randrange(10, 60)
            writers = [threading.Thread(target=write, args=(service, cache)) for _ in range(WRITERS)]
            for writer in writers:
                writer.start()
            while len(stored) < goal and service.process.poll() is None:
                writers[0].join(0.001)
            self.assertIsNone(service.process.poll())
            service.end(kill=True)
            for writer in writers:
                writer.join()
        self.start()
        self.check(self.service.open(), stored, begun)
        self.assertIn("parts of blocks again", self.service.end())

    def test_an_orderly_end_keeps_blocks_too(self):
        cache = self.start().open()
        self.assertTrue(self.service.put(cache, 1))
        self.service.end()
        self.check(self.start().open(), {1}, {1})

    def test_another_spec_starts_clean_and_says_so(self):
        cache = self.start().open()
        self.assertTrue(self.service.put(cache, 1))
        self.service.end()
        cache = self.start().open(model="another")
        self.check(cache, set(), {1})
        self.assertTrue(self.service.put(cache, 1))
        self.check(cache, {1}, {1})
        self.assertIn("another spec", self.service.end())

    def test_another_size_starts_clean_and_says_so(self):
        cache = self.start().open()
        self.assertTrue(self.service.put(cache, 1))
        self.service.end()
        self.check(self.start("--host_bytes=32MiB").open(), set(), {1})
        self.assertIn("starting with no blocks", self.service.end())

    def test_damage_is_found_on_the_first_read_and_is_a_miss(self):
        cache = self.start().open()
        for number in range(20):
            self.assertTrue(self.service.put(cache, number))
        self.service.end()
        arena = pathlib.Path(self.folder) / "arena"
        content = bytearray(arena.read_bytes())
        for number in range(0, 20, 2):
            place = content.find(payload_of(number)[:64])
            self.assertGreater(place, 0)
            content[place + 7] ^= 1
        arena.write_bytes(content)
        cache = self.start().open()
        for number in range(20):
            result, payload = self.service.get(cache, [number])[0]
            if number % 2 == 1:
                self.assertEqual(payload, payload_of(number))
            else:
                self.assertNotEqual(result.status.code, 0)
                again, _ = self.service.get(cache, [number])[0]
                self.assertEqual(again.status.code, grpc.StatusCode.NOT_FOUND.value[0])


if __name__ == "__main__":
    NQKVD = sys.argv.pop(1)
    if len(sys.argv) > 1 and sys.argv[1].isdigit():
        ROUNDS = int(sys.argv.pop(1))
    unittest.main()
