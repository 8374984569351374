#!/usr/bin/env python3
"""deploy/quickstart.sh from its third step on, with programs that are built. Usage: quickstart_test.py NQKVD NQKV

It runs in a tree of its own, where installing does nothing and `cmake` is a program that only writes down how it was called.
"""

import contextlib
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
CAPTURE = "tests/data/smollm2_135m_kv.safetensors"
SECONDS = 120
NQKVD = NQKV = None


def free_address():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@contextlib.contextmanager
def taken_address():
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield f"127.0.0.1:{holder.getsockname()[1]}"


class Tree:
    """A checkout with a build of its own, and the script in it."""

    def __init__(self, folder):
        self.folder = folder
        self.grpc, self.http = free_address(), free_address()
        programs = folder / "build/release/bin"
        for path in (programs, folder / "deploy", folder / "fake", (folder / CAPTURE).parent):
            path.mkdir(parents=True)
        # Copies, since the script knows its service by the path of the program.
        shutil.copy(NQKVD, programs / "nqkvd")
        shutil.copy(NQKV, programs / "nqkv")
        shutil.copy(ROOT / CAPTURE, folder / CAPTURE)
        for name in ("quickstart.sh", "progress.sh"):
            shutil.copy(ROOT / "deploy" / name, folder / "deploy" / name)
        self.write_program("deploy/install-deps.sh", "exit 0")
        self.write_program("fake/cmake", f'echo "$*" >>{folder}/cmake-calls')

    def write_program(self, path, body):
        (self.folder / path).write_text(f"#!/bin/sh\n{body}\n")
        (self.folder / path).chmod(0o755)

    def run(self, *arguments):
        environment = {**os.environ, "PATH": f"{self.folder}/fake:{os.environ['PATH']}"}
        return subprocess.run([self.folder / "deploy/quickstart.sh", *arguments], capture_output=True, text=True,
                              timeout=SECONDS, env=environment)

    def start(self, grpc=None, http=None):
        return self.run("--listen", grpc or self.grpc, f"--http_listen={http or self.http}", "--", "--host_bytes=256MiB",
                        "--codec_threads=1")

    def pid(self):
        return int((self.folder / "build/quickstart/nqkvd.pid").read_text())

    def has_pid(self):
        return (self.folder / "build/quickstart/nqkvd.pid").exists()


class QuickstartTest(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory(prefix="nqkv-")
        self.addCleanup(temporary.cleanup)
        self.tree = Tree(pathlib.Path(temporary.name))
        self.addCleanup(self.tree.run, "--stop")

    def make_neighbour(self):
        """Another checkout, with a service of its own."""
        temporary = tempfile.TemporaryDirectory(prefix="nqkv-")
        self.addCleanup(temporary.cleanup)
        neighbour = Tree(pathlib.Path(temporary.name))
        self.addCleanup(neighbour.run, "--stop")
        started = neighbour.start()
        self.assertEqual(started.returncode, 0, started.stderr)
        return neighbour

    def test_it_starts_the_service_runs_the_demo_and_says_where_it_is(self):
        started = self.tree.start()
        self.assertEqual(started.returncode, 0, started.stderr)
        self.assertIn("3/4 Starting nqkvd", started.stdout)
        self.assertIn("nqkvd is running.", started.stdout)
        self.assertIn(f"gRPC     {self.tree.grpc}", started.stdout)
        self.assertIn(f"HTTP     http://{self.tree.http}/", started.stdout)
        pid = self.tree.pid()
        os.kill(pid, 0)
        calls = (self.tree.folder / "cmake-calls").read_text()
        self.assertIn("--preset release", calls)
        self.assertNotIn("BENCHMARKS=OFF", calls)

        again = self.tree.run()  # The addresses are those of the service that runs.
        self.assertEqual(again.returncode, 0, again.stderr)
        self.assertIn(f"nqkvd is already running (process {pid})", again.stdout)
        self.assertIn(f"gRPC     {self.tree.grpc}", again.stdout)
        self.assertEqual(self.tree.pid(), pid)

        stopped = self.tree.run("--stop")
        self.assertEqual(stopped.returncode, 0, stopped.stderr)
        self.assertIn(f"Stopping nqkvd (process {pid})", stopped.stdout)
        with self.assertRaises(ProcessLookupError):
            os.kill(pid, 0)
        self.assertIn("nqkvd is not running", self.tree.run("--stop").stdout)

    def test_another_nqkvd_on_the_port_is_not_taken_for_ours(self):
        neighbour = self.make_neighbour()
        for addresses in ({"grpc": neighbour.grpc}, {"http": neighbour.http}, {"grpc": neighbour.grpc, "http": neighbour.http}):
            with self.subTest(addresses=addresses):
                started = self.tree.start(**addresses)
                self.assertEqual(started.returncode, 1, started.stdout)
                self.assertRegex(started.stderr, r"listen: 127\.0\.0\.1:\d+ is already in use by another program")
                self.assertNotIn("is running", started.stdout)
                self.assertFalse(self.tree.has_pid())
        os.kill(neighbour.pid(), 0)

    def test_a_port_of_another_program_is_named(self):
        with taken_address() as taken:
            for option, addresses in (("--listen", {"grpc": taken}), ("--http_listen", {"http": taken})):
                started = self.tree.start(**addresses)
                self.assertEqual(started.returncode, 1, started.stdout)
                self.assertIn(f"quickstart: {option}: {taken} is already in use by another program", started.stderr)

    def test_a_service_that_cannot_start_shows_its_last_lines(self):
        started = self.tree.run("--listen", self.tree.grpc, "--http_listen", self.tree.http, "--", "--bogus")
        self.assertEqual(started.returncode, 1)
        self.assertIn("bogus", started.stderr)
        self.assertIn("nqkvd did not start", started.stderr)
        self.assertFalse(self.tree.has_pid())

    def test_a_service_that_was_killed_is_started_anew(self):
        self.assertEqual(self.tree.start().returncode, 0)
        pid = self.tree.pid()
        os.kill(pid, signal.SIGKILL)
        started = self.tree.start(free_address(), free_address())
        self.assertEqual(started.returncode, 0, started.stderr)
        self.assertNotEqual(self.tree.pid(), pid)

    def test_a_bad_argument_ends_it_before_anything_is_done(self):
        self.assertIn("unknown argument '--bogus'", self.tree.run("--bogus").stderr)
        self.assertIn("'6758' is not HOST:PORT", self.tree.run("--listen=6758").stderr)
        self.assertFalse((self.tree.folder / "cmake-calls").exists())


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(f"usage: {sys.argv[0]} NQKVD NQKV [UNITTEST ARGUMENTS...]")
    NQKVD, NQKV = (str(pathlib.Path(sys.argv.pop(1)).resolve()) for _ in range(2))
    unittest.main()
