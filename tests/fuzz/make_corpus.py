#!/usr/bin/env python3
"""Writes the fuzzers' seeds from the golden vectors: make_corpus.py tests/data/golden/codec.json tests/fuzz/corpus"""

import json
import pathlib
import sys

CODEC_OF = {(1, 64): 1, (1, 128): 2, (1, 256): 3, (2, 256): 4}


def main(golden_path, corpus_path):
    golden = json.loads(pathlib.Path(golden_path).read_text(encoding="ascii"))
    corpus = pathlib.Path(corpus_path)
    for block in golden["blocks"]:
        (corpus / "block" / block["name"]).write_bytes(bytes.fromhex(block["block"]))
    for plane in golden["planes"]:
        head = bytes([plane["tokens"] - 1, plane["heads"] - 1, plane["channels"] // 8 - 1, plane["dtype"] - 1,
                      CODEC_OF[plane["layout"], plane["scale_group"]]])
        (corpus / "codec" / plane["name"]).write_bytes(head + bytes.fromhex(plane["source"])[:512])


if __name__ == "__main__":
    main(*sys.argv[1:])
