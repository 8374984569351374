#!/usr/bin/env python3
"""Extracts one of Jane Austen's novels (public domain) from Debian's package r-cran-janeaustenr.

    apt-get download r-cran-janeaustenr
    dpkg-deb -x r-cran-janeaustenr_1.0.0-1_all.deb janeaustenr
    tests/quality/extract_text.py janeaustenr prideprejudice tests/data/pride_and_prejudice.txt.gz

The package keeps each novel as an R character vector, one line of the book an element. R itself is not needed: an R
"lazy load" store is a gzipped index of (offset, length) pairs beside a file of compressed serialized vectors.
"""

import argparse
import bz2
import gzip
import lzma
import pathlib
import struct
import zlib

STRING, STRINGS, LOGICALS, INTEGERS, LIST, PAIRS, SYMBOL, REFERENCE, NIL = 9, 16, 10, 13, 19, 2, 1, 0xFF, 0xFE


class Serialized:
    """A reader of R's serialization format, as far as these files need it."""

    def __init__(self, data):
        if data[:2] != b"X\n":
            raise ValueError("not an R serialization in XDR form")
        self.data = data
        self.position = 2
        version = self.integer()
        self.position += 8  # Versions of the writer.
        if version == 3:
            encoding_bytes = self.integer()
            self.position += encoding_bytes

    def integer(self):
        (value,) = struct.unpack_from(">i", self.data, self.position)
        self.position += 4
        return value

    def string(self):
        length = self.integer()
        if length < 0:
            return None
        text = self.data[self.position : self.position + length].decode("utf-8")
        self.position += length
        return text

    def value(self):
        flags = self.integer()
        kind = flags & 0xFF
        if kind == STRING:
            return self.string()
        if kind == STRINGS:
            return [self.value() for _ in range(self.integer())]
        if kind in (LOGICALS, INTEGERS):
            return [self.integer() for _ in range(self.integer())]
        if kind == LIST:
            items = [self.value() for _ in range(self.integer())]
            return (items, self.value() if flags & 0x200 else None)
        if kind == SYMBOL:
            return self.value()
        if kind == PAIRS:
            if flags & 0x200:
                self.value()
            tag = self.value() if flags & 0x400 else None
            return (tag, self.value(), self.value())
        if kind in (NIL, REFERENCE):
            return None
        raise ValueError(f"unknown R type {kind}")


def index_of(path):
    """Names to (offset, length), from an .rdx file."""
    items, _ = Serialized(gzip.decompress(path.read_bytes())).value()
    places, attributes = items[0]
    _, names, _ = attributes
    return dict(zip(names, places))


def decompressed(chunk):
    if chunk[4:5] == b"2":
        return bz2.decompress(chunk[5:])
    if chunk[4:5] == b"Z":
        return lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2}]).decompress(chunk[5:])
    return zlib.decompress(chunk[4:])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=pathlib.Path, help="folder into which the Debian package was unpacked")
    parser.add_argument("novel", help="such as prideprejudice")
    parser.add_argument("output", type=pathlib.Path, help="such as pride_and_prejudice.txt.gz")
    args = parser.parse_args()

    data = args.package / "usr/lib/R/site-library/janeaustenr/data"
    places = index_of(data / "Rdata.rdx")
    if args.novel not in places:
        raise SystemExit(f"no novel '{args.novel}'; there are {', '.join(sorted(places))}")
    offset, length = places[args.novel]
    lines = Serialized(decompressed((data / "Rdata.rdb").read_bytes()[offset : offset + length])).value()
    text = "\n".join(lines) + "\n"
    args.output.write_bytes(gzip.compress(text.encode("utf-8"), 9, mtime=0))
    print(f"{args.output}: {len(lines)} lines, {len(text)} characters")


if __name__ == "__main__":
    main()
