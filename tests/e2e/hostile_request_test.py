#!/usr/bin/env python3
"""Requests that are no messages, or far too large: each is refused in words, and none takes much memory.

Usage: hostile_request_test.py NQKVD [--memory] [UNITTEST ARGUMENTS...]; --memory adds what a sanitizer's own memory hides.
"""

import concurrent.futures
import pathlib
import re
import sys
import tempfile
import unittest

import grpc

import process_test

MIB = 1 << 20
CALL_SECONDS = 60
UNARY = ("OpenCache", "Lookup", "Delete", "Clear")
REQUEST_OF = {rpc: f"{rpc}Request" for rpc in (*UNARY, "Get", "Put")}


def varint(value):
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number, content):
    """A length-delimited field."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def call(channel, rpc, message):
    """Sends bytes as the request of `rpc`, and returns the status that it ends with."""
    path = f"/nqkv.v1.KvCache/{rpc}"
    try:
        if rpc == "Put":
            list(channel.stream_stream(path)(iter([message]), timeout=CALL_SECONDS))
        elif rpc == "Get":
            list(channel.unary_stream(path)(message, timeout=CALL_SECONDS))
        else:
            channel.unary_unary(path)(message, timeout=CALL_SECONDS)
    except grpc.RpcError as error:
        return error.code(), error.details()
    return grpc.StatusCode.OK, ""


def resident_bytes_peak(process):
    status = pathlib.Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) << 10


class ServiceTest(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory(prefix="nqkv-")
        self.addCleanup(temporary.cleanup)
        self.folder = pathlib.Path(temporary.name)

    def start(self, *flags):
        context = process_test.running(self.folder, *flags)
        service = context.__enter__()
        self.addCleanup(context.__exit__, None, None, None)
        return service

    def connect(self, service):
        options = (("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1))
        channel = grpc.insecure_channel(service.address("grpc"), options=options)
        self.addCleanup(channel.close)
        return channel


class HostileRequestTest(ServiceTest):
    def assert_malformed(self, channel, rpc, message, words):
        code, details = call(channel, rpc, message)
        self.assertEqual(code, grpc.StatusCode.INVALID_ARGUMENT, f"{rpc} {message[:40]}: {details}")
        self.assertRegex(details, words, f"{rpc} {message[:40]}")

    def test_what_is_no_message_is_refused_with_the_message_that_it_is_not(self):
        channel = self.connect(self.start())
        for rpc, name in REQUEST_OF.items():
            with self.subTest(rpc=rpc):
                refused = f"malformed message: not an? {name}" if rpc != "Put" else "malformed message"
                for garbage in (b"\xff" * 64, b"\x00\x01\x02", b"\x0b\x0c", b"\x08", b"\x0f\x01", b"\x80" * 11):
                    self.assert_malformed(channel, rpc, garbage, refused)
                # `cache_id`, or the name of the cache, with another wire type; and longer than the message.
                self.assert_malformed(channel, rpc, b"\x0d\x01\x02\x03\x04", f"{refused}.* wire type 5")
                cut_short = b"\x0a\x05ab" if rpc == "OpenCache" else b"\x08\x80"
                self.assert_malformed(channel, rpc, cut_short, "it ends inside")

    def test_a_string_that_is_not_utf8_is_refused(self):
        channel = self.connect(self.start())
        bad = field(1, b"\xff\xfe")
        self.assert_malformed(channel, "OpenCache", bad, "not an OpenCacheRequest: a string of it is not UTF-8")
        self.assert_malformed(channel, "Lookup", field(3, field(4, b"\xff")), "not UTF-8")
        self.assert_malformed(channel, "Get", field(10, b"\xff"), "not UTF-8")
        self.assert_malformed(channel, "Put", field(3, b"\xff"), "not UTF-8")

    def test_a_field_of_a_later_version_is_refused_by_number(self):
        channel = self.connect(self.start())
        for rpc in REQUEST_OF:
            code, details = call(channel, rpc, b"\x08\x01" * (rpc != "OpenCache") + field(99, b"x"))
            self.assertEqual((code, details), (grpc.StatusCode.UNIMPLEMENTED,
                                               f"{REQUEST_OF[rpc]}: field 99 is not known to this server"))
        code, details = call(channel, "Put", field(4, field(2, field(99, b"x"))))
        self.assertEqual((code, details), (grpc.StatusCode.UNIMPLEMENTED,
                                           "chunks.begin: field 99 is not known to this server"))

    def test_a_request_over_the_limit_is_refused(self):
        channel = self.connect(self.start("--max_request_bytes=1MiB"))
        for rpc in (*UNARY, "Get"):
            code, details = call(channel, rpc, bytes(MIB + 1))
            self.assertEqual(code, grpc.StatusCode.RESOURCE_EXHAUSTED, rpc)
            self.assertRegex(details, "1048577 bytes, at most 1048576 .--max_request_bytes.")


class MemoryTest(ServiceTest):
    """Not run under a sanitizer, whose memory is none of the service's."""

    def test_messages_of_millions_of_items_take_no_more_than_the_formula_says(self):
        in_flight = 64 * MIB
        service = self.start(f"--in_flight_bytes={in_flight}", "--max_message_bytes=32MiB")
        # The memory formula: the blocks, what may be in flight twice over, and a base.
        bound = 32 * MIB + 2 * in_flight + 256 * MIB
        connections = [self.connect(service) for _ in range(4)]
        for size in (30 * MIB, 8 * MIB - 64):
            many = size // 2
            empty = {number: bytes([number << 3 | 2, 0]) * (many - 16) for number in (1, 3, 4, 6)}
            attacks = [
                ("Lookup", empty[3]),
                ("Lookup", field(3, empty[1])),
                ("Lookup", field(3, field(1, empty[4]))),
                ("Lookup", field(3, empty[4])),
                ("OpenCache", field(2, empty[6])),
                ("OpenCache", field(2, field(6, empty[4]))),
                ("Delete", empty[3]),
                ("Clear", bytes([0x08, 0x01]) * many),
                ("Clear", bytes([0x78, 0x01]) * many),
                ("Get", field(3, empty[4])),
                ("Get", field(12, field(4, bytes(size - 64)))),
                ("Put", empty[4]),
            ]
            for rpc, message in attacks:
                with concurrent.futures.ThreadPoolExecutor(2 * len(connections)) as callers:
                    ends = callers.map(lambda channel: call(channel, rpc, message), connections * 2)
                codes = {code.name for code, _ in ends}
                self.assertTrue(codes <= {"INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED", "NOT_FOUND"}, codes)
                self.assertLess(resident_bytes_peak(service.process), bound, rpc)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    process_test.NQKVD = str(pathlib.Path(sys.argv.pop(1)).resolve())
    if "--memory" in sys.argv:
        sys.argv.remove("--memory")
    else:
        del MemoryTest
    unittest.main()
