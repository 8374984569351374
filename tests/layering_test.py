#!/usr/bin/env python3
"""The floors of the house: who may include and link whom. Usage: layering_test.py [ROOT] [unittest arguments]

Each folder has the folders and the outside libraries that it may name. The rules hold for every #include line of C, C++
and CUDA sources and for the link lines in the folders' CMakeLists.txt. Beyond that no file outside kernels may reach a
CUDA header, directly or through other headers, so that everything else builds without CUDA.
"""

import pathlib
import re
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Families of outside headers. The first that matches names the family.
HEADER_FAMILIES = [
    ("absl", r"absl/"),
    ("grpc", r"(grpc|grpcpp)/"),
    ("generated", r"(nqkv/v1|google/rpc)/\w+(\.grpc)?\.pb\.h$"),
    ("protobuf", r"google/protobuf/"),
    ("installed", r"nqkv/nqkv\.h$"),
    ("openssl", r"openssl/"),
    ("isal", r"isa-l(/|\.h$)"),
    ("prometheus", r"prometheus/"),
    ("civetweb", r"(CivetServer|civetweb)\.h$"),
    ("spdlog", r"(spdlog|fmt)/"),
    ("json", r"nlohmann/"),
    ("zstd", r"zstd\.h$"),
    ("gtest", r"(gtest|gmock)/"),
    ("benchmark", r"benchmark/"),
    ("nanobind", r"nanobind/"),
    ("boost", r"boost/context/"),
    ("cuda", r"(cuda|cub|thrust|cooperative_groups|nv|nvtx3)/|(cuda|device_|driver_|vector_types|nvml|nvToolsExt)\w*\.h$"),
    ("std", r"[a-z_]+$"),
    ("std", r"\w*intrin\.h$"),
    ("std", r"(sys|linux|netinet|arpa|sanitizer)/\w+\.h$"),
    ("std", r"(cpuid|dlfcn|errno|fcntl|getopt|grp|libgen|malloc|netdb|poll|pthread|pwd|sched|signal|spawn|stdint|stdlib|string|"
            r"strings|time|ucontext|unistd)\.h$"),
]

# Target namespaces in CMakeLists.txt and the family that each belongs to.
TARGET_FAMILIES = {
    "absl": "absl", "gRPC": "grpc", "protobuf": "protobuf", "OpenSSL": "openssl", "prometheus-cpp": "prometheus",
    "civetweb": "civetweb", "spdlog": "spdlog", "fmt": "spdlog", "nlohmann_json": "json", "GTest": "gtest",
    "benchmark": "benchmark", "CUDA": "cuda", "Boost": "boost", "Threads": "std",
}
OWN_TARGETS = {
    "proto": "proto", "proto_generated": "proto", "kernels": "kernels", "device": "kernels", "storage": "storage", "service": "service",
    "client": "client", "cli": "client", "isal": "isal",
}

OUTSIDE = {
    "proto": {"std", "absl", "grpc", "protobuf", "generated", "openssl"},
    "kernels": {"std", "absl", "isal", "cuda"},
    "storage": {"std", "absl"},
    "service": {"std", "absl", "grpc", "protobuf", "generated", "prometheus", "civetweb", "spdlog", "json"},
    "client": {"std", "absl", "grpc", "protobuf", "generated", "json", "nanobind"},
    "tests": {"std", "absl", "grpc", "protobuf", "generated", "openssl", "isal", "prometheus", "civetweb", "spdlog",
              "json", "gtest", "benchmark", "boost", "installed", "zstd"},
}
INSIDE = {
    "proto": {"proto"},
    "kernels": {"kernels"},
    "storage": {"storage", "kernels"},
    "service": {"service", "proto", "storage", "kernels"},
    "client": {"client", "proto", "kernels"},
    "tests": {"tests", "proto", "kernels", "storage", "service", "client"},
}
# A header counts as CUDA's when it is written for the device; so these stay inside kernels (and its tests).
DEVICE_SUFFIXES = (".cu", ".cuh")
SOURCE_SUFFIXES = (".h", ".cc", ".c") + DEVICE_SUFFIXES

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
TARGET = re.compile(r"(?<![\w:$<])([A-Za-z][\w-]*)::([\w+-]+)")


def family_of(header):
    for family, pattern in HEADER_FAMILIES:
        if re.match(pattern, header):
            return family
    return None


def includes_of(path):
    """Yields (line number, quote, header)."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        match = INCLUDE.match(line)
        if match:
            yield number, match.group(1), match.group(2)


def own_sources(root, folder):
    return sorted(path for path in (root / folder).rglob("*") if path.suffix in SOURCE_SUFFIXES and path.is_file())


def check_include(root, folder, path, number, quote, header):
    """The violation that this line is, or None."""
    where = f"{path.relative_to(root)}:{number}: {header}"
    top = header.split("/")[0]
    if top in INSIDE and (root / header).is_file():
        if quote != '"':
            return f"{where}: our own headers are included with quotes"
        if top not in INSIDE[folder]:
            return f"{where}: {folder} may not include {top}"
        return None
    family = family_of(header)
    if family is None:
        return f"{where}: neither a file of this tree, named from its root, nor a header of a known library"
    if family == "cuda" and folder == "tests" and path.parent == root / "tests" / "kernels":
        return None
    if family not in OUTSIDE[folder]:
        return f"{where}: {folder} may not include {family}"
    return None


def path_to_cuda(root, header, seen):
    """The chain of our headers that leads from `header` to one of CUDA's, or None."""
    if header in seen:
        return None
    seen.add(header)
    path = root / header
    if not path.is_file():
        return [header] if family_of(header) == "cuda" else None
    if path.suffix in DEVICE_SUFFIXES:
        return [header]
    for _, _, included in includes_of(path):
        rest = path_to_cuda(root, included, seen)
        if rest is not None:
            return [header] + rest
    return None


def link_lines(text):
    """Yields (line number, namespace, target) of the targets that a CMakeLists.txt names, comments left out."""
    for number, line in enumerate(text.splitlines(), 1):
        for namespace, target in TARGET.findall(re.sub(r"#.*", "", line)):
            yield number, namespace, target


def check_target(folder, namespace, target):
    """The reason why `folder` may not name this target, or None."""
    if namespace == "nqkv":
        owner = OWN_TARGETS.get(target, target)
        if owner in INSIDE[folder] or owner in OUTSIDE[folder]:
            return None
        # Helper libraries that tests make for themselves have names of their own.
        return None if folder == "tests" and owner not in OWN_TARGETS else f"{folder} may not link nqkv::{target}"
    family = TARGET_FAMILIES.get(namespace)
    if family is None:
        return f"{namespace}::{target} belongs to no known library"
    if family not in OUTSIDE[folder]:
        return f"{folder} may not link {namespace}::{target}"
    return None


def violations(root):
    found = []
    for folder in INSIDE:
        for path in own_sources(root, folder):
            for number, quote, header in includes_of(path):
                problem = check_include(root, folder, path, number, quote, header)
                if problem is None and folder not in ("kernels", "tests"):
                    chain = path_to_cuda(root, header, set())
                    if chain is not None:
                        problem = f"{path.relative_to(root)}:{number}: reaches CUDA through {' -> '.join(chain)}"
                if problem is not None:
                    found.append(problem)
        for lists in sorted((root / folder).rglob("CMakeLists.txt")):
            for number, namespace, target in link_lines(lists.read_text(encoding="utf-8")):
                reason = check_target(folder, namespace, target)
                if reason is not None:
                    found.append(f"{lists.relative_to(root)}:{number}: {reason}")
    return found


class TreeTest(unittest.TestCase):
    def test_has_every_folder(self):
        for folder in INSIDE:
            self.assertTrue((ROOT / folder).is_dir(), folder)
        self.assertTrue(own_sources(ROOT, "storage"))

    def test_keeps_the_rules(self):
        found = violations(ROOT)
        self.assertEqual(found, [], "\n" + "\n".join(found))


class RulesTest(unittest.TestCase):
    """The test itself must be able to fail: small trees with one violation each."""

    def setUp(self):
        self._folder = tempfile.TemporaryDirectory()
        self.addCleanup(self._folder.cleanup)
        self.root = pathlib.Path(self._folder.name)

    def write(self, name, *lines):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")

    def assert_clean(self):
        self.assertEqual(violations(self.root), [])

    def assert_caught(self, *parts):
        found = violations(self.root)
        self.assertEqual(len(found), 1, found)
        for part in parts:
            self.assertIn(part, found[0])

    def test_allows_what_the_rules_allow(self):
        self.write("kernels/codec.h", "#include <vector>", "#include <immintrin.h>", '#include "absl/status/status.h"')
        self.write("kernels/codec.cu", "#include <cuda_runtime.h>", '#include "kernels/codec.h"')
        self.write("storage/pool.cc", "#include <sys/mman.h>", '#include "kernels/codec.h"')
        self.write("service/call.cc", "#include <grpcpp/grpcpp.h>", '#include "storage/pool.cc"',
                   '#include "nqkv/v1/kv_cache.grpc.pb.h"')
        self.write("storage/CMakeLists.txt", "nqkv_library(nqkv_storage SOURCES pool.cc DEPS nqkv::kernels absl::status)")
        self.assert_clean()

    def test_catches_an_include_of_a_higher_floor(self):
        self.write("service/server.h")
        self.write("storage/pool.cc", "", '#include "service/server.h"')
        self.assert_caught("storage/pool.cc:2", "storage may not include service")

    def test_catches_grpc_in_storage(self):
        self.write("storage/pool.cc", "#include <grpcpp/grpcpp.h>")
        self.assert_caught("storage may not include grpc")

    def test_catches_the_client_inside_the_service(self):
        self.write("client/client.h")
        self.write("service/server.cc", '#  include "client/client.h"')
        self.assert_caught("service may not include client")

    def test_catches_tests_inside_a_product(self):
        self.write("tests/support/fake.h")
        self.write("kernels/codec.cc", '#include "tests/support/fake.h"')
        self.assert_caught("kernels may not include tests")

    def test_catches_cuda_outside_kernels(self):
        self.write("service/server.cc", "#include <cuda_runtime.h>")
        self.assert_caught("service may not include cuda")

    def test_catches_cuda_reached_through_headers_of_kernels(self):
        self.write("kernels/device.h", "#include <cuda_runtime.h>")
        self.write("kernels/stream.h", '#include "kernels/device.h"')
        self.write("storage/tier.cc", '#include "kernels/stream.h"')
        self.assert_caught("storage/tier.cc:1", "kernels/stream.h -> kernels/device.h -> cuda_runtime.h")

    def test_catches_device_code_outside_kernels(self):
        self.write("kernels/codec_kernels.cuh")
        self.write("service/call.cc", '#include "kernels/codec_kernels.cuh"')
        self.assert_caught("reaches CUDA through kernels/codec_kernels.cuh")

    def test_catches_a_header_named_from_its_own_folder(self):
        self.write("storage/pool.h")
        self.write("storage/pool.cc", '#include "pool.h"')
        self.assert_caught("storage/pool.cc:1", "nor a header of a known library")

    def test_catches_a_path_that_climbs(self):
        self.write("kernels/codec.h")
        self.write("storage/pool.cc", '#include "../kernels/codec.h"')
        self.assert_caught("nor a header of a known library")

    def test_catches_our_header_in_angle_brackets(self):
        self.write("storage/pool.h")
        self.write("storage/pool.cc", "#include <storage/pool.h>")
        self.assert_caught("included with quotes")

    def test_catches_a_forbidden_link(self):
        self.write("storage/CMakeLists.txt", "# nqkv::service is only named here", "nqkv_library(nqkv_storage",
                   "  DEPS nqkv::kernels nqkv::service)")
        self.assert_caught("storage/CMakeLists.txt:3", "nqkv::service")

    def test_catches_a_link_with_grpc_below_the_service(self):
        self.write("kernels/CMakeLists.txt", "nqkv_library(nqkv_kernels PRIVATE_DEPS gRPC::grpc++)")
        self.assert_caught("kernels may not link gRPC::grpc++")

    def test_catches_a_link_with_an_unknown_library(self):
        self.write("client/CMakeLists.txt", "target_link_libraries(nqkv_client Eigen3::Eigen)")
        self.assert_caught("belongs to no known library")


if __name__ == "__main__":
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        ROOT = pathlib.Path(sys.argv.pop(1)).resolve()
    unittest.main()
