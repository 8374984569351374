#!/usr/bin/env python3
"""`pip install ./client/python` makes a wheel with the native module, and one for grpcio where that cannot be built.

build/venv/bin/python tests/python/wheel_test.py SOURCE_TREE
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(sys.argv.pop(1)).resolve() if len(sys.argv) > 1 else pathlib.Path(__file__).resolve().parents[2]
PROGRAM = """
import warnings
warnings.simplefilter("ignore")
import nqkv
print(nqkv.backend_name, nqkv.chain_keys([1, 2, 3, 4], 4)[0].hex()[:8])
"""


def installed(folder, **variables):
    """Installs the package into `folder` without the network; returns what it says of itself, and pip's output."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    pip = [sys.executable, "-m", "pip", "install", "-v", "--no-index", "--no-deps", "--no-build-isolation"]
    made = subprocess.run(
        [*pip, "--target", folder, ROOT / "client" / "python"],
        env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )
    if made.returncode != 0:
        raise AssertionError(f"pip failed:\n{made.stdout}")
    said = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment | {"PYTHONPATH": folder}, text=True, capture_output=True,
    )
    return said.stdout.strip(), made.stdout + said.stderr


class WheelTest(unittest.TestCase):
    def setUp(self):
        self.folder = self.enterContext(tempfile.TemporaryDirectory(prefix="nqkv-"))

    def test_holds_the_native_module(self):
        said, log = installed(self.folder, NQKV_REQUIRE_NATIVE="1")
        self.assertEqual(said, "native d056eaeb", log)

    def test_without_a_compiler_it_says_so_and_runs_over_grpcio(self):
        said, log = installed(self.folder, CXX="/nonexistent/c++", CMAKE_ARGS="-DCMAKE_CXX_COMPILER=/nonexistent/c++")
        self.assertEqual(said, "grpcio d056eaeb", log)
        self.assertIn("the native module does not build", log)
        self.assertFalse((ROOT / "client" / "python" / "nqkv" / "kv_cache.descriptors").exists())


if __name__ == "__main__":
    unittest.main()
