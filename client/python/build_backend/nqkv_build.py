"""Builds the wheel: with the native module, or without it and for grpcio alone where it cannot be built.

scikit-build-core does the work. Where CMake fails (no compiler, no gRPC or Protobuf for C++) the failure is told and a
wheel of Python alone is made. NQKV_REQUIRE_NATIVE=1 makes it an error instead, NQKV_REQUIRE_NATIVE=0 does not try.
"""

import os
import pathlib
import sys

from scikit_build_core import build as scikit

HERE = pathlib.Path(__file__).resolve().parent.parent
PROTOS = HERE.parent.parent / "proto"
DESCRIPTORS = HERE / "nqkv" / "kv_cache.descriptors"
PROTO_FILES = ("nqkv/v1/kv_cache.proto", "google/rpc/status.proto", "google/rpc/error_details.proto")

get_requires_for_build_wheel = scikit.get_requires_for_build_wheel


def _make_descriptors():
    import grpc_tools.protoc

    well_known = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    arguments = ["protoc", f"-I{PROTOS}", f"-I{well_known}", "--include_imports", f"--descriptor_set_out={DESCRIPTORS}"]
    if grpc_tools.protoc.main([*arguments, *PROTO_FILES]) != 0:
        raise RuntimeError("protoc failed")


def _pure_wheel(wheel_directory, settings, metadata_directory):
    _make_descriptors()
    try:
        return scikit.build_wheel(wheel_directory, {**settings, "wheel.cmake": "false"}, metadata_directory)
    finally:
        DESCRIPTORS.unlink()


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    settings = dict(config_settings or {})
    wanted = os.environ.get("NQKV_REQUIRE_NATIVE", "")
    if wanted == "0":
        return _pure_wheel(wheel_directory, settings, metadata_directory)
    try:
        return scikit.build_wheel(wheel_directory, settings, metadata_directory)
    except (Exception, SystemExit) as error:
        if wanted == "1":
            raise
        print(f"nqkv: the native module does not build ({error}): making a wheel for grpcio, slower", file=sys.stderr)
    return _pure_wheel(wheel_directory, settings, metadata_directory)
