#!/usr/bin/env python3
"""Writes the fuzzers' seeds from the golden vectors: make_corpus.py tests/data/golden/codec.json tests/fuzz/corpus"""

import json
import pathlib
import sys

# Codec, layout, scale group, strong channels: in the order of kPlaneCodecs.
CODECS = [(2, 1, 0, 0), (3, 1, 64, 0), (3, 1, 128, 0), (3, 1, 256, 0), (3, 2, 256, 0)]
CODECS += [(4, 1, group, strong) for group in (64, 128, 256) for strong in (0, 4, 8)]
CODECS += [(5, 1, 0, 0), (5, 1, 128, 0)]


def main(golden_path, corpus_path):
    golden = json.loads(pathlib.Path(golden_path).read_text(encoding="ascii"))
    corpus = pathlib.Path(corpus_path)
    for block in golden["blocks"]:
        (corpus / "block" / block["name"]).write_bytes(bytes.fromhex(block["block"]))
    for plane in golden["planes"]:
        head = bytes([plane["tokens"] - 1, plane["heads"] - 1, plane["channels"] // 8 - 1, plane["dtype"] - 1,
                      CODECS.index(tuple(plane[key] for key in ("codec", "layout", "scale_group", "strong_channels")))])
        (corpus / "codec" / plane["name"]).write_bytes(head + bytes.fromhex(plane["source"])[:512])
        (corpus / "decode" / plane["name"]).write_bytes(head + bytes.fromhex(plane["encoded"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
