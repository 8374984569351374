#!/usr/bin/env python3
"""nqkvd as a process: how it starts, says what is wrong, serves HTTP and ends. Usage: process_test.py NQKVD"""

import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import unittest
import urllib.error
import urllib.request

START_SECONDS = 60
NQKVD = None


def environment(**variables):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NQKV_")}
    return {**kept, **variables}


class Running:
    """A started nqkvd; `ready` is its line that says where it listens."""

    def __init__(self, folder, *flags, **variables):
        arguments = [NQKVD, "--listen=127.0.0.1:0", "--http_listen=127.0.0.1:0", f"--socket_dir={folder}",
                     "--host_bytes=32MiB", *flags]
        self.process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=environment(**variables))
        self.lines = []
        for line in self.process.stderr:
            self.lines.append(line)
            if " ready: " in line:
                break
        self.ready = self.lines[-1] if self.lines else ""

    def address(self, kind):
        return re.search(rf"{kind} ([^ ,]+)", self.ready).group(1)

    def http(self, path):
        with urllib.request.urlopen(f"http://{self.address('http')}{path}", timeout=30) as response:
            return response.read().decode()

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        self.lines += self.process.stderr.readlines()
        return self.process.wait(60)


@contextlib.contextmanager
def running(folder, *flags, **variables):
    service = Running(folder, *flags, **variables)
    try:
        yield service
    finally:
        if service.process.poll() is None:
            service.process.kill()
        service.process.wait()
        service.process.stderr.close()


class ProcessTest(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory(prefix="nqkv-")
        self.addCleanup(temporary.cleanup)
        self.folder = pathlib.Path(temporary.name)

    def fails(self, *flags, lines=1, **variables):
        """Runs nqkvd, which must end by itself with an error; returns what it says beside its log."""
        arguments = [NQKVD, "--listen=127.0.0.1:0", "--http_listen=", f"--socket_dir={self.folder}/failing", *flags]
        result = subprocess.run(arguments, capture_output=True, text=True, timeout=60, env=environment(**variables))
        self.assertNotEqual(result.returncode, 0, result.stderr)
        self.assertGreater(result.returncode, 0, f"ended by a signal: {result.stderr}")
        said = [line for line in result.stderr.splitlines() if not re.match(r"\d{4}-\d\d-\d\dT.* info ", line)]
        self.assertEqual(len(said), lines, result.stderr)
        return said[0]

    def test_it_starts_says_where_and_ends_with_0_at_sigterm_and_sigint(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            with self.subTest(number=number), running(self.folder) as service:
                self.assertRegex(service.ready, r"nqkvd \d+\.\d+\.\d+ ready: grpc 127\.0\.0\.1:\d+, unix .*nqkvd\.sock")
                self.assertTrue((self.folder / "nqkvd.sock").is_socket())
                self.assertEqual(service.end(number), 0)
                self.assertIn("stopped", service.lines[-1])

    def test_it_says_in_one_line_that_it_runs_on_the_cpu(self):
        with running(self.folder) as service:
            backend = [line for line in service.lines if "CPU backend" in line]
            self.assertEqual(len(backend), 1)
            self.assertRegex(backend[0], r"codec path (avx512|avx2|scalar)")

    def test_a_bad_flag_ends_it_with_one_line(self):
        self.assertIn("--backend: cuda is not built yet", self.fails("--backend=cuda"))
        self.assertIn("--listen: '6758' is not host:port", self.fails("--listen=6758"))
        self.assertIn("bogus", self.fails("--bogus"))
        self.assertIn("is not a size", self.fails("--host_bytes=lots"))
        self.assertIn("'word' is no flag", self.fails("word"))
        self.assertIn("--in_flight_bytes", self.fails("--in_flight_bytes=1KiB"))
        self.assertIn("NQKV_HOST_BYTES", self.fails(NQKV_HOST_BYTES="lots"))

    def test_environment_variables_set_flags_and_the_command_line_wins(self):
        with running(self.folder, NQKV_CODEC_THREADS="3", NQKV_HOST_BYTES="1KiB") as service:
            self.assertIn("32.0 MiB for blocks, 3 codec threads", service.ready)
            self.assertEqual(service.end(), 0)

    def test_a_flagfile_sets_flags(self):
        flagfile = self.folder / "flags"
        flagfile.write_text("--codec_threads=5\n")
        with running(self.folder, f"--flagfile={flagfile}") as service:
            self.assertIn("5 codec threads", service.ready)

    def test_help_and_version(self):
        helped = subprocess.run([NQKVD, "--help"], capture_output=True, text=True, timeout=60)
        self.assertEqual(helped.returncode, 0)
        help_text = helped.stdout
        for flag in ("--listen", "--host_bytes", "--max_read_seconds", "--arena_path"):
            self.assertIn(flag, help_text)
        version = subprocess.run([NQKVD, "--version"], capture_output=True, text=True, timeout=60)
        self.assertEqual(version.returncode, 0)
        self.assertRegex(version.stdout, r"^nqkvd \d+\.\d+\.\d+$")

    def test_too_little_memory_ends_it_with_one_line(self):
        self.assertRegex(self.fails("--host_bytes=1000TiB"), r"1000\.0 TiB asked for, but only .* available")
        self.assertIn("host_bytes", self.fails("--host_bytes=1KiB"))

    def test_an_arena_that_does_not_fit_its_file_system_ends_it_with_one_line(self):
        shm = os.statvfs("/dev/shm")
        too_much = shm.f_blocks * shm.f_frsize + (1 << 30)
        path = f"/dev/shm/{self.folder.name}"
        said = self.fails(f"--arena_path={path}", f"--host_bytes={too_much}")
        self.assertIn(path, said)
        self.assertFalse(os.path.exists(path), "the file must not stay behind")
        # The process is gone: memory could stay behind in a file only. (How much is free changes with whoever runs beside.)
        self.assertEqual([name for name in os.listdir("/dev/shm") if self.folder.name in name], [])

    def test_a_port_in_use_ends_it_with_one_line(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            self.assertIn(f"--listen: 127.0.0.1:{port} is already in use", self.fails(f"--listen=127.0.0.1:{port}"))
            self.assertIn(f"--http_listen: 127.0.0.1:{port} is already in use",
                          self.fails(f"--http_listen=127.0.0.1:{port}"))

    def test_sockets_in_use_end_it_and_those_of_a_dead_one_are_replaced(self):
        with running(self.folder) as first:
            self.assertIn("is held by another nqkvd", self.fails(f"--socket_dir={self.folder}"))
            self.assertEqual(first.http("/healthz"), "ok\n")
            first.end(signal.SIGKILL)
            self.assertTrue((self.folder / "nqkvd.sock").exists())
        with running(self.folder) as second:
            self.assertIn(" ready: ", second.ready)
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(self.folder / "nqkvd.sock"))

    def test_a_socket_directory_with_too_long_a_name_ends_it_with_one_line(self):
        self.assertIn("too long for a Unix socket", self.fails(f"--socket_dir={self.folder}/{'x' * 100}"))

    def test_http_serves_metrics_health_and_status(self):
        with running(self.folder) as service:
            self.assertEqual(service.http("/healthz"), "ok\n")
            self.assertEqual(service.http("/readyz"), "ready\n")
            status = json.loads(service.http("/api/status"))
            self.assertTrue(status["stats"]["ready"])
            self.assertEqual(status["caches"], [])
            metrics = service.http("/metrics")
            self.assertRegex(metrics, r'(?m)^nqkv_capacity_bytes\{tier="host"\} \d+')
            self.assertRegex(metrics, r'(?m)^nqkv_heartbeat_age_seconds\{part="rpc"\} ')
            self.assertIn("/metrics", service.http("/"))
            for path in ("/metricsx", "/api/other", "/etc/passwd"):
                with self.assertRaises(urllib.error.HTTPError) as caught:
                    service.http(path)
                self.assertEqual(caught.exception.code, 404)
                caught.exception.close()

    def test_http_serves_metrics_and_health_alone_where_others_may_reach_it(self):
        # 127.0.0.1 as one number: the service cannot tell that nobody else reaches it, so it is careful.
        with running(self.folder, f"--http_listen={0x7F000001}:0") as service:
            self.assertEqual(service.http("/healthz"), "ok\n")
            self.assertEqual(service.http("/readyz"), "ready\n")
            self.assertIn("nqkv_capacity_bytes", service.http("/metrics"))
            self.assertNotIn("/api/status", service.http("/"))
            with self.assertRaises(urllib.error.HTTPError) as caught:
                service.http("/api/status")
            self.assertEqual(caught.exception.code, 404)
            caught.exception.close()


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(f"usage: {sys.argv[0]} NQKVD [UNITTEST ARGUMENTS...]")
    NQKVD = str(pathlib.Path(sys.argv.pop(1)).resolve())
    unittest.main()
