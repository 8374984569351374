"""Keys of blocks by the scheme nqkv-sha256-v1; proto/KEYS.md gives it to the byte."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

import numpy as np

from ._errors import InvalidArgumentError
from ._types import MultimodalItem

_SCHEME = b"nqkv-sha256-v1"


def _counted(value: bytes) -> bytes:
    return struct.pack("<I", len(value)) + value


def _items_of(items: Sequence[MultimodalItem], begin: int, end: int) -> bytes:
    inside = [item for item in items if item.token_begin < end and item.token_end > begin]
    parts = [struct.pack("<I", len(inside))]
    for item in inside:
        parts.append(struct.pack("<I", (item.token_begin - begin) & 0xFFFFFFFF) + _counted(item.id))
    return b"".join(parts)


def token_array(tokens: object) -> np.ndarray:
    array = np.asarray(tokens)
    if array.size == 0:
        return np.empty(0, np.uint32)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InvalidArgumentError("tokens: must be a sequence of integers")
    if array.dtype != np.uint32 and (int(array.min()) < 0 or int(array.max()) > 0xFFFFFFFF):
        raise InvalidArgumentError("tokens: a token id is not in 0 to 2^32-1")
    return np.ascontiguousarray(array, np.uint32)


def check(block_tokens: int, items: Sequence[MultimodalItem]) -> list[MultimodalItem]:
    if not 0 < block_tokens <= 0xFFFFFFFF:
        raise InvalidArgumentError("block_tokens: must be above 0")
    for item in items:
        if not 0 <= item.token_begin < item.token_end:
            raise InvalidArgumentError("items: an item stands at no token")
    return sorted(items, key=lambda item: item.token_begin)


def chain_keys(
    tokens: np.ndarray, block_tokens: int, adapter_digest: bytes, salt: bytes, items: Sequence[MultimodalItem]
) -> list[bytes]:
    key = hashlib.sha256(
        _SCHEME + b"\0" + struct.pack("<I", block_tokens) + _counted(adapter_digest) + _counted(salt)
    ).digest()
    keys = []
    for begin in range(0, len(tokens) - block_tokens + 1, block_tokens):
        end = begin + block_tokens
        key = hashlib.sha256(key + tokens[begin:end].astype("<u4").tobytes() + _items_of(items, begin, end)).digest()
        keys.append(key)
    return keys
