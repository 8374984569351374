#!/usr/bin/env python3
"""Runs SmolLM2-135M-Instruct over the beginning of a text and writes its KV cache as safetensors.

    tests/quality/run.sh capture_kv.py --tokens 512 --output tests/data/smollm2_135m_kv.safetensors

Tensors: `layers.<i>.key` and `layers.<i>.value`, float16 [tokens][kv_heads][head_dim], keys after the rotary embedding
(half-split channel order), and `tokens`, int32 [tokens]. `__metadata__` tells where all of it is from.
"""

import argparse
import json
import pathlib

import numpy as np

import smollm2

DATA = pathlib.Path(__file__).resolve().parent.parent / "data"
NOVEL = DATA / "pride_and_prejudice.txt.gz"
NOVEL_SOURCE = (
    "Jane Austen, Pride and Prejudice, as in Debian package r-cran-janeaustenr 1.0.0-1, from its first word on"
)
NOVEL_LICENCE = "public domain"


SAFETENSORS_DTYPES = {"float16": "F16", "int32": "I32"}


def write_safetensors(path, tensors, metadata):
    """The same bytes for the same content, which the library does not promise: it shuffles the metadata."""
    header, offset = {"__metadata__": metadata}, 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": SAFETENSORS_DTYPES[tensor.dtype.name],
            "shape": tensor.shape,
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(tensor.tobytes())


def perplexity(logits, targets):
    logits = logits - logits.max(axis=-1, keepdims=True)
    chosen = logits[np.arange(len(targets)), targets] - np.log(np.exp(logits).sum(axis=-1))
    return float(np.exp(-chosen.mean()))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=512, help="tokens to capture (default %(default)s)")
    parser.add_argument("--text", type=pathlib.Path, default=NOVEL, help="gzipped UTF-8 text")
    parser.add_argument("--text-source", default=NOVEL_SOURCE, help="where the text is from")
    parser.add_argument("--text-licence", default=NOVEL_LICENCE, help="the text's licence")
    parser.add_argument("--output", type=pathlib.Path, default=DATA / "smollm2_135m_kv.safetensors")
    args = parser.parse_args()

    revision = smollm2.revision()
    model = smollm2.SmolLM2()
    tokens = model.tokenize(smollm2.read_text(args.text))
    if len(tokens) < args.tokens:
        raise SystemExit(f"{args.text} has {len(tokens)} tokens, {args.tokens} were asked for")
    tokens = tokens[: args.tokens]
    logits, cache = model.forward(tokens)

    tensors = {"tokens": tokens}
    for layer, (key, value) in enumerate(cache):
        tensors[f"layers.{layer}.key"] = key
        tensors[f"layers.{layer}.value"] = value
    metadata = {
        "model": smollm2.MODEL,
        "revision": revision,
        "text_source": args.text_source,
        "licence": f"model {smollm2.LICENCE}; text {args.text_licence}",
        "rope_theta": str(model.rope_theta),
        "generator": f"tests/quality/capture_kv.py --tokens {args.tokens}",
    }
    write_safetensors(args.output, tensors, metadata)
    print(f"{args.output}: {args.tokens} tokens, {model.layers} layers, {args.output.stat().st_size} bytes")
    print(f"perplexity of the captured text: {perplexity(logits[:-1], tokens[1:]):.2f}")


if __name__ == "__main__":
    main()
