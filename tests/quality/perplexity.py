#!/usr/bin/env python3
"""Does the model still work on a prefix that was stored quantized?

    tests/quality/run.sh perplexity.py --nqkvd build/release/bin/nqkvd --json results.json

The text is cut into windows. The KV cache of each window's prefix, whole blocks of 64 tokens, goes through a running
nqkvd and is loaded back; the rest of the window is then scored on top of what came back. Perplexity, KL divergence and
top-1 agreement are against the same rest on top of a prefix stored raw, which must come back unchanged. Beside the
service's codecs stand llama.cpp's q4_0 and q8_0, applied here. Intervals are 95 %, from a bootstrap over windows, which
is paired since every codec scores the same tokens.
"""

import argparse
import datetime
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

QUALITY = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(QUALITY.parent / "support"), str(QUALITY.parent / "proto")]

import gguf
import numpy as np

import key_vectors
import nqkv_service
import readme_table
import smollm2

TEXT = QUALITY.parent / "data" / "pride_and_prejudice.txt.gz"
BLOCK_TOKENS = 64
RESAMPLES = 10_000


class LlamaCodec:
    """A block format of llama.cpp, applied in this process by the package of its authors."""

    def __init__(self, name, quantization):
        self.name, self.quantization = name, quantization
        self.stored_bytes = self.elements = 0

    def through(self, tokens, cache):
        del tokens
        return [(self._through(key), self._through(value)) for key, value in cache]

    def _through(self, plane):
        rows = plane.astype(np.float32).reshape(len(plane), -1)
        stored = gguf.quantize(rows, self.quantization)
        self.stored_bytes += stored.nbytes
        self.elements += rows.size
        return gguf.dequantize(stored, self.quantization).reshape(plane.shape).astype(np.float16)

    def summary(self):
        return {"bits_per_element": 8 * self.stored_bytes / self.elements}


class ServiceCodec:
    """A cache of a running nqkvd."""

    def __init__(self, name, stubs, channel, model, **policy):
        self.name = name
        self.messages = stubs.messages
        self.stub = stubs.services.KvCacheStub(channel)
        self.model = model
        self.stored_bytes = self.elements = self.raw_planes = self.planes = 0
        self.floor_error = 0.0
        request = self.messages.OpenCacheRequest(name=name, spec=self._spec())
        for field, value in policy.items():
            setattr(request.policy, field, value)
        self.cache = self.stub.OpenCache(request)

    def _spec(self):
        messages, model = self.messages, self.model
        spec = messages.CacheSpec(model=smollm2.MODEL, revision=smollm2.GGUF_NAME)
        group = spec.layer_groups.add(kind=messages.LAYER_GROUP_KIND_FULL, block_tokens=BLOCK_TOKENS)
        for layer in range(model.layers):
            for role in (messages.PLANE_ROLE_KEY, messages.PLANE_ROLE_VALUE):
                group.planes.add(
                    layer=layer, role=role, heads=model.kv_heads, channels=model.head_dim, dtype=messages.DTYPE_FLOAT16
                )
        return spec

    def through(self, tokens, cache):
        """Puts the prefix, finds it by its keys, gets it back and deletes it."""
        keys = key_vectors.chain_keys(tokens.tolist(), BLOCK_TOKENS)
        planes = np.stack([plane for layer in cache for plane in layer])
        starts = range(0, len(tokens), BLOCK_TOKENS)
        blocks = [(key, planes[:, b : b + BLOCK_TOKENS].tobytes(), b) for key, b in zip(keys, starts)]
        for result in nqkv_service.put(self.messages, self.stub, self.cache, blocks):
            if result.outcome != self.messages.PUT_OUTCOME_STORED:
                raise RuntimeError(f"{self.name}: a block was not stored: {result}")
            self.stored_bytes += result.stored_bytes
            self.raw_planes += result.raw_planes
            self.floor_error = max(self.floor_error, result.floor_error)
        self.elements += planes.size
        self.planes += planes.shape[0] * len(blocks)

        request = self.messages.LookupRequest(cache_id=self.cache.cache_id, shard_id=self.cache.shard_id)
        request.queries.add().chains.add().keys.extend(keys)
        matched = self.stub.Lookup(request).results[0].matched_tokens
        if matched != len(tokens):
            raise RuntimeError(f"{self.name}: {matched} of {len(tokens)} tokens are found")
        loaded = []
        for result, payload in nqkv_service.get(self.messages, self.stub, self.cache, keys):
            if result.status.code != 0:
                raise RuntimeError(f"{self.name}: a block did not come back: {result.status}")
            loaded.append(np.frombuffer(payload, np.float16).reshape(len(planes), BLOCK_TOKENS, *planes.shape[2:]))
        self.stub.Clear(self.messages.ClearRequest(cache_id=self.cache.cache_id))
        planes = np.concatenate(loaded, axis=1)
        return list(zip(planes[0::2], planes[1::2]))

    def summary(self):
        return {
            "bits_per_element": 8 * self.stored_bytes / self.elements,
            "raw_planes_share": self.raw_planes / self.planes,
            "floor_error_max": float(self.floor_error),
        }


def log_softmax_in_place(logits):
    logits -= logits.max(axis=1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logits


class Scores:
    """Sums a window of one codec: negative log likelihood, KL divergence from raw, agreeing top choices."""

    def __init__(self):
        self.windows = []

    def add(self, log_probabilities, raw, raw_probabilities, targets):
        tokens = np.arange(len(targets))
        self.windows.append(
            (
                -log_probabilities[tokens, targets].sum(dtype=np.float64),
                (raw_probabilities * (raw - log_probabilities)).sum(dtype=np.float64),
                (log_probabilities.argmax(axis=1) == raw.argmax(axis=1)).sum(),
            )
        )

    def sums(self):
        return np.array(self.windows, np.float64)


def interval(samples):
    return [float(np.quantile(samples, 0.025)), float(np.quantile(samples, 0.975))]


def figures_of(sums, raw_sums, scored, picks):
    """sums: [windows][3]. Means over all windows, with intervals over resampled windows."""
    window_tokens = scored / len(sums)
    means = sums[picks].mean(axis=1) / window_tokens
    raw_means = raw_sums[picks].mean(axis=1) / window_tokens
    mean, raw_mean = sums.mean(axis=0) / window_tokens, raw_sums.mean(axis=0) / window_tokens
    return {
        "perplexity": float(np.exp(mean[0])),
        "perplexity_interval": interval(np.exp(means[:, 0])),
        "perplexity_over_raw_percent": float(100 * np.expm1(mean[0] - raw_mean[0])),
        "perplexity_over_raw_percent_interval": interval(100 * np.expm1(means[:, 0] - raw_means[:, 0])),
        "kl": float(mean[1]),
        "kl_interval": interval(means[:, 1]),
        "top1_agreement_percent": float(100 * mean[2]),
        "top1_agreement_percent_interval": interval(100 * means[:, 2]),
    }


def score(model, codecs, tokens, args, report):
    """Sums of every codec; the first is raw, which the others are compared with."""
    scores = {codec.name: Scores() for codec in codecs}
    window_tokens = args.prefix + args.scored
    for window in range(args.windows):
        begin = window * window_tokens
        prefix = tokens[begin : begin + args.prefix]
        rest = tokens[begin + args.prefix : begin + window_tokens]
        targets = tokens[begin + args.prefix + 1 : begin + window_tokens + 1]
        _, cache = model.forward(prefix, logits=False)
        loaded = codecs[0].through(prefix, cache)
        if not all(np.array_equal(a, b) for was, now in zip(cache, loaded) for a, b in zip(was, now)):
            raise RuntimeError("raw blocks came back changed")
        raw = log_softmax_in_place(model.forward(rest, loaded)[0])
        raw_probabilities = np.exp(raw)
        scores[codecs[0].name].add(raw, raw, raw_probabilities, targets)
        for codec in codecs[1:]:
            logits, _ = model.forward(rest, codec.through(prefix, cache))
            scores[codec.name].add(log_softmax_in_place(logits), raw, raw_probabilities, targets)
        report(window + 1)
    return {name: each.sums() for name, each in scores.items()}


def progress(windows, started):
    def report(done):
        if sys.stderr.isatty() or done == windows or done % 8 == 0:
            left = (time.monotonic() - started) / done * (windows - done)
            print(f"{done}/{windows} windows, about {left:.0f} s left", file=sys.stderr)

    return report


def commit():
    """What was checked out, marked when files differ from it."""
    described = subprocess.run(
        ["git", "-C", QUALITY, "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or "unknown"


def machine():
    lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else 'unknown processor'}, {os.cpu_count()} cores"


def failures_of(results, args):
    """Prints in what a codec of the service is worse than it may be, and returns whether any is."""
    failures = []
    for name in ("nqkv4-g64", "auto"):
        figures = results["codecs"][name]
        if figures["perplexity_over_raw_percent"] > args.max_increase:
            failures.append(f"{name} raises perplexity by more than {args.max_increase} %")
        if figures["top1_agreement_percent"] < args.min_agreement:
            failures.append(f"{name} agrees on the top choice less than {args.min_agreement} % of the time")
    for failure in failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    return bool(failures)


def parsed_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nqkvd", type=pathlib.Path, required=True, help="the server's binary")
    parser.add_argument(
        "--prefix", type=int, default=512, help="tokens of a window that are loaded (default %(default)s)"
    )
    parser.add_argument(
        "--scored", type=int, default=512, help="tokens of a window that are scored (default %(default)s)"
    )
    parser.add_argument("--windows", type=int, default=64, help="windows (default %(default)s)")
    parser.add_argument("--text", type=pathlib.Path, default=TEXT, help="gzipped UTF-8 text")
    parser.add_argument(
        "--max-increase",
        type=float,
        default=2.0,
        help="fail above this increase of perplexity, %% (default %(default)s)",
    )
    parser.add_argument(
        "--min-agreement", type=float, default=90.0, help="fail below this top-1 agreement, %% (default %(default)s)"
    )
    parser.add_argument("--json", type=pathlib.Path, help="file to write all figures to")
    args = parser.parse_args()
    if not args.nqkvd.is_file():
        parser.error(f"--nqkvd: no file {args.nqkvd}")
    if args.prefix < BLOCK_TOKENS or args.prefix % BLOCK_TOKENS != 0:
        parser.error(f"--prefix: {args.prefix} is not a multiple of {BLOCK_TOKENS}")
    if args.scored < 1 or args.windows < 1:
        parser.error("--scored and --windows must be at least 1")
    return args


def main():
    args = parsed_arguments()
    started = time.monotonic()
    measured = commit()
    revision = smollm2.revision()
    model = smollm2.SmolLM2()
    tokens = model.tokenize(smollm2.read_text(args.text))
    needed = args.windows * (args.prefix + args.scored) + 1
    if len(tokens) < needed:
        raise SystemExit(f"{args.text} has {len(tokens)} tokens, {needed} are needed")

    with tempfile.TemporaryDirectory() as folder, nqkv_service.running(args.nqkvd, "--host_bytes=512MiB") as channel:
        stubs = nqkv_service.generate_stubs(folder)
        messages = stubs.messages
        codecs = [
            ServiceCodec("raw", stubs, channel, model, codec=messages.CODEC_RAW),
            ServiceCodec("nqkv4-g64", stubs, channel, model, codec=messages.CODEC_NQKV4, scale_group=64),
            ServiceCodec("auto", stubs, channel, model, codec=messages.CODEC_AUTO),
            LlamaCodec("llama.cpp q4_0", gguf.GGMLQuantizationType.Q4_0),
            LlamaCodec("llama.cpp q8_0", gguf.GGMLQuantizationType.Q8_0),
        ]
        sums = score(model, codecs, tokens, args, progress(args.windows, started))

    scored = args.windows * args.scored
    picks = np.random.default_rng(0).integers(args.windows, size=(RESAMPLES, args.windows))
    summaries = {codec.name: codec.summary() for codec in codecs}
    results = {
        "date": datetime.date.today().isoformat(),
        "commit": measured,
        "machine": machine(),
        "model": smollm2.MODEL,
        "revision": revision,
        "text": args.text.name,
        "prefix_tokens": args.prefix,
        "scored_tokens_per_window": args.scored,
        "scored_tokens": scored,
        "seconds": round(time.monotonic() - started, 1),
        "codecs": {
            name: {**summaries[name], **figures_of(sums[name], sums["raw"], scored, picks)} for name in summaries
        },
    }
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"{scored} scored tokens of {args.text.name}, each window's {args.prefix}-token prefix loaded\n")
    print(readme_table.markdown(results), end="")
    return 1 if failures_of(results, args) else 0


if __name__ == "__main__":
    sys.exit(main())
