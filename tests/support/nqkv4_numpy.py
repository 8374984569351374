"""The codec nqkv4 (HEAD layout) in NumPy, as kernels/FORMAT.md gives it, for tests to compare the service with."""

import numpy as np

# fp16 bits of the sixteen NF4 levels.
LEVELS = np.array(
    [
        *(0xBC00, 0xB992, 0xB833, 0xB652, 0xB48D, 0xB1EA, 0xADD4, 0x0000),
        *(0x2D18, 0x3126, 0x33E0, 0x3568, 0x370D, 0x3880, 0x39C9, 0x3C00),
    ],
    np.uint16,
).view(np.float16)
THRESHOLDS = np.array([-108, -78, -59, -44, -30, -18, -6, 5, 15, 25, 37, 49, 63, 81, 109], np.float32)
RUN = 64


def _groups(channels, scale_group):
    """Index of the scale of each channel of a head's row."""
    return np.arange(channels) // scale_group


def quantize(plane, scale_group):
    """Codes [tokens][heads][channels] and fp16 scales [tokens][heads][groups] of a finite plane."""
    plane = np.asarray(plane, np.float32)
    channels = plane.shape[2]
    starts = np.arange(0, channels, scale_group)
    scales = np.maximum.reduceat(np.abs(plane), starts, axis=2).astype(np.float16)
    wide = scales.astype(np.float32)
    inverse = np.divide(np.float32(127), wide, out=np.zeros_like(wide), where=wide > 0)
    places = np.rint(plane * inverse[:, :, _groups(channels, scale_group)])
    return np.searchsorted(THRESHOLDS, places, side="left").astype(np.uint8), scales


def dequantize(codes, scales, scale_group, dtype=np.float16):
    products = LEVELS[codes].astype(np.float32) * scales.astype(np.float32)[:, :, _groups(codes.shape[2], scale_group)]
    return products.astype(dtype)


def decoded(plane, scale_group, dtype=np.float16):
    """What comes back of `plane` after it was stored."""
    return dequantize(*quantize(plane, scale_group), scale_group, dtype)


def _packed(row_codes):
    """Codes of one row, two a byte: within a run of up to 64, byte j holds elements j (low half) and j + n/2."""
    parts = []
    for begin in range(0, len(row_codes), RUN):
        low, high = np.split(row_codes[begin : begin + RUN], 2)
        parts.append(low | high << 4)
    return np.concatenate(parts)


def encoded(plane, scale_group):
    """The bytes of the encoded plane: for each head the codes of its tokens, then their scales."""
    codes, scales = quantize(plane, scale_group)
    parts = []
    for head in range(codes.shape[1]):
        parts += [_packed(row).tobytes() for row in codes[:, head]]
        parts.append(scales[:, head].astype("<f2").tobytes())
    return b"".join(parts)


def encoded_bytes(tokens, heads, channels, scale_group):
    return tokens * heads * (channels // 2 + 2 * -(-channels // scale_group))
