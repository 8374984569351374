"""Views of what callers hand over, for the fallback: NumPy arrays of the same memory."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from ._errors import InvalidArgumentError
from ._types import Dtype

_FLOATS = {Dtype.FLOAT16: np.dtype(np.float16), Dtype.FLOAT32: np.dtype(np.float32), Dtype.BFLOAT16: None}


def _import(value: Any, what: str) -> tuple[np.ndarray, bool]:
    """The array, and whether its elements are bfloat16."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        bfloat16 = value.dtype == torch.bfloat16
        return (value.detach().view(torch.int16) if bfloat16 else value.detach()).numpy(), bfloat16
    if isinstance(value, np.ndarray):
        bfloat16 = value.dtype.name == "bfloat16"
        return (value.view(np.uint16) if bfloat16 else value), bfloat16
    for importer in (lambda: np.asarray(memoryview(value)), lambda: np.from_dlpack(value)):
        try:
            return importer(), False
        except (TypeError, AttributeError, BufferError, RuntimeError, ValueError):
            continue
    raise InvalidArgumentError(f"{what}: not an array (DLPack or the buffer protocol)")


def _bits(array: np.ndarray) -> np.ndarray:
    return array.view(np.uint16 if array.itemsize == 2 else np.uint32)


def plane_view(value: Any, shape: tuple[int, int, int], dtype: Dtype, what: str, writable: bool) -> np.ndarray:
    """`value` as unsigned integers [tokens][heads][channels]; checks what the native module checks."""
    array, bfloat16 = _import(value, what)
    if array.ndim == 2 and shape[1] == 1:
        array = array[:, None, :]
    if array.ndim != 3:
        raise InvalidArgumentError(f"{what}: has {array.ndim} dimensions, not 3")
    if array.shape != shape:
        raise InvalidArgumentError(f"{what}: has shape {array.shape}, the plane {shape}")
    matches = bfloat16 if array.dtype.kind != "f" else array.dtype == _FLOATS[dtype]
    if array.dtype.kind in "iu" and not bfloat16:
        matches = True
    if array.itemsize != dtype.itemsize or not matches or (bfloat16 and dtype is not Dtype.BFLOAT16):
        raise InvalidArgumentError(f"{what}: its type is not the plane's")
    if array.strides[2] != array.itemsize:
        raise InvalidArgumentError(f"{what}: its channels are not contiguous")
    if any(size > 1 and stride == 0 for size, stride in zip(shape, array.strides)):
        raise InvalidArgumentError(f"{what}: repeats one row")
    if writable and not array.flags.writeable:
        raise InvalidArgumentError(f"{what}: not an array that can be written (DLPack or the buffer protocol)")
    return _bits(array)


def flat_view(value: Any, writable: bool) -> memoryview:
    """The bytes of an array without gaps."""
    array, _ = _import(value, "data")
    if not array.flags.c_contiguous:
        raise InvalidArgumentError("data: is not contiguous")
    if writable and not array.flags.writeable:
        raise InvalidArgumentError("data: not an array that can be written (DLPack or the buffer protocol)")
    return memoryview(array.reshape(-1).view(np.uint8))
