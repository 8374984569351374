"""The codecs q8 and nqkv4h in NumPy, as kernels/FORMAT.md gives them, for tests to compare the service with."""

import nqkv4_numpy
import numpy as np

SIGN_WORDS = np.array([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], np.uint32)
ONE_OVER_127 = np.float32(1) / np.float32(127)


def _q8_groups(values, axis):
    """Decoded fp32 values of groups that lie along `axis`."""
    values = np.asarray(values, np.float32)
    scales = np.abs(values).max(axis=axis, keepdims=True).astype(np.float16).astype(np.float32)
    inverse = np.divide(np.float32(127), scales, out=np.zeros_like(scales), where=scales > 0)
    # By way of integers, which have no -0.
    places = np.clip(np.rint(values * inverse), -127, 127).astype(np.int8).astype(np.float32)
    return places * (scales * ONE_OVER_127)


def q8_decoded(plane, scale_group, dtype=np.float16):
    """What comes back of a plane [tokens][heads][channels] that was stored in q8."""
    plane = np.asarray(plane, np.float32)
    if scale_group == 0:
        return _q8_groups(plane, 0).astype(dtype)
    parts = [plane[:, :, begin : begin + scale_group] for begin in range(0, plane.shape[2], scale_group)]
    return np.concatenate([_q8_groups(part, 2) for part in parts], axis=2).astype(dtype)


def _transformed(rows, block):
    rows = rows.reshape(-1, rows.shape[-1])
    distance = 1
    while distance < block:
        pairs = rows.reshape(-1, rows.shape[-1] // (2 * distance), 2, distance)
        rows = np.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], axis=2)
        rows = rows.reshape(len(rows), -1)
        distance *= 2
    return rows


def nqkv4h_decoded(plane, scale_group, strong_channels, dtype=np.float16):
    """What comes back of a plane [tokens][heads][channels] that was stored in nqkv4h."""
    plane = np.asarray(plane, np.float32)
    tokens, heads, channels = plane.shape
    block = min(128, channels & -channels)
    stages = block.bit_length() - 1
    forward, backward = np.float32(0.5 ** (stages // 2)), np.float32(0.5 ** (stages - stages // 2))
    c = np.arange(channels)
    sign = np.where(SIGN_WORDS[c // 32 % 4] >> (c % 32).astype(np.uint32) & 1, np.float32(-1), np.float32(1))
    wide = plane.astype(np.float64)
    signal = np.square(wide).sum(axis=2, keepdims=True)
    energies = np.divide(np.square(wide), signal, out=np.zeros_like(wide), where=signal > 0).sum(axis=0)
    result = np.empty_like(plane)
    for h in range(heads):
        strong = np.argsort(-energies[h], kind="stable")[:strong_channels]
        rest = plane[:, h] * sign
        rest[:, strong] = 0
        rotated = (_transformed(rest, block) * forward).reshape(tokens, 1, channels)
        back = nqkv4_numpy.decoded(rotated, scale_group, np.float32).reshape(tokens, channels)
        result[:, h] = _transformed(back, block) * (sign * backward)
        result[:, h][:, strong] = _q8_groups(plane[:, h][:, strong], 0)
    return result.astype(dtype)
