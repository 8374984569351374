#!/usr/bin/env python3
"""Python's own grpcio stub, generated from the .proto, works against a real nqkvd on a real model's KV cache.

build/venv/bin/python tests/e2e/python_stub_test.py build/release/bin/nqkvd
"""

import json
import pathlib
import sys
import tempfile
import unittest

TESTS = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS / "support"), str(TESTS / "proto")]

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf import any_pb2

import key_vectors
import codecs_numpy
import nqkv4_numpy
import nqkv_service

CAPTURE = TESTS / "data" / "smollm2_135m_kv.safetensors"
BLOCK_TOKENS = 64
BLOCKS = 2
SCALE_GROUP = 64


def read_safetensors(path):
    data = path.read_bytes()
    header_bytes = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + header_bytes])
    dtypes = {"F16": np.float16, "I32": np.int32}
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = (8 + header_bytes + offset for offset in entry["data_offsets"])
            tensors[name] = np.frombuffer(data[begin:end], dtypes[entry["dtype"]]).reshape(entry["shape"])
    return tensors


class Capture:
    """The first blocks of the captured KV cache."""

    def __init__(self):
        tensors = read_safetensors(CAPTURE)
        self.layers = sum(name.endswith(".key") for name in tensors)
        self.heads, self.channels = tensors["layers.0.key"].shape[1:]
        self.keys = key_vectors.chain_keys(tensors["tokens"][: BLOCKS * BLOCK_TOKENS].tolist(), BLOCK_TOKENS)
        self.planes = [tensors[f"layers.{layer}.{role}"] for layer in range(self.layers) for role in ("key", "value")]

    def block(self, index):
        """Planes of a block, each [tokens][heads][channels], by layer and then by role."""
        return [plane[index * BLOCK_TOKENS : (index + 1) * BLOCK_TOKENS] for plane in self.planes]

    def payload(self, index):
        return b"".join(plane.tobytes() for plane in self.block(index))

    def blocks(self):
        return [(self.keys[i], self.payload(i), i * BLOCK_TOKENS) for i in range(BLOCKS)]

    def spec(self, messages):
        spec = messages.CacheSpec(model="HuggingFaceTB/SmolLM2-135M-Instruct", revision="Q4_1")
        group = spec.layer_groups.add(kind=messages.LAYER_GROUP_KIND_FULL, block_tokens=BLOCK_TOKENS)
        for layer in range(self.layers):
            for role in (messages.PLANE_ROLE_KEY, messages.PLANE_ROLE_VALUE):
                group.planes.add(
                    layer=layer,
                    role=role,
                    heads=self.heads,
                    channels=self.channels,
                    dtype=messages.DTYPE_FLOAT16,
                )
        return spec


class PythonStubTest(unittest.TestCase):
    nqkvd = None  # Path of the server, from the command line.

    @classmethod
    def setUpClass(cls):
        cls.stubs = nqkv_service.generate_stubs(cls.enterClassContext(tempfile.TemporaryDirectory()))
        cls.messages = cls.stubs.messages
        cls.channel = cls.enterClassContext(nqkv_service.running(cls.nqkvd, "--host_bytes=256MiB"))
        cls.stub = cls.stubs.services.KvCacheStub(cls.channel)
        cls.capture = Capture()

    def open(self, codec, **fields):
        policy = self.messages.CodecPolicy(codec=codec, scale_group=SCALE_GROUP)
        return self.stub.OpenCache(
            self.messages.OpenCacheRequest(
                name=self.id(), spec=self.capture.spec(self.messages), policy=policy, **fields
            )
        )

    def put(self, cache, blocks):
        return nqkv_service.put(self.messages, self.stub, cache, blocks)

    def get(self, cache, keys, **fields):
        return nqkv_service.get(self.messages, self.stub, cache, keys, **fields)

    def lookup(self, cache, keys):
        request = self.messages.LookupRequest(cache_id=cache.cache_id, shard_id=cache.shard_id)
        request.queries.add(include_blocks=True).chains.add().keys.extend(keys)
        return self.stub.Lookup(request).results[0]

    def planes_of(self, payload):
        shape = (len(self.capture.planes), BLOCK_TOKENS, self.capture.heads, self.capture.channels)
        return np.frombuffer(payload, np.float16).reshape(shape)

    def decoded(self, plane, stored):
        """What must come back of a plane that the service stored so."""
        if stored.codec == self.messages.CODEC_RAW:
            return plane
        if stored.codec == self.messages.CODEC_Q8:
            return codecs_numpy.q8_decoded(plane, stored.scale_group)
        if stored.codec == self.messages.CODEC_NQKV4H:
            return codecs_numpy.nqkv4h_decoded(plane, stored.scale_group, stored.strong_channels)
        return nqkv4_numpy.decoded(plane, stored.scale_group)

    def test_open_tells_sizes_and_the_fingerprint_of_keys_md(self):
        cache = self.open(self.messages.CODEC_NQKV4)
        self.assertTrue(cache.created)
        spec = {
            "model": "HuggingFaceTB/SmolLM2-135M-Instruct",
            "revision": "Q4_1",
            "layer_groups": [
                {
                    "kind": "LAYER_GROUP_KIND_FULL",
                    "block_tokens": BLOCK_TOKENS,
                    "planes": [
                        key_vectors.plane(layer, role, self.capture.heads, self.capture.channels)
                        for layer in range(self.capture.layers)
                        for role in ("KEY", "VALUE")
                    ],
                }
            ],
        }
        self.assertEqual(cache.spec_fingerprint, key_vectors.fingerprint(spec))
        self.assertEqual(cache.sizes[0].raw_bytes, len(self.capture.payload(0)))
        self.assertFalse(self.open(self.messages.CODEC_NQKV4).created)

    def test_stores_two_blocks_and_finds_them_by_their_keys(self):
        cache = self.open(self.messages.CODEC_NQKV4)
        absent = b"\x01" * 32
        self.assertEqual(self.lookup(cache, self.capture.keys).matched_tokens, 0)
        for result in self.put(cache, self.capture.blocks()):
            self.assertEqual((result.status.code, result.status.message), (0, ""))
            self.assertEqual(result.outcome, self.messages.PUT_OUTCOME_STORED)
            self.assertEqual(result.raw_bytes, len(self.capture.payload(0)))
        found = self.lookup(cache, [*self.capture.keys, absent])
        self.assertEqual(found.matched_tokens, BLOCKS * BLOCK_TOKENS)
        self.assertEqual([block.present for block in found.groups[0].blocks], [True] * BLOCKS)
        self.assertEqual(self.lookup(cache, [self.capture.keys[0], absent]).matched_tokens, BLOCK_TOKENS)
        again = self.put(cache, self.capture.blocks())
        self.assertEqual([result.outcome for result in again], [self.messages.PUT_OUTCOME_ALREADY_PRESENT] * BLOCKS)

    def test_nqkv4_comes_back_as_the_second_implementation_decodes_it(self):
        cache = self.open(self.messages.CODEC_NQKV4)
        self.put(cache, self.capture.blocks())
        plane_bytes = nqkv4_numpy.encoded_bytes(BLOCK_TOKENS, self.capture.heads, self.capture.channels, SCALE_GROUP)
        for index, (result, payload) in enumerate(self.get(cache, self.capture.keys, include_planes=True)):
            self.assertEqual(result.status.code, 0, result.status.message)
            source = self.capture.block(index)
            planes = self.planes_of(payload)
            self.assertEqual(len(result.planes), len(planes))
            for stored, plane, original in zip(result.planes, planes, source):
                wanted = nqkv4_numpy.decoded(original, SCALE_GROUP)
                np.testing.assert_array_equal(plane.view(np.uint16), wanted.view(np.uint16))
                self.assertEqual(stored.stored_bytes, plane_bytes)
                error = np.square(plane.astype(np.float64) - original).sum()
                nmse = error / np.square(original.astype(np.float64)).sum()
                self.assertLess(nmse, 0.05)
                self.assertAlmostEqual(stored.nmse / nmse, 1, places=3)

    def test_q8_and_nqkv4h_decode_to_what_the_format_says(self):
        for codec in (self.messages.CODEC_Q8, self.messages.CODEC_NQKV4H):
            policy = self.messages.CodecPolicy(codec=codec)
            request = self.messages.OpenCacheRequest(
                name=f"{self.id()}-{codec}", spec=self.capture.spec(self.messages), policy=policy
            )
            cache = self.stub.OpenCache(request)
            self.put(cache, self.capture.blocks())
            for index, (result, payload) in enumerate(self.get(cache, self.capture.keys, include_planes=True)):
                self.assertIn(codec, {stored.codec for stored in result.planes})
                for stored, plane, original in zip(result.planes, self.planes_of(payload), self.capture.block(index)):
                    np.testing.assert_array_equal(plane, self.decoded(original, stored))

    def test_auto_says_what_it_did_with_each_plane(self):
        cache = self.open(self.messages.CODEC_AUTO)
        results = self.put(cache, self.capture.blocks())
        codecs = set()
        for index, (result, payload) in enumerate(self.get(cache, self.capture.keys, include_planes=True)):
            raw_planes = 0
            for stored, plane, original in zip(result.planes, self.planes_of(payload), self.capture.block(index)):
                raw_planes += stored.codec == self.messages.CODEC_RAW
                wanted = self.decoded(original, stored)
                codecs.add(stored.codec)
                np.testing.assert_array_equal(plane.view(np.uint16), wanted.view(np.uint16))
            self.assertEqual(raw_planes, results[index].raw_planes)
            self.assertLessEqual(result.floor_error, np.float32(1.6) * np.float32(0.0125))
        self.assertGreaterEqual(codecs, {self.messages.CODEC_NQKV4, self.messages.CODEC_Q8})

    def test_raw_comes_back_unchanged(self):
        cache = self.open(self.messages.CODEC_RAW)
        self.put(cache, self.capture.blocks())
        for index, (result, payload) in enumerate(self.get(cache, self.capture.keys)):
            self.assertEqual(result.payload_bytes, len(payload))
            self.assertEqual(payload, self.capture.payload(index))

    def test_a_missing_block_is_a_result_beside_the_others(self):
        cache = self.open(self.messages.CODEC_RAW)
        self.put(cache, self.capture.blocks()[:1])
        (present, payload), (missing, nothing) = self.get(cache, self.capture.keys)
        self.assertEqual(present.status.code, grpc.StatusCode.OK.value[0])
        self.assertEqual(payload, self.capture.payload(0))
        self.assertEqual(missing.status.code, grpc.StatusCode.NOT_FOUND.value[0])
        self.assertEqual(nothing, b"")

    def bad_request_of(self, error):
        """The BadRequest inside grpc-status-details-bin."""
        status_bytes = dict(error.trailing_metadata())["grpc-status-details-bin"]
        status = self.stubs.status.Status.FromString(status_bytes)
        self.assertEqual(status.code, error.code().value[0])
        for detail in status.details:
            bad_request = self.stubs.details.BadRequest()
            if any_pb2.Any(type_url=detail.type_url, value=detail.value).Unpack(bad_request):
                return bad_request
        self.fail(f"no BadRequest in {status}")

    def test_a_bad_field_is_named_in_the_error_details(self):
        spec = self.capture.spec(self.messages)
        spec.layer_groups[0].block_tokens = 0
        with self.assertRaises(grpc.RpcError) as caught:
            self.stub.OpenCache(self.messages.OpenCacheRequest(name=self.id(), spec=spec))
        self.assertEqual(caught.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)
        violation = self.bad_request_of(caught.exception).field_violations[0]
        self.assertIn("block_tokens", violation.field)
        self.assertIn("block_tokens", caught.exception.details())

    def test_a_field_that_is_not_built_yet_is_named_in_the_error_details(self):
        cache = self.open(self.messages.CODEC_RAW)
        request = self.messages.LookupRequest(cache_id=cache.cache_id, shard_id=cache.shard_id)
        query = request.queries.add(max_floor_error=0.5)
        query.chains.add().keys.append(self.capture.keys[0])
        with self.assertRaises(grpc.RpcError) as caught:
            self.stub.Lookup(request)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.UNIMPLEMENTED)
        self.assertIn("max_floor_error", self.bad_request_of(caught.exception).field_violations[0].field)

    def test_health_says_serving(self):
        health = health_pb2_grpc.HealthStub(self.channel)
        response = health.Check(health_pb2.HealthCheckRequest())
        self.assertEqual(response.status, health_pb2.HealthCheckResponse.SERVING)

    def test_reflection_describes_the_service_as_the_proto_does(self):
        database = ProtoReflectionDescriptorDatabase(self.channel)
        self.assertIn("nqkv.v1.KvCache", database.get_services())
        self.assertNotIn("nqkv.v1.Admin", database.get_services())
        service = DescriptorPool(database).FindServiceByName("nqkv.v1.KvCache")
        known = self.messages.DESCRIPTOR.services_by_name["KvCache"]
        self.assertEqual([method.name for method in service.methods], [method.name for method in known.methods])


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(f"usage: {sys.argv[0]} NQKVD [UNITTEST ARGUMENTS...]")
    PythonStubTest.nqkvd = str(pathlib.Path(sys.argv.pop(1)).resolve())
    unittest.main()
