#!/usr/bin/env python3
"""Prints what each CUDA kernel needs and fails when one spills registers. Usage: kernel_resources.py FOLDER

FOLDER holds objects that nvcc wrote with -no-compress, each with OBJECT.log beside it, in which ptxas -v says the registers,
shared memory and spills of each kernel. The number of instructions is the size of the kernel's code over 16 bytes, padding
included.
"""

import pathlib
import re
import struct
import subprocess
import sys

ENTRY = re.compile(r"Compiling entry function '(\S+)' for '(\S+)'")
SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")
INSTRUCTION_BYTES = 16
ELF_MAGIC = b"\x7fELF\x02\x01"
CUDA_MACHINE = 190


def kernels_in_log(text):
    """Yields (kernel, architecture, registers, stack bytes, spilled bytes)."""
    kernel = architecture = stack = spilled = None
    for line in text.splitlines():
        entry, spills, registers = ENTRY.search(line), SPILLS.search(line), REGISTERS.search(line)
        if entry:
            kernel, architecture = entry.groups()
        elif spills:
            stack, spilled = int(spills.group(1)), int(spills.group(2)) + int(spills.group(3))
        elif registers and kernel:
            yield kernel, architecture, int(registers.group(1)), stack, spilled
            kernel = None


def code_sizes(content):
    """Bytes of each kernel's code, summed over the device images in an object."""
    sizes = {}
    begin = content.find(ELF_MAGIC, 1)
    while begin != -1:
        (machine,) = struct.unpack_from("<H", content, begin + 18)
        if machine == CUDA_MACHINE:
            (sections,) = struct.unpack_from("<Q", content, begin + 40)
            size, count, names = struct.unpack_from("<HHH", content, begin + 58)
            headers = [struct.unpack_from("<IIQQQQ", content, begin + sections + i * size) for i in range(count)]
            for header in headers:
                start = begin + headers[names][4] + header[0]
                name = content[start:content.index(b"\0", start)].decode()
                if name.startswith(".text."):
                    sizes[name[len(".text."):]] = header[5]
        begin = content.find(ELF_MAGIC, begin + 1)
    return sizes


def readable(kernels):
    text = subprocess.run(["c++filt", "--no-params"], input="\n".join(kernels), capture_output=True, text=True, check=True)
    names = text.stdout.splitlines()
    return [re.sub(r"^void |nqkv::device::|\(nqkv::Dtype\)", "", name) for name in names]


def main(folder):
    rows = []
    for log in sorted(pathlib.Path(folder).rglob("*.cu.o.log")):
        sizes = code_sizes(log.with_suffix("").read_bytes())
        for kernel, *numbers in kernels_in_log(log.read_text(encoding="utf-8")):
            rows.append((kernel, *numbers, sizes.get(kernel, 0) // INSTRUCTION_BYTES))
    print(f"{'kernel':44} {'for':7} {'registers':>9} {'stack':>6} {'spilled':>8} {'instructions':>13}")
    for name, (_, architecture, registers, stack, spilled, instructions) in zip(readable([row[0] for row in rows]), rows):
        print(f"{name:44} {architecture:7} {registers:9} {stack:6} {spilled:8} {instructions:13}")
    if not rows:
        print(f"no kernel was found under {folder}")
    unknown = [row[0] for row in rows if row[5] == 0]
    if unknown:
        print(f"no code was found for {', '.join(unknown)}")
    spilling = [row[0] for row in rows if row[4] != 0]
    if spilling:
        print(f"registers are spilled by {', '.join(spilling)}")
    return 1 if not rows or spilling or unknown else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
