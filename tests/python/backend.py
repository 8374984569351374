"""Chooses the implementation of the package before it is imported, and fails when the other one was loaded."""

import os
import sys


def load(name):
    """Returns the package over "native" or "grpcio"."""
    os.environ["NQKV_PURE_PYTHON"] = "0" if name == "native" else "1"
    import nqkv

    if nqkv.backend_name != name:
        sys.exit(f"the package runs over {nqkv.backend_name}, not {name}: is {nqkv.__file__} whole?")
    return nqkv
