#!/usr/bin/env python3
"""A worker that is killed leaves no lease behind. Usage: lease_process_test.py NQKVD"""

import pathlib
import queue
import subprocess
import sys
import tempfile
import threading
import time
import unittest

TESTS = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS / "support"))

import grpc

import nqkv_service

NQKVD = None
HEARTBEAT_SECONDS = 0.2
GRACE_SECONDS = 2
LEASES = 100
WAIT_SECONDS = 60
BLOCK_TOKENS = 16


def spec(messages):
    spec = messages.CacheSpec(model="model")
    group = spec.layer_groups.add(kind=messages.LAYER_GROUP_KIND_FULL, block_tokens=BLOCK_TOKENS)
    for role in (messages.PLANE_ROLE_KEY, messages.PLANE_ROLE_VALUE):
        group.planes.add(layer=0, role=role, heads=1, channels=64, dtype=messages.DTYPE_FLOAT16)
    return spec


class Worker:
    """Keeps a session alive and holds leases in it, until it is killed."""

    def __init__(self, folder):
        stubs = nqkv_service.generate_stubs(tempfile.mkdtemp(dir=folder))
        self.messages = stubs.messages
        self.stub = stubs.services.KvCacheStub(grpc.insecure_channel(f"unix:{folder}/nqkvd.sock"))

    def requests(self):
        yield self.messages.SessionRequest(owner="worker")
        while True:
            time.sleep(HEARTBEAT_SECONDS)
            yield self.messages.SessionRequest()

    def run(self):
        messages = self.messages
        answers = self.stub.Session(self.requests())
        session = next(answers).session_id
        threading.Thread(target=lambda: list(answers), daemon=True).start()
        cache = self.stub.OpenCache(messages.OpenCacheRequest(name="cache", spec=spec(messages)))
        block = bytes(cache.sizes[0].raw_bytes)
        keys = [b"key %d" % i for i in range(4)]
        nqkv_service.put(messages, self.stub, cache, [(key, block, 0) for key in keys])
        for number in range(LEASES):
            request = messages.LookupRequest(cache_id=cache.cache_id)
            query = request.queries.add(request_id=f"request {number}")
            query.lease.session_id = session
            query.lease.seconds = 300
            query.chains.add().keys.extend(keys)
            assert self.stub.Lookup(request).results[0].lease_token
        print("ready", flush=True)
        threading.Event().wait()


class LeaseProcessTest(unittest.TestCase):
    def setUp(self):
        self.folder = self.enterContext(tempfile.TemporaryDirectory(prefix="nqkv-"))
        flags = [
            "--host_bytes=64MiB",
            f"--heartbeat_seconds={HEARTBEAT_SECONDS}",
            f"--session_grace_seconds={GRACE_SECONDS}",
        ]
        self.enterContext(nqkv_service.running(NQKVD, *flags, folder=self.folder))
        stubs = nqkv_service.generate_stubs(self.enterContext(tempfile.TemporaryDirectory()))
        import nqkv.v1.admin_pb2 as admin
        import nqkv.v1.admin_pb2_grpc as admin_grpc

        self.messages, self.admin = stubs.messages, admin
        channel = self.enterContext(grpc.insecure_channel(f"unix:{self.folder}/nqkvd-admin.sock"))
        self.stub = admin_grpc.AdminStub(channel)

    def stats(self):
        return self.stub.GetStats(self.admin.GetStatsRequest())

    def leases(self):
        leases, after = [], 0
        while True:
            page = self.stub.ListLeases(self.admin.ListLeasesRequest(after=after, count_max=30))
            leases += page.leases
            after = page.next
            if after == 0:
                return leases

    def test_the_leases_of_a_killed_worker_end_with_its_session(self):
        command = [sys.executable, __file__, "--worker", self.folder]
        worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            lines = queue.Queue()
            threading.Thread(target=lambda: lines.put(worker.stdout.readline()), daemon=True).start()
            self.assertEqual(lines.get(timeout=WAIT_SECONDS), "ready\n")
            stats = self.stats()
            self.assertEqual((stats.sessions, stats.leases, stats.pinned_parts), (1, LEASES, 4))
            self.assertEqual(len(self.leases()), LEASES)
            session = self.stub.ListSessions(self.admin.ListSessionsRequest()).sessions[0]
            self.assertEqual((session.owner, session.leases), ("worker", LEASES))
            # Heartbeats keep it: it has lived longer than its grace.
            deadline = time.monotonic() + WAIT_SECONDS
            while session.age_seconds < 1.5 * GRACE_SECONDS and time.monotonic() < deadline:
                session = self.stub.ListSessions(self.admin.ListSessionsRequest()).sessions[0]
            self.assertEqual(self.stats().leases, LEASES)
        finally:
            worker.kill()
            worker.wait()
            worker.stdout.close()
        deadline = time.monotonic() + WAIT_SECONDS
        while self.stats().leases > 0 and time.monotonic() < deadline:
            pass
        stats = self.stats()
        self.assertEqual((stats.sessions, stats.leases, stats.leased_bytes, stats.pinned_parts), (0, 0, 0, 0))
        self.assertEqual(stats.blocks, 4)
        self.assertEqual(self.leases(), [])


if __name__ == "__main__":
    if sys.argv[1] == "--worker":
        Worker(sys.argv[2]).run()
    NQKVD = sys.argv.pop(1)
    unittest.main()
