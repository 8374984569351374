#!/usr/bin/env python3
"""What the Python package promises, over one of its implementations, against a real nqkvd.

PYTHONPATH=build/release/python build/venv/bin/python tests/python/contract_test.py native build/release/bin/nqkvd
"""

import asyncio
import json
import pathlib
import sys
import threading
import time
import unittest
import warnings

TESTS = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS / "support"))

import grpc
import ml_dtypes
import numpy as np

import backend
import nqkv4_numpy
from nqkvd_process import NqkvdProcess

BACKEND, NQKVD = sys.argv.pop(1), sys.argv.pop(1)
if BACKEND == "grpcio":
    with warnings.catch_warnings(record=True) as WARNINGS:
        warnings.simplefilter("always")
        nqkv = backend.load(BACKEND)
else:
    WARNINGS = []
    nqkv = backend.load(BACKEND)

LAYERS, TOKENS, HEADS, CHANNELS = 3, 16, 4, 64
SHAPE = (TOKENS, HEADS, CHANNELS)
UNTOUCHED = 0x5555


def spec_of(dtype=None, model="m"):
    return nqkv.uniform_spec(model, LAYERS, HEADS, CHANNELS, dtype or nqkv.Dtype.FLOAT16, TOKENS)


def policy(codec):
    return nqkv.CodecPolicy(codec=codec)


class DlpackOnly:
    """A tensor of another framework: nothing but DLPack."""

    def __init__(self, array):
        self._array = array

    def __dlpack__(self, **options):
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


class ContractTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.nqkvd = cls.enterClassContext(NqkvdProcess(NQKVD, "--host_bytes=256MiB"))
        cls.client = cls.enterClassContext(nqkv.Client(cls.nqkvd.server))
        cls.random = np.random.default_rng(7)

    def open(self, codec=None, spec=None, name_suffix="", **options):
        codec = nqkv.Codec.RAW if codec is None else codec
        cache = self.client.open_cache(self.id() + name_suffix, spec or spec_of(), policy=policy(codec), **options)
        return self.enterContext(cache)

    def planes(self, count=2 * LAYERS, shape=SHAPE):
        return [self.random.standard_normal(shape).astype(np.float16) for _ in range(count)]

    def put(self, cache, key, planes, **options):
        (result,) = cache.put([nqkv.PutBlock(key, planes, **options)])
        result.check()
        return result

    def get_planes(self, cache, key, count=2 * LAYERS, shape=SHAPE, dtype=np.float16, **options):
        planes = [np.full(shape, UNTOUCHED, np.dtype(f"u{np.dtype(dtype).itemsize}")).view(dtype) for _ in range(count)]
        (result,) = cache.get([nqkv.GetTarget(key, planes)], **options)
        result.check()
        return planes, result

    def leases(self):
        """Sessions and leases, as the admin server counts them."""
        with grpc.insecure_channel(self.nqkvd.admin_server) as channel:
            reply = channel.unary_unary("/nqkv.v1.Admin/GetStats")(b"")
        counts, place = {}, 0

        def varint():
            nonlocal place
            value = shift = 0
            while True:
                byte = reply[place]
                place, value, shift = place + 1, value | (byte & 0x7F) << shift, shift + 7
                if byte < 0x80:
                    return value

        while place < len(reply):
            tag = varint()
            if tag & 7 == 0:
                counts[tag >> 3] = varint()
            else:
                skipped = varint() if tag & 7 == 2 else 8
                place += skipped
        return counts.get(24, 0), counts.get(25, 0)

    def wait_for_leases(self, wanted):
        until = time.monotonic() + 30
        while self.leases() != wanted and time.monotonic() < until:
            pass
        self.assertEqual(self.leases(), wanted)

    def assert_same_bits(self, found, wanted):
        self.assertEqual([plane.tobytes() for plane in found], [plane.tobytes() for plane in wanted])

    # Opening and looking up

    def test_open_tells_what_the_shard_holds(self):
        cache = self.open(shard=nqkv.ShardSpec(tensor_rank=1, tensor_size=2))
        self.assertTrue(cache.info.created)
        self.assertEqual(cache.info.sizes[0].heads, nqkv.Range(2, 4))
        self.assertEqual(cache.block_bytes(), 2 * LAYERS * TOKENS * 2 * CHANNELS * 2)
        self.assertEqual(cache.block_bytes(heads=nqkv.Range(0, HEADS)), 2 * LAYERS * TOKENS * HEADS * CHANNELS * 2)
        self.assertEqual(cache.block_bytes(layers=nqkv.Range(0, 1), dtype=nqkv.Dtype.FLOAT32), 2 * TOKENS * 2 * CHANNELS * 4)
        self.assertEqual(len(cache.info.spec_fingerprint), 16)
        self.assertEqual(cache.info.policy.codec, nqkv.Codec.RAW)

    def test_lookup_tells_the_longest_prefix_and_the_set(self):
        cache = self.open()
        keys = nqkv.chain_keys(range(4 * TOKENS), TOKENS)
        self.assertEqual(cache.lookup(keys).matched_tokens, 0)
        for index in (0, 1, 3):
            self.put(cache, keys[index], self.planes(), token_start=index * TOKENS, first_in_sequence=index == 0)
        found = cache.lookup(keys, include_blocks=True)
        self.assertEqual(found.matched_tokens, 2 * TOKENS)
        self.assertEqual(found.groups[0].matched_blocks, 2)
        self.assertEqual(found.groups[0].raw_bytes, 2 * cache.block_bytes())
        self.assertEqual([block.present for block in found.groups[0].blocks], [True, True])
        self.assertEqual(found.groups[0].blocks[0].provenance, nqkv.Provenance.ORIGINAL)
        chosen = cache.lookup(keys, mode=nqkv.LookupMode.SET)
        self.assertEqual(chosen.groups[0].present, (True, True, False, True))
        chains = [nqkv.LookupQuery((nqkv.KeyChain(keys[begin:]),)) for begin in range(4)]
        self.assertEqual([result.matched_tokens // TOKENS for result in cache.lookup_many(chains)], [2, 1, 0, 1])

    # Bytes

    def test_raw_comes_back_unchanged(self):
        cache = self.open()
        blocks = {bytes([number]) * 32: self.planes() for number in range(1, 20)}
        results = cache.put([nqkv.PutBlock(key, planes) for key, planes in blocks.items()])
        self.assertEqual([result.outcome for result in results], [nqkv.PutOutcome.STORED] * len(blocks))
        targets = [nqkv.GetTarget(key, [np.empty_like(plane) for plane in planes]) for key, planes in blocks.items()]
        for target, result in zip(targets, cache.get(targets)):
            self.assertTrue(result.ok)
            self.assertEqual(result.payload_bytes, cache.block_bytes())
            self.assert_same_bits(target.planes, blocks[target.key])
        self.assertEqual(self.put(cache, b"\x01" * 32, self.planes()).outcome, nqkv.PutOutcome.ALREADY_PRESENT)

    def test_nqkv4_comes_back_as_a_second_implementation_decodes_it(self):
        cache = self.open(nqkv.Codec.NQKV4)
        planes = self.planes()
        stored = self.put(cache, b"k", planes)
        self.assertLess(stored.stored_bytes, stored.raw_bytes / 3)
        found, result = self.get_planes(cache, b"k", include_planes=True)
        self.assert_same_bits(found, [nqkv4_numpy.decoded(plane, 64) for plane in planes])
        self.assertEqual(len(result.planes), 2 * LAYERS)
        first = result.planes[0]
        self.assertEqual((first.layer, first.role, first.codec), (0, nqkv.PlaneRole.KEY, nqkv.Codec.NQKV4))
        self.assertEqual(first.stored_bytes, nqkv4_numpy.encoded_bytes(*SHAPE, 64))
        self.assertGreater(first.nmse, 0)
        self.assertAlmostEqual(result.floor_error, max(plane.floor_error for plane in result.planes))

    def test_comes_back_in_the_dtype_that_is_asked_for(self):
        cache = self.open()
        planes = self.planes()
        self.put(cache, b"k", planes)
        targets = [np.empty(SHAPE, np.float32) for _ in planes]
        cache.get([nqkv.GetTarget(b"k", targets)], dtype=nqkv.Dtype.FLOAT32)[0].check()
        self.assert_same_bits(targets, [plane.astype(np.float32) for plane in planes])

    def test_bfloat16_is_what_the_spec_says_whatever_carries_the_bits(self):
        cache = self.open(spec=spec_of(nqkv.Dtype.BFLOAT16))
        exact = [plane.astype(np.float32).view(np.uint32) & 0xFFFF0000 for plane in self.planes()]
        self.put(cache, b"k", [(plane >> 16).astype(np.uint16) for plane in exact])
        targets = [np.empty(SHAPE, np.float32) for _ in exact]
        cache.get([nqkv.GetTarget(b"k", targets)], dtype=nqkv.Dtype.FLOAT32)[0].check()
        self.assert_same_bits(targets, exact)
        typed = [np.zeros(SHAPE, ml_dtypes.bfloat16) for _ in exact]
        cache.get([nqkv.GetTarget(b"k", typed)])[0].check()
        self.assert_same_bits([plane.astype(np.float32) for plane in typed], exact)
        self.put(cache, b"typed", typed)
        self.assert_same_bits(self.get_planes(cache, b"typed", dtype=np.uint16)[0], typed)
        with self.assertRaisesRegex(nqkv.InvalidArgumentError, r"planes\[0\].*type"):
            cache.put([nqkv.PutBlock(b"other", self.planes())])
        with self.assertRaisesRegex(nqkv.InvalidArgumentError, r"planes\[0\].*type"):
            self.open(name_suffix="half").put([nqkv.PutBlock(b"other", typed)])

    def test_ranges_and_shards_are_parts_of_one_block(self):
        planes = self.planes()
        ranks = [self.open(shard=nqkv.ShardSpec(tensor_rank=rank, tensor_size=2)) for rank in range(2)]
        for rank, cache in enumerate(ranks):
            self.assertEqual(cache.lookup([b"k"]).matched_tokens, 0)
            self.put(cache, b"k", [plane[:, 2 * rank : 2 * rank + 2] for plane in planes])
        whole = self.open()
        self.assertEqual(whole.lookup([b"k"]).matched_tokens, TOKENS)
        self.assert_same_bits(self.get_planes(whole, b"k")[0], planes)
        part, _ = self.get_planes(
            whole, b"k", 2, (TOKENS, 1, CHANNELS), layers=nqkv.Range(1, 2), heads=nqkv.Range(3, 4)
        )
        self.assert_same_bits(part, [np.ascontiguousarray(plane[:, 3:4]) for plane in planes[2:4]])

    def test_a_block_in_one_piece_is_the_planes_one_after_the_other(self):
        cache = self.open()
        planes = self.planes()
        joined = b"".join(plane.tobytes() for plane in planes)
        cache.put([nqkv.PutBlock(b"k", data=joined)])[0].check()
        self.assert_same_bits(self.get_planes(cache, b"k")[0], planes)
        target = bytearray(len(joined) + 5)
        cache.get([nqkv.GetTarget(b"k", data=target)])[0].check()
        self.assertEqual(target, joined + bytes(5))

    # Views into an engine's paged cache

    def paged(self, layout, pages=5):
        """A layer's paged cache, all elements UNTOUCHED, and the planes K and V of a page as views into it."""

        def filled(*shape):
            return np.full(shape, UNTOUCHED, np.uint16).view(np.float16)

        if layout == "tokens first":
            memory = filled(pages, 2, TOKENS, HEADS, CHANNELS)
            return memory, lambda page: [memory[page, 0], memory[page, 1]]
        if layout == "heads first":
            memory = filled(2, pages, HEADS, TOKENS, CHANNELS)
            return memory, lambda page: [memory[side, page].transpose(1, 0, 2) for side in range(2)]
        memory = filled(pages, HEADS, TOKENS, 2 * CHANNELS)
        packed = memory.transpose(0, 2, 1, 3)
        return memory, lambda page: [packed[page, ..., :CHANNELS], packed[page, ..., CHANNELS:]]

    def test_paged_views_are_read_and_written_in_place_and_nothing_beside_them(self):
        cache = self.open()
        planes = self.planes()
        for number, layout in enumerate(("tokens first", "heads first", "packed")):
            with self.subTest(layout):
                key = bytes([number + 1])
                layers = [self.paged(layout) for _ in range(LAYERS)]
                views = [view for _, of_page in layers for view in of_page(2)]
                for view, plane in zip(views, planes):
                    view[...] = plane
                self.put(cache, key, views)
                self.assert_same_bits(self.get_planes(cache, key)[0], planes)
                layers = [self.paged(layout) for _ in range(LAYERS)]
                views = [view for _, of_page in layers for view in of_page(3)]
                cache.get([nqkv.GetTarget(key, views)])[0].check()
                for view, plane in zip(views, planes):
                    np.testing.assert_array_equal(view, plane)
                    view.view(np.uint16)[...] = UNTOUCHED
                for memory, _ in layers:
                    self.assertTrue((memory.view(np.uint16) == UNTOUCHED).all(), "memory beside the views was written")

    def test_takes_tensors_that_have_nothing_but_dlpack(self):
        cache = self.open()
        planes = self.planes()
        self.put(cache, b"k", [DlpackOnly(plane) for plane in planes])
        self.assert_same_bits(self.get_planes(cache, b"k")[0], planes)
        self.put(cache, b"one piece", None, data=DlpackOnly(np.stack(planes)))
        self.assert_same_bits(self.get_planes(cache, b"one piece")[0], planes)

    # What makes no sense

    def test_arrays_that_are_not_the_planes_are_refused_by_name(self):
        cache = self.open()
        good = self.planes()
        read_only = np.zeros(SHAPE, np.float16)
        read_only.flags.writeable = False
        cases = [
            (r"planes: 5 given, the range has 6", good[:5]),
            (r"planes\[1\]: has shape \(16, 4, 63\)", [good[0], good[1][..., :63], *good[2:]]),
            (r"planes\[2\]: has 1 dimensions", [*good[:2], good[2].ravel(), *good[3:]]),
            (r"planes\[0\]: its type", [good[0].astype(np.float32), *good[1:]]),
            (r"planes\[0\]: its channels are not contiguous", [np.zeros((TOKENS, HEADS, 2 * CHANNELS), np.float16)[..., ::2], *good[1:]]),
            (r"planes\[5\]: repeats one row", [*good[:5], np.broadcast_to(good[5][:1], SHAPE)]),
            (r"planes\[0\]: not an array", ["text", *good[1:]]),
        ]
        for message, planes in cases:
            with self.subTest(message), self.assertRaisesRegex(nqkv.InvalidArgumentError, message):
                cache.put([nqkv.PutBlock(b"k", planes)])
        with self.assertRaisesRegex(nqkv.InvalidArgumentError, r"planes\[0\]: not an array that can be written"):
            cache.get([nqkv.GetTarget(b"k", [read_only, *good[1:]])])
        with self.assertRaisesRegex(nqkv.InvalidArgumentError, "neither planes nor data"):
            cache.put([nqkv.PutBlock(b"k")])
        with self.assertRaisesRegex(nqkv.InvalidArgumentError, "both planes and data"):
            cache.put([nqkv.PutBlock(b"k", good, b"x")])
        with self.assertRaisesRegex(nqkv.InvalidArgumentError, "not contiguous"):
            cache.put([nqkv.PutBlock(b"k", data=np.zeros((4, 4))[:, ::2])])
        with self.assertRaisesRegex(nqkv.InvalidArgumentError, "key: must be bytes"):
            cache.put([nqkv.PutBlock("k", good)])
        with self.assertRaisesRegex(nqkv.InvalidArgumentError, "no group 7"):
            cache.put([nqkv.PutBlock(b"k", good, layer_group=7)])
        self.assertEqual(cache.lookup([b"k"]).matched_tokens, 0)

    def test_errors_of_one_block_stand_in_its_result(self):
        cache = self.open()
        planes = self.planes()
        results = cache.put([nqkv.PutBlock(b"x" * 65, planes), nqkv.PutBlock(b"good", planes), nqkv.PutBlock(b"short", data=b"1")])
        self.assertEqual([type(result.error) for result in results], [nqkv.InvalidArgumentError, type(None), nqkv.InvalidArgumentError])
        with self.assertRaises(nqkv.InvalidArgumentError):
            results[0].check()
        buffer = bytearray(cache.block_bytes())
        missing, small, good = cache.get(
            [nqkv.GetTarget(b"absent", data=buffer), nqkv.GetTarget(b"good", data=bytearray(8)), nqkv.GetTarget(b"good2", data=buffer)]
        )
        self.assertIsInstance(missing.error, nqkv.NotFoundError)
        self.assertIsInstance(small.error, nqkv.InvalidArgumentError)
        self.assertRegex(small.error.message, "has 8 bytes")
        self.assertIsInstance(good.error, nqkv.NotFoundError)

    def test_another_spec_of_the_same_name_is_refused_with_the_fields(self):
        self.open()
        with self.assertRaisesRegex(nqkv.MismatchError, "model"):
            self.client.open_cache(self.id(), spec_of(model="other"))
        with self.assertRaisesRegex(nqkv.InvalidArgumentError, "block_tokens"):
            self.client.open_cache("x", nqkv.uniform_spec("m", 1, 1, 64, block_tokens=0))
        for server in ("", "host", "host:0", "host:99999", "unix:relative", "a b:1", "unix:/" + "x" * 200):
            with self.subTest(server), self.assertRaisesRegex(nqkv.InvalidArgumentError, "server"):
                nqkv.Client(server)
        with self.assertRaisesRegex(nqkv.InvalidArgumentError, "timeout"):
            nqkv.Client("host:1", timeout=0)
        with self.assertRaisesRegex(nqkv.InvalidArgumentError, "jitter"):
            nqkv.Client("host:1", retry=nqkv.RetryPolicy(jitter=2))

    def test_a_server_that_is_not_there_is_unavailable_and_errors_are_also_pythons_own(self):
        retry = nqkv.RetryPolicy(attempts_max=1)
        with nqkv.Client("unix:/nonexistent/nqkvd.sock", retry=retry) as client:
            with self.assertRaises(ConnectionError) as caught:
                client.open_cache("x", spec_of())
            self.assertIsInstance(caught.exception, nqkv.UnavailableError)
            self.assertIsInstance(caught.exception, nqkv.Error)
            self.assertEqual(caught.exception.code, 14)

    def test_what_was_closed_says_so(self):
        with nqkv.Client(self.nqkvd.server) as client:
            with client.open_cache(self.id(), spec_of()) as cache:
                cache.lookup([b"k"])
            with self.assertRaises(nqkv.ClosedError):
                cache.lookup([b"k"])
        with self.assertRaises(nqkv.ClosedError):
            client.open_cache("x", spec_of())

    def test_delete_and_clear_tell_how_much_they_removed(self):
        cache = self.open()
        for number in range(1, 5):
            self.put(cache, bytes([number]), self.planes())
        self.assertEqual(cache.delete([b"\x01", b"absent"]).blocks, 1)
        removed = cache.clear()
        self.assertEqual(removed.blocks, 3)
        self.assertGreater(removed.bytes, 0)
        self.assertEqual(cache.lookup([b"\x02"]).matched_tokens, 0)

    # Threads and asyncio

    def test_other_threads_run_while_a_put_waits_for_the_server(self):
        cache = self.open(spec=nqkv.uniform_spec("big", 4, 8, 128, block_tokens=256))
        shape, count = (256, 8, 128), 8
        blocks = [nqkv.PutBlock(bytes([number]), self.planes(count, shape)) for number in range(1, 9)]
        begun = threading.Event()
        results = []

        def put():
            begun.set()
            results.extend(cache.put(blocks))

        self.addCleanup(sys.setswitchinterval, sys.getswitchinterval())
        sys.setswitchinterval(1000)  # A thread stops only where it lets go of the interpreter.
        self.nqkvd.pause()
        try:
            putting = threading.Thread(target=put)
            putting.start()
            begun.wait()  # Comes back only when the put has let go.
            counter = 0
            for _ in range(100_000):
                counter += 1
            self.assertTrue(putting.is_alive(), "the put ended with no server")
        finally:
            self.nqkvd.go_on()
        putting.join()
        self.assertEqual([result.error for result in results], [None] * len(blocks))
        self.assertEqual(counter, 100_000)

    def test_asyncio_runs_calls_side_by_side(self):
        planes = self.planes()

        async def run():
            async with nqkv.AsyncClient(self.nqkvd.server) as client:
                cache = await client.open_cache(self.id(), spec_of(), policy=policy(nqkv.Codec.RAW))
                async with cache:
                    keys = nqkv.chain_keys(range(8 * TOKENS), TOKENS)
                    await asyncio.gather(*(cache.put([nqkv.PutBlock(key, planes)]) for key in keys))
                    self.assertEqual((await cache.lookup(keys)).matched_tokens, 8 * TOKENS)
                    targets = [nqkv.GetTarget(key, [np.empty_like(plane) for plane in planes]) for key in keys]
                    for (result,) in await asyncio.gather(*(cache.get([target]) for target in targets)):
                        result.check()
                    for target in targets:
                        self.assert_same_bits(target.planes, planes)
                    self.assertEqual((await cache.delete(keys[:1])).blocks, 1)
                    self.assertEqual((await cache.clear()).blocks, 7)

        asyncio.run(run())

    def test_a_cancelled_call_ends_when_the_arrays_are_free(self):
        async def run():
            async with nqkv.AsyncClient(self.nqkvd.server) as client:
                cache = await client.open_cache(self.id(), spec_of(), policy=policy(nqkv.Codec.RAW))
                await cache.put([nqkv.PutBlock(b"k", self.planes())])
                target = [np.empty(SHAPE, np.float16) for _ in range(2 * LAYERS)]
                self.nqkvd.pause()
                try:
                    getting = asyncio.create_task(cache.get([nqkv.GetTarget(b"k", target)]))
                    await asyncio.sleep(0)
                    getting.cancel()
                    await asyncio.sleep(0)
                    self.assertFalse(getting.done(), "cancelled while the call may still write")
                finally:
                    self.nqkvd.go_on()
                with self.assertRaises(asyncio.CancelledError):
                    await getting

        asyncio.run(run())

    # Restarts

    def test_a_cache_that_the_server_forgot_is_opened_again(self):
        with NqkvdProcess(NQKVD, "--host_bytes=64MiB") as other:
            with nqkv.Client(other.server) as client, client.open_cache("c", spec_of()) as cache:
                planes = self.planes()
                self.put(cache, b"k", planes)
                other.kill()
                other.start()
                self.assertEqual(cache.lookup([b"k"]).matched_tokens, 0)
                self.put(cache, b"k", planes)
                self.assertEqual(cache.lookup([b"k"]).matched_tokens, TOKENS)

    # Leases and sessions

    def test_a_lease_keeps_what_was_looked_up_until_it_is_released(self):
        cache = self.open()
        self.assertEqual((cache.info.lease_seconds_default, cache.info.lease_seconds_max), (30.0, 300.0))
        planes = self.planes()
        self.put(cache, b"leased", planes)
        with cache.lease([b"leased", b"absent"], request_id="request", seconds=100) as lease:
            self.assertEqual(lease.result.matched_tokens, TOKENS)
            self.assertEqual(self.leases(), (0, 1))
            self.assert_same_bits(self.get_planes(cache, b"leased", lease=lease)[0], planes)
            again = cache.lookup([b"leased"], lease=nqkv.LeaseOptions(request_id="request"))
            self.assertEqual(self.leases(), (0, 1))
            self.get_planes(cache, b"leased", lease=lease.token)  # Reads under the one that replaced it.
        self.assertEqual(self.leases(), (0, 1))  # Which was not its to release.
        self.assertEqual(cache.release([again.lease_token, b"none"]), 1)
        self.assertEqual(self.leases(), (0, 0))
        target = nqkv.GetTarget(b"leased", [np.zeros(SHAPE, np.float16) for _ in range(2 * LAYERS)])
        (result,) = cache.get([target], lease=again.lease_token)
        self.assertIsInstance(result.error, nqkv.EndedError)
        cache.touch([b"leased", b"absent"])
        with cache.lease([b"absent"]) as nothing:
            self.assertEqual(nothing.token, b"")
        with self.assertRaises(nqkv.InvalidArgumentError):
            cache.lease([b"leased"], seconds=301)

    def test_a_lookup_waits_until_all_is_there(self):
        cache = self.open()
        self.put(cache, b"0", self.planes())
        self.assertEqual(cache.lookup([b"0", b"1"], wait_until_present=0.05).matched_tokens, TOKENS)
        found = []

        def wait():
            with cache.lease([b"0", b"1"], wait_until_present=20) as lease:
                found.append(lease.result.matched_tokens)

        waiting = threading.Thread(target=wait)
        waiting.start()
        self.put(cache, b"1", self.planes())
        waiting.join(30)
        self.assertEqual(found, [2 * TOKENS])
        with self.assertRaises(nqkv.InvalidArgumentError):
            cache.lookup([b"0"], wait_until_present=61)
        self.assertEqual(cache.info.lookup_wait_seconds_max, 60.0)

    def test_leases_end_with_their_session(self):
        cache = self.open()
        self.put(cache, b"leased", self.planes())
        with self.client.open_session(owner="worker") as session:
            lease = cache.lease([b"leased"], session=session)
            self.get_planes(cache, b"leased", lease=lease)
            self.assertEqual(self.leases(), (1, 1))
            session.check()
        self.wait_for_leases((0, 0))
        lease.release()
        with self.assertRaises(nqkv.ClosedError):
            session.check()
        with self.assertRaises(nqkv.EndedError):
            cache.lease([b"leased"], session=session)
        result = cache.lookup([b"leased"], lease=nqkv.LeaseOptions(session.id))
        self.assertEqual(result.matched_tokens, TOKENS)
        self.assertIsInstance(result.lease_error, nqkv.EndedError)

    def test_a_session_outlives_its_grace_and_ends_with_the_server_that_knew_it(self):
        with NqkvdProcess(NQKVD, "--host_bytes=16MiB", "--heartbeat_seconds=0.1", "--session_grace_seconds=0.5") as nqkvd:
            with nqkv.Client(nqkvd.server) as client, client.open_session() as session:
                until = time.monotonic() + 1.5
                while time.monotonic() < until:
                    session.check()
                nqkvd.kill()
                until = time.monotonic() + 30
                with self.assertRaises(nqkv.Error):
                    while time.monotonic() < until:
                        session.check()
                with self.assertRaises(nqkv.Error):
                    client.open_session(timeout=0.3)

    def test_asyncio_has_leases_and_sessions(self):
        async def run():
            async with nqkv.AsyncClient(self.nqkvd.server) as client:
                async with await client.open_cache(self.id(), spec_of(), policy=policy(nqkv.Codec.RAW)) as cache:
                    for result in await cache.put([nqkv.PutBlock(b"leased", self.planes())]):
                        result.check()
                    async with await client.open_session() as session, await cache.lease(
                        [b"leased"], session=session
                    ) as lease:
                        target = nqkv.GetTarget(b"leased", [np.zeros(SHAPE, np.float16) for _ in range(2 * LAYERS)])
                        for result in await cache.get([target], lease=lease):
                            result.check()
                        await cache.touch([b"leased"])
                        session.check()
                    return await cache.release([lease.token])

        self.assertEqual(asyncio.run(run()), 0)
        self.wait_for_leases((0, 0))

    # Keys

    def test_keys_equal_the_vectors_of_keys_md(self):
        vectors = json.loads((TESTS / "proto" / "key_vectors.json").read_text())
        self.assertGreater(len(vectors["keys"]), 5)
        for vector in vectors["keys"]:
            with self.subTest(vector["name"]):
                items = [
                    nqkv.MultimodalItem(bytes.fromhex(item["id"]), item["token_begin"], item["token_end"])
                    for item in vector.get("items", [])
                ]
                keys = nqkv.chain_keys(
                    vector["tokens"],
                    vector["block_tokens"],
                    adapter_digest=bytes.fromhex(vector.get("adapter_digest", "")),
                    salt=bytes.fromhex(vector.get("salt", "")),
                    items=items,
                )
                self.assertEqual([key.hex() for key in keys], vector["keys"])

    def test_tokens_that_are_none_are_refused(self):
        for tokens in ([-1], [1 << 32], [1.5], [[1]]):
            with self.subTest(tokens), self.assertRaisesRegex(nqkv.InvalidArgumentError, "tokens"):
                nqkv.chain_keys(tokens, 1)
        with self.assertRaisesRegex(nqkv.InvalidArgumentError, "block_tokens"):
            nqkv.chain_keys([1], 0)

    def test_the_fallback_says_so_once(self):
        self.assertEqual(len(WARNINGS), 1 if BACKEND == "grpcio" else 0)
        for warning in WARNINGS:
            self.assertRegex(str(warning.message), "grpcio, which is slower")


if __name__ == "__main__":
    unittest.main()
