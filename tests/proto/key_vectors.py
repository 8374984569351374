#!/usr/bin/env python3
"""A second implementation of `nqkv-sha256-v1` and of the spec fingerprint, and the test vectors made with it.

    tests/proto/key_vectors.py           writes tests/proto/key_vectors.json and the tables in proto/KEYS.md
    tests/proto/key_vectors.py --check   fails when either differs from what would be written

Written from proto/KEYS.md with the standard library alone; the C++ tests hold the service to the same vectors.
"""

import argparse
import hashlib
import json
import pathlib
import struct
import sys

FOLDER = pathlib.Path(__file__).resolve().parent
VECTORS = FOLDER / "key_vectors.json"
KEYS_MD = FOLDER.parent.parent / "proto" / "KEYS.md"

KEY_SCHEME = "nqkv-sha256-v1"
KINDS = {"LAYER_GROUP_KIND_FULL": 1, "LAYER_GROUP_KIND_MLA": 2, "LAYER_GROUP_KIND_SLIDING": 3}
ROLES = {"PLANE_ROLE_KEY": 1, "PLANE_ROLE_VALUE": 2, "PLANE_ROLE_LATENT": 3, "PLANE_ROLE_ROPE": 4}
DTYPES = {"DTYPE_FLOAT16": 1, "DTYPE_BFLOAT16": 2, "DTYPE_FLOAT32": 3}


def u32(value):
    return struct.pack("<I", value)


def counted(value):
    return u32(len(value)) + value


def root_key(block_tokens, adapter_digest=b"", salt=b""):
    head = KEY_SCHEME.encode() + b"\0" + u32(block_tokens)
    return hashlib.sha256(head + counted(adapter_digest) + counted(salt)).digest()


def chain_keys(tokens, block_tokens, adapter_digest=b"", salt=b"", items=()):
    """Keys of the whole blocks of `tokens`; `items` are (id, token_begin, token_end), by token_begin."""
    parent = root_key(block_tokens, adapter_digest, salt)
    keys = []
    for begin in range(0, len(tokens) - block_tokens + 1, block_tokens):
        end = begin + block_tokens
        here = [(item, first) for item, first, last in items if first < end and last > begin]
        data = parent + b"".join(u32(token) for token in tokens[begin:end]) + u32(len(here))
        for item, first in here:
            data += u32((first - begin) % 2**32) + counted(item)
        parent = hashlib.sha256(data).digest()
        keys.append(parent)
    return keys


def canonical_spec(spec):
    """The canonical form of a CacheSpec given as protobuf's JSON (bytes fields as hex here)."""

    def text(name):
        return counted(spec.get(name, "").encode())

    def digest(name):
        return counted(bytes.fromhex(spec.get(name, "")))

    form = b"nqkv-spec-v1\0" + text("model") + text("revision") + digest("rope_digest") + digest("adapter_digest")
    form += counted((spec.get("key_scheme") or KEY_SCHEME).encode())
    groups = spec.get("layer_groups", [])
    form += u32(len(groups))
    for group in groups:
        form += u32(group.get("id", 0)) + u32(KINDS[group["kind"]])
        form += u32(group.get("block_tokens", 0)) + u32(group.get("window_tokens", 0))
        form += u32(len(group["planes"]))
        for plane in group["planes"]:
            form += u32(plane["layer"]) + u32(ROLES[plane["role"]])
            form += u32(plane["heads"]) + u32(plane["channels"]) + u32(DTYPES[plane["dtype"]])
    return form


def fingerprint(spec):
    return hashlib.sha256(canonical_spec(spec)).digest()[:16]


def plane(layer, role, heads, channels, dtype="FLOAT16"):
    return {
        "layer": layer,
        "role": f"PLANE_ROLE_{role}",
        "heads": heads,
        "channels": channels,
        "dtype": f"DTYPE_{dtype}",
    }


def key_cases():
    one_to_nine = list(range(1, 10))
    image, sound = "aa" * 32, "0102"
    return [
        {"name": "one block", "block_tokens": 4, "tokens": [1, 2, 3, 4]},
        {"name": "two blocks and a rest", "block_tokens": 4, "tokens": one_to_nine},
        {"name": "no whole block", "block_tokens": 16, "tokens": one_to_nine},
        {"name": "same tokens, other block size", "block_tokens": 8, "tokens": one_to_nine},
        {"name": "widest token ids", "block_tokens": 2, "tokens": [0, 4294967295, 151643, 65536]},
        {"name": "adapter", "block_tokens": 4, "tokens": [1, 2, 3, 4], "adapter_digest": "11" * 32},
        {"name": "salt", "block_tokens": 4, "tokens": [1, 2, 3, 4], "salt": b"tenant-a".hex()},
        {
            "name": "an item over two blocks",
            "block_tokens": 4,
            "tokens": one_to_nine[:8],
            "items": [{"id": image, "token_begin": 2, "token_end": 6}],
        },
        {
            "name": "two items in a block, none in the next",
            "block_tokens": 4,
            "tokens": one_to_nine[:8],
            "items": [
                {"id": sound, "token_begin": 0, "token_end": 1},
                {"id": image, "token_begin": 1, "token_end": 4},
            ],
        },
        {
            "name": "adapter, salt and item together",
            "block_tokens": 64,
            "tokens": [(7919 * i) % 49152 for i in range(128)],
            "adapter_digest": "22" * 32,
            "salt": "00ff",
            "items": [{"id": image, "token_begin": 60, "token_end": 70}],
        },
    ]


def spec_cases():
    full = {
        "id": 0,
        "kind": "LAYER_GROUP_KIND_FULL",
        "block_tokens": 64,
        "planes": [plane(layer, role, 3, 64) for layer in range(2) for role in ("KEY", "VALUE")],
    }
    mla = {
        "id": 1,
        "kind": "LAYER_GROUP_KIND_MLA",
        "block_tokens": 16,
        "planes": [plane(0, "LATENT", 1, 512, "BFLOAT16"), plane(0, "ROPE", 1, 64, "BFLOAT16")],
    }
    return [
        {"name": "two layers", "spec": {"model": "m", "layer_groups": [full]}},
        {
            "name": "every text and digest",
            "spec": {
                "model": "HuggingFaceTB/SmolLM2-135M-Instruct",
                "revision": "r1",
                "rope_digest": "33" * 32,
                "adapter_digest": "44",
                "key_scheme": "engine-x",
                "layer_groups": [full],
            },
        },
        {"name": "two groups", "spec": {"model": "m", "layer_groups": [{**full, "id": 7}, mla]}},
    ]


def make_vectors():
    keys = key_cases()
    for case in keys:
        inputs = [bytes.fromhex(case.get(name, "")) for name in ("adapter_digest", "salt")]
        items = [(bytes.fromhex(i["id"]), i["token_begin"], i["token_end"]) for i in case.get("items", [])]
        case["keys"] = [key.hex() for key in chain_keys(case["tokens"], case["block_tokens"], *inputs, items)]
    specs = spec_cases()
    for case in specs:
        case["fingerprint"] = fingerprint(case["spec"]).hex()
    return {"key_scheme": KEY_SCHEME, "keys": keys, "specs": specs}


def key_table(cases):
    lines = ["| vector | block | tokens | extra inputs (hex) | keys |", "|---|---|---|---|---|"]
    for case in cases:
        tokens = case["tokens"]
        shown = ", ".join(map(str, tokens)) if len(tokens) < 12 else "128 tokens: token i is 7919 i mod 49152"
        extra = [f"{name} `{case[name]}`" for name in ("adapter_digest", "salt") if name in case]
        extra += [f"item `{i['id']}` at [{i['token_begin']}, {i['token_end']})" for i in case.get("items", [])]
        keys = "<br>".join(f"`{key}`" for key in case["keys"]) or "none"
        lines.append(f"| {case['name']} | {case['block_tokens']} | {shown} | {'<br>'.join(extra)} | {keys} |")
    return lines


def spec_table(cases):
    lines = ["| vector | canonical form (hex) | fingerprint |", "|---|---|---|"]
    for case in cases[:1]:
        lines.append(f"| {case['name']} | `{canonical_spec(case['spec']).hex()}` | `{case['fingerprint']}` |")
    for case in cases[1:]:
        size = len(canonical_spec(case["spec"]))
        lines.append(f"| {case['name']} | {size} bytes, of the spec in `key_vectors.json` | `{case['fingerprint']}` |")
    return lines


def with_table(document, name, lines):
    begin, end = f"<!-- {name}: made by tests/proto/key_vectors.py -->\n", f"<!-- end of {name} -->\n"
    before, rest = document.split(begin)
    _, after = rest.split(end)
    return before + begin + "\n" + "\n".join(lines) + "\n\n" + end + after


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, fail on a difference")
    args = parser.parse_args()

    vectors = make_vectors()
    document = KEYS_MD.read_text(encoding="utf-8")
    document = with_table(document, "keys", key_table(vectors["keys"]))
    document = with_table(document, "fingerprints", spec_table(vectors["specs"]))
    wanted = {VECTORS: json.dumps(vectors, indent=1) + "\n", KEYS_MD: document}
    for path, content in wanted.items():
        if not args.check:
            path.write_text(content, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != content:
            sys.exit(f"{path} is not what tests/proto/key_vectors.py writes")
    if args.check and (len(vectors["keys"]) < 10 or len(vectors["specs"]) < 3):
        sys.exit("vectors are missing")


if __name__ == "__main__":
    main()
