#!/usr/bin/env python3
"""Golden vectors of kernels/FORMAT.md, by a second implementation that shares no line with the first.

    golden_vectors.py --write FILE   writes the vectors
    golden_vectors.py --check FILE   exits 1 when the file is not what this program would write

Numbers are exact fractions, rounded where FORMAT.md says, so that no property of the machine gets in.
"""

import argparse
import json
import struct
import sys
from fractions import Fraction
from math import ceil, isqrt

LEVELS = ["bc00", "b992", "b833", "b652", "b48d", "b1ea", "add4", "0000",
          "2d18", "3126", "33e0", "3568", "370d", "3880", "39c9", "3c00"]
THRESHOLDS = [-108, -78, -59, -44, -30, -18, -6, 5, 15, 25, 37, 49, 63, 81, 109]
DTYPES = {"fp16": 1, "bf16": 2, "fp32": 3}
NQKV4, NQKV4H, Q8 = 3, 4, 5
SIGN_WORDS = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]


def rounded(value, significand_bits, exponent_min):
    """To the nearest number of a binary format, ties to even; no overflow is expected."""
    if value == 0:
        return Fraction(0)
    exponent = abs(value).numerator.bit_length() - abs(value).denominator.bit_length()
    if abs(value) < Fraction(2) ** exponent:
        exponent -= 1
    quantum = Fraction(2) ** (max(exponent, exponent_min) - significand_bits + 1)
    return round(value / quantum) * quantum


def fp32(value):
    return rounded(Fraction(value), 24, -126)


def fp16(value):
    return rounded(Fraction(value), 11, -14)


def pack(value, dtype):
    if dtype == "fp16":
        return struct.pack("<e", float(value))
    bits = struct.pack("<f", float(value))
    return bits if dtype == "fp32" else bits[2:]


def unpack(data, dtype):
    if dtype == "fp16":
        return Fraction(struct.unpack("<e", data)[0])
    return Fraction(struct.unpack("<f", data if dtype == "fp32" else b"\0\0" + data)[0])


def square_root(value):
    """fp32 of the square root, exact to the rounding."""
    if value == 0:
        return Fraction(0)
    scale = 1 << 240
    return fp32(Fraction(isqrt(value.numerator * scale * scale // value.denominator), scale))


def sum8(lanes):
    a = [fp32(lanes[j] + lanes[j + 4]) for j in range(4)]
    return fp32(fp32(a[0] + a[2]) + fp32(a[1] + a[3]))


def sum_of_squares(values):
    lanes = [Fraction(0)] * 16
    for c, value in enumerate(values):
        lanes[c % 16] = fp32(value * value + lanes[c % 16])
    return sum8([fp32(lanes[j] + lanes[j + 8]) for j in range(8)])


def encode_row(row, group):
    """Codes (bytes), scales (bytes) and the decoded row."""
    codes, scales, decoded = [], b"", []
    for begin in range(0, len(row), group):
        values = row[begin:begin + group]
        scale = fp16(max(abs(x) for x in values))
        scales += pack(scale, "fp16")
        inverse = fp32(Fraction(127) / scale) if scale else Fraction(0)
        for x in values:
            place = max(-128, min(127, round(fp32(x * inverse))))
            code = sum(place > threshold for threshold in THRESHOLDS)
            codes.append(code)
            decoded.append(unpack(bytes.fromhex(LEVELS[code])[::-1], "fp16") * scale)
    data = b""
    for begin in range(0, len(codes), 64):
        run = codes[begin:begin + 64]
        half = len(run) // 2
        data += bytes(run[j] | run[j + half] << 4 for j in range(half))
    return data, scales, decoded


def eight_bit(values):
    """One group of q8: scale, places and decoded values."""
    scale = fp16(max(abs(x) for x in values))
    inverse = fp32(Fraction(127) / scale) if scale else Fraction(0)
    places = [max(-127, min(127, round(fp32(x * inverse)))) for x in values]
    step = fp32(scale * fp32(Fraction(1, 127)))
    return pack(scale, "fp16"), places, [fp32(place * step) for place in places]


def encode_q8_head(rows, group):
    tokens, channels = len(rows), len(rows[0])
    if group == 0:
        columns = [eight_bit([row[c] for row in rows]) for c in range(channels)]
        places = bytes(columns[c][1][t] % 256 for t in range(tokens) for c in range(channels))
        return places + b"".join(column[0] for column in columns), [[column[2][t] for column in columns]
                                                                    for t in range(tokens)]
    groups = [[eight_bit(row[begin:begin + group]) for begin in range(0, channels, group)] for row in rows]
    places = bytes(place % 256 for row in groups for one in row for place in one[1])
    return places + b"".join(one[0] for row in groups for one in row), [[y for one in row for y in one[2]]
                                                                        for row in groups]


def transform(row, block):
    row, distance = list(row), 1
    while distance < block:
        for i in range(len(row)):
            if i // distance % 2 == 0:
                a, b = row[i], row[i + distance]
                row[i], row[i + distance] = fp32(a + b), fp32(a - b)
        distance *= 2
    return row


def weighted_energies(rows):
    """Channel energies W of step 4 of FORMAT.md's "Errors"."""
    energies = [Fraction(0)] * len(rows[0])
    for row in rows:
        signal = sum_of_squares(row)
        if signal >= Fraction(1, 2 ** 126):
            weight = fp32(1 / signal)
            energies = [fp32(fp32(x * weight) * x + e) for x, e in zip(row, energies)]
    return energies


def encode_nqkv4h_head(rows, group, strong_count):
    """Bytes, decoded rows, and for each row what the strong channels and the rotated rest add to E and N."""
    channels = len(rows[0])
    block = min(128, channels & -channels)
    stages = block.bit_length() - 1
    forward, backward = Fraction(1, 2 ** (stages // 2)), Fraction(1, 2 ** (stages - stages // 2))
    sign = [-1 if SIGN_WORDS[c // 32 % 4] >> c % 32 & 1 else 1 for c in range(channels)]
    energies = weighted_energies(rows)
    strong = sorted(sorted(range(channels), key=lambda c: (-energies[c], c))[:strong_count])
    columns = [eight_bit([row[c] for row in rows]) for c in strong]
    codes, scales, decoded, measured = b"", b"", [], []
    for t, row in enumerate(rows):
        kept = [Fraction(0) if c in strong else row[c] * sign[c] for c in range(channels)]
        rotated = [z * forward for z in transform(kept, block)]
        row_codes, row_scales, row_decoded = encode_row(rotated, group)
        codes, scales = codes + row_codes, scales + row_scales
        # A negated zero is -0.0, which no fraction is.
        back = [u * backward * s if u else s * 0.0 for u, s in zip(transform(row_decoded, block), sign)]
        for c, column in zip(strong, columns):
            back[c] = column[2][t]
        decoded.append(back)
        ratio = Fraction(1, 1 + stages % 2)
        squares = lambda values: [fp32(v * v) for v in values] + [Fraction(0)] * (8 - len(strong))
        error = fp32(fp32(ratio * sum_of_squares([fp32(a - b) for a, b in zip(rotated, row_decoded)])) +
                     sum8(squares([fp32(row[c] - back[c]) for c in strong])))
        norm = fp32(fp32(ratio * sum_of_squares(row_decoded)) + sum8(squares([back[c] for c in strong])))
        measured.append((error, norm))
    sidecar = b"".join(struct.pack("<H", c) for c in strong) + b"".join(column[0] for column in columns)
    sidecar += bytes(column[1][t] % 256 for t in range(len(rows)) for column in columns)
    return codes + scales + sidecar, decoded, measured


def encode_by_head(plane, encode_head):
    """Bytes, the decoded plane, and E and N as [token][head] where the head's encoder measures them itself."""
    heads = [encode_head([token[h] for token in plane]) for h in range(len(plane[0]))]
    by_token = lambda part: [[head[part][t] for head in heads] for t in range(len(plane))]
    return b"".join(head[0] for head in heads), by_token(1), by_token(2) if len(heads[0]) > 2 else None


def encode(plane, codec, group):
    """plane[token][head][channel] to bytes and to the decoded plane."""
    tokens, heads, channels = len(plane), len(plane[0]), len(plane[0][0])
    if codec == "nqkv4-row":
        rows = [encode_row([x for head in token for x in head], group) for token in plane]
        decoded = [[row[2][h * channels:(h + 1) * channels] for h in range(heads)] for row in rows]
        return b"".join(r[0] for r in rows) + b"".join(r[1] for r in rows), decoded
    data, decoded = b"", [[None] * heads for _ in range(tokens)]
    for h in range(heads):
        rows = [encode_row(token[h], group) for token in plane]
        data += b"".join(r[0] for r in rows) + b"".join(r[1] for r in rows)
        for t in range(tokens):
            decoded[t][h] = rows[t][2]
    return data, decoded


def errors(plane, decoded, measured=None):
    """Floor error, token-norm error and NMSE as fp32 bits; `measured` has each row's E and N where they are known."""
    worst_floor = worst_norm = Fraction(0)
    all_signal = all_error = 0.0
    channels = len(plane[0][0])
    for h in range(len(plane[0])):
        signal8, error8, weighted8 = [Fraction(0)] * 8, [Fraction(0)] * 8, [Fraction(0)] * 8
        energies, weighted_rows = [Fraction(0)] * channels, 0
        for t, token in enumerate(plane):
            x, y = token[h], decoded[t][h]
            signal, norm = sum_of_squares(x), sum_of_squares(y)
            error = sum_of_squares([fp32(a - b) for a, b in zip(x, y)])
            if measured:
                error, norm = measured[t][h]
            signal8[t % 8] = fp32(signal8[t % 8] + signal)
            error8[t % 8] = fp32(error8[t % 8] + error)
            if signal < Fraction(1, 2 ** 126):
                continue
            weight = fp32(1 / signal)
            weighted_rows += 1
            weighted8[t % 8] = fp32(weighted8[t % 8] + fp32(error * weight))
            worst_norm = max(worst_norm, abs(fp32(square_root(fp32(norm * weight)) - 1)))
            energies = [fp32(fp32(a * weight) * a + e) for a, e in zip(x, energies)]
        all_signal += float(sum8(signal8))
        all_error += float(sum8(error8))
        total = sum8(weighted8)
        if total == 0 or total < Fraction(weighted_rows, 2 ** 20):
            continue
        border = sorted(energies, reverse=True)[ceil(channels / 16) - 1]
        kept_ties = sum(e >= border for e in energies) - ceil(channels / 16)
        lanes = [Fraction(0)] * 8
        for c, energy in enumerate(energies):
            lanes[c % 8] = fp32(lanes[c % 8] + (energy if energy < border else 0))
        floor = fp32(sum8(lanes) + fp32(kept_ties * border)) if kept_ties else sum8(lanes)
        worst_floor = max(worst_floor, fp32(total / floor))
    nmse = all_error / all_signal if all_signal else 0.0
    return b"".join(struct.pack("<f", float(v)) for v in (worst_floor, worst_norm, nmse))


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def pseudo_random(seed):
    state = seed
    while True:
        state = (state * 1103515245 + 12345) % 2 ** 31
        yield Fraction(state >> 11, 2 ** 20)


def random_plane(seed, tokens, heads, channels, dtype, size):
    source = pseudo_random(seed)
    # The sum of four is near enough to a bell curve.
    value = lambda: (sum(next(source) for _ in range(4)) - 2) * Fraction(size)
    return [[[unpack(pack(fp32(value()), dtype), dtype) for _ in range(channels)] for _ in range(heads)]
            for _ in range(tokens)]


def random_strong_plane(seed, tokens, heads, channels, dtype):
    """Every ninth channel has a large offset of its own."""
    plane = random_plane(seed, tokens, heads, channels, dtype, 1)
    return [[[unpack(pack(fp32(x + (c * 3 if c % 9 == 4 else 0)), dtype), dtype) for c, x in enumerate(head)]
             for head in token] for token in plane]


def plane_vector(name, plane, dtype, codec, group, strong=0):
    measured = None
    if codec == "q8":
        encoded, decoded, _ = encode_by_head(plane, lambda rows: encode_q8_head(rows, group))
    elif codec == "nqkv4h":
        encoded, decoded, measured = encode_by_head(plane, lambda rows: encode_nqkv4h_head(rows, group, strong))
    else:
        encoded, decoded = encode(plane, codec, group)
    source = b"".join(pack(x, dtype) for token in plane for head in token for x in head)
    return {"name": name, "tokens": len(plane), "heads": len(plane[0]), "channels": len(plane[0][0]),
            "dtype": DTYPES[dtype], "codec": {"nqkv4h": NQKV4H, "q8": Q8}.get(codec, NQKV4),
            "layout": 2 if codec == "nqkv4-row" else 1, "scale_group": group, "strong_channels": strong,
            "source": source.hex(), "encoded": encoded.hex(), "crc32c": f"{crc32c(encoded):08x}",
            "errors": errors(plane, decoded, measured).hex(),
            "decoded_fp32": b"".join(pack(x, "fp32") for t in decoded for h in t for x in h).hex()}


def block_vector(name, planes):
    """One part with two planes: layer 4, heads 2 to 3 of 3 tokens; keys nqkv4-g64, values raw."""
    table, body = b"", b""
    start = (64 + 40 * len(planes) + 63) // 64 * 64
    for layer, role, dtype, plane, codec in planes:
        channels = len(plane[0][0])
        if codec == 3:
            data, decoded = encode(plane, "nqkv4", 64)
            measured = errors(plane, decoded)
        else:
            data = b"".join(pack(x, dtype) for h in range(len(plane[0])) for token in plane for x in token[h])
            measured = bytes(12)
        body += bytes(-len(body) % 16)
        table += struct.pack("<HBBBBHHHII", layer, role, DTYPES[dtype], codec, 1, 64 if codec == 3 else 0, channels, 0,
                             start + len(body), len(data)) + measured + struct.pack("<II", crc32c(data), 0)
        body += data
    heads = len(planes[0][3][0])
    header = b"NQKV" + struct.pack("<HH", 1, 1) + bytes(range(16)) + struct.pack(
        "<HHHHHHHBBQQI", 1, len(planes[0][3]), 4, 5, 2, 2 + heads, len(planes), 1, 1, 192, start + len(body), 0)
    head = header + struct.pack("<I", crc32c(header + table)) + table
    return {"name": name, "block": (head + bytes(start - len(head)) + body).hex()}


def vectors():
    ramp = [[[unpack(pack(Fraction(c - 32, 8), "fp16"), "fp16") for c in range(64)]]]
    small = [[[Fraction(c % 7 - 3, 2 ** 24) for c in range(64)], [Fraction(0)] * 64]]
    # The worked example of FORMAT.md.
    example = [[[Fraction(c * 7 % 13 - 6 + t, 4) + {9: 20, 33: -12}.get(c, 0) for c in range(64)]] for t in range(2)]
    offset = random_plane(5, 9, 1, 64, "fp16", 1)
    for token in offset:
        token[0][3] += 40
    planes = [
        plane_vector("ramp", ramp, "fp16", "nqkv4", 64),
        plane_vector("fp16-tail", random_plane(1, 3, 2, 80, "fp16", 3), "fp16", "nqkv4", 64),
        plane_vector("bf16-g128", random_plane(2, 10, 2, 136, "bf16", 100), "bf16", "nqkv4", 128),
        plane_vector("fp32-g256", random_plane(3, 2, 1, 264, "fp32", Fraction(1, 1000)), "fp32", "nqkv4", 256),
        plane_vector("row", random_plane(4, 2, 3, 96, "fp16", 1), "fp16", "nqkv4-row", 256),
        plane_vector("offset-channel", [[[unpack(pack(x, "fp16"), "fp16") for x in head] for head in token]
                                        for token in offset], "fp16", "nqkv4", 64),
        plane_vector("subnormals-and-zeros", small, "fp16", "nqkv4", 64),
        plane_vector("q8-channel", random_plane(8, 2, 1, 8, "fp16", 1), "fp16", "q8", 0),
        plane_vector("q8-channel-bf16", random_plane(9, 19, 2, 24, "bf16", 100), "bf16", "q8", 0),
        plane_vector("q8-token-fp32", random_plane(10, 3, 2, 136, "fp32", Fraction(1, 1000)), "fp32", "q8", 128),
        plane_vector("q8-subnormals-and-zeros", small, "fp16", "q8", 0),
        plane_vector("nqkv4h", example, "fp16", "nqkv4h", 64, 4),
        plane_vector("nqkv4h-two-heads", random_strong_plane(11, 2, 2, 64, "fp16"), "fp16", "nqkv4h", 64, 4),
        plane_vector("nqkv4h-no-strong", random_strong_plane(12, 3, 2, 96, "bf16"), "bf16", "nqkv4h", 64),
        plane_vector("nqkv4h-128", random_strong_plane(13, 9, 1, 128, "fp32"), "fp32", "nqkv4h", 128, 8),
        plane_vector("nqkv4h-tail", random_strong_plane(14, 5, 1, 136, "fp16"), "fp16", "nqkv4h", 64, 8),
        plane_vector("nqkv4h-subnormals-and-zeros", small, "fp16", "nqkv4h", 64, 4),
    ]
    blocks = [block_vector("two-planes", [(4, 1, "fp16", random_plane(6, 3, 1, 24, "fp16", 1), 3),
                                          (4, 2, "bf16", random_plane(7, 3, 1, 8, "bf16", 1), 2)])]
    return {"planes": planes, "blocks": blocks}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", metavar="FILE")
    parser.add_argument("--check", metavar="FILE")
    args = parser.parse_args()
    text = json.dumps(vectors(), indent=1) + "\n"
    if args.write:
        with open(args.write, "w", encoding="ascii") as file:
            file.write(text)
        return 0
    with open(args.check, encoding="ascii") as file:
        same = file.read() == text
    if not same:
        print(f"{args.check} is not what this program writes: the format or one implementation has changed")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
