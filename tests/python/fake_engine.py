#!/usr/bin/env python3
"""A small inference engine without a model: does the package serve one, and is every loaded byte right?

A scheduler with a block manager and a prefix cache of its own, and two tensor-parallel ranks with paged memory in the
layouts of real engines. Each step may admit, compute, preempt and abort requests; blocks are looked up, loaded and saved
through the package while the steps go on, and the service is killed or stopped and started again. What a block holds
follows from its key, so that every loaded byte, and every so often all memory, is compared with what must be there.

PYTHONPATH=build/release/python build/venv/bin/python tests/python/fake_engine.py native build/release/bin/nqkvd \
    --steps 5000 --seed 1
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import functools
import pathlib
import random
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "support"))

import numpy as np

import backend
import nqkv4_numpy
from nqkvd_process import NqkvdProcess

LAYERS, HEADS, CHANNELS, TOKENS = 2, 4, 32, 16
PLANES = 2 * LAYERS
RANKS = 2
PAGES = 96
SCALE_GROUP = 64
DOCUMENTS = 24
DOCUMENT_BLOCKS = 24
AUDIT_STEPS = 50
UNTOUCHED = 0x5555
TIMEOUT_SECONDS = 20


@functools.lru_cache(maxsize=8192)
def computed_planes(key):
    """What the model computes for the block: [planes][tokens][heads][channels]."""
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(key[:16], "little")))
    return generator.standard_normal((PLANES, TOKENS, HEADS, CHANNELS), np.float32).astype(np.float16)


@functools.lru_cache(maxsize=8192)
def decoded_planes(key):
    """What comes back of it after nqkv4."""
    return np.stack([nqkv4_numpy.decoded(plane, SCALE_GROUP) for plane in computed_planes(key)])


class PagedMemory:
    """One rank's KV cache, with the strides of an engine's layout."""

    def __init__(self, layout):
        heads = HEADS // RANKS

        def memory(*shape):
            return np.full(shape, UNTOUCHED, np.uint16).view(np.float16)

        self._pages = []
        layers = []
        for _ in range(LAYERS):
            if layout == "tokens first":
                cache = memory(2, PAGES, TOKENS, heads, CHANNELS)
                layers.append(lambda page, cache=cache: [cache[0, page], cache[1, page]])
            elif layout == "heads first":
                cache = memory(PAGES, 2, heads, TOKENS, CHANNELS).transpose(0, 1, 3, 2, 4)
                layers.append(lambda page, cache=cache: [cache[page, 0], cache[page, 1]])
            else:
                cache = memory(PAGES, heads, TOKENS, 2 * CHANNELS).transpose(0, 2, 1, 3)
                layers.append(lambda page, cache=cache: [cache[page, ..., :CHANNELS], cache[page, ..., CHANNELS:]])
        for page in range(PAGES):
            self._pages.append([view for layer in layers for view in layer(page)])

    def views(self, page):
        return self._pages[page]


class Rank:
    """A worker: its memory, its connection and its part of the heads."""

    def __init__(self, nqkv, server, name, spec, policy, rank, layout):
        self.heads = slice(rank * HEADS // RANKS, (rank + 1) * HEADS // RANKS)
        self.memory = PagedMemory(layout)
        # A lost service is a miss to an engine: it computes instead of waiting.
        self.client = nqkv.Client(server, timeout=TIMEOUT_SECONDS, retry=nqkv.RetryPolicy(attempts_max=1))
        shard = nqkv.ShardSpec(tensor_rank=rank, tensor_size=RANKS)
        self.cache = self.client.open_cache(name, spec, policy=policy, shard=shard, engine="fake engine")

    def write(self, page, planes):
        for view, plane in zip(self.memory.views(page), planes):
            view[...] = plane[:, self.heads]

    def check(self, page, planes, what):
        for number, (view, plane) in enumerate(zip(self.memory.views(page), planes)):
            if not np.array_equal(view.view(np.uint16), plane[:, self.heads].view(np.uint16)):
                raise AssertionError(f"{what}: page {page}, plane {number}, heads {self.heads}: wrong bytes")


@dataclasses.dataclass
class Request:
    keys: list
    pages: list = dataclasses.field(default_factory=list)
    computed: int = 0  # Blocks whose pages hold their content.
    loading: bool = False
    aborted: bool = False


@dataclasses.dataclass
class Transfer:
    """Loads or saves of one request on all ranks; holds their pages until all ranks are done."""

    request: Request
    blocks: list  # (key, page)
    futures: list
    is_load: bool


class Engine:
    def __init__(self, nqkv, nqkvd, chance, codec, layouts):
        self._nqkv, self._nqkvd, self._chance, self._codec = nqkv, nqkvd, chance, codec
        name = f"engine-{codec.name}-{chance.random()}"
        spec = nqkv.uniform_spec("fake", LAYERS, HEADS, CHANNELS, block_tokens=TOKENS)
        policy = nqkv.CodecPolicy(codec=codec, scale_group=SCALE_GROUP if codec == nqkv.Codec.NQKV4 else 0)
        self._ranks = [Rank(nqkv, nqkvd.server, name, spec, policy, rank, layouts[rank]) for rank in range(RANKS)]
        self._client = nqkv.Client(nqkvd.server, timeout=TIMEOUT_SECONDS, retry=nqkv.RetryPolicy(attempts_max=1))
        self._cache = self._client.open_cache(name, spec, policy=policy)
        self._pool = concurrent.futures.ThreadPoolExecutor(4)
        self._documents = [
            [chance.randrange(50_000) for _ in range(DOCUMENT_BLOCKS * TOKENS)] for _ in range(DOCUMENTS)
        ]
        self._free = list(range(PAGES))
        self._uses = [0] * PAGES
        self._content = [None] * PAGES  # (key, whether it was decoded) of a page that holds a block.
        self._prefix_cache = collections.OrderedDict()  # Key -> page; a page without uses may be evicted.
        self._waiting, self._running, self._transfers = collections.deque(), [], []
        self._down_steps = 0
        self.counts = collections.Counter()

    # Pages

    def _take_page(self):
        if not self._free:
            for key, page in self._prefix_cache.items():
                if self._uses[page] == 0:
                    del self._prefix_cache[key]
                    self._free.append(page)
                    break
            else:
                return None
        page = self._free.pop()
        self._uses[page], self._content[page] = 1, None
        return page

    def _use(self, page):
        self._uses[page] += 1

    def _give_back(self, page):
        self._uses[page] -= 1
        content = self._content[page]
        if self._uses[page] == 0 and (content is None or self._prefix_cache.get(content[0]) != page):
            self._free.append(page)

    def _fill(self, page, key, is_decoded):
        self._content[page] = (key, is_decoded)
        self._prefix_cache.setdefault(key, page)

    @staticmethod
    def _planes_of(content):
        return decoded_planes(content[0]) if content[1] else computed_planes(content[0])

    # Requests

    def _arrive(self):
        """A prompt: a part of a document, or one that leaves it at some place."""
        tokens = list(self._chance.choice(self._documents)[: TOKENS * self._chance.randint(2, DOCUMENT_BLOCKS)])
        if self._chance.random() < 0.4:
            place = self._chance.randrange(len(tokens))
            tokens[place] = 50_000 + self._chance.randrange(4)
        self._waiting.append(Request(self._nqkv.chain_keys(tokens, TOKENS)))
        self.counts["requests"] += 1

    def _release(self, request):
        for page in request.pages:
            self._give_back(page)
        request.pages, request.computed, request.loading = [], 0, False

    def _preempt(self, request):
        self._running.remove(request)
        self._release(request)
        self._waiting.appendleft(Request(request.keys))
        request.aborted = True  # What is still under way for it belongs to nobody.
        self.counts["preemptions"] += 1

    def _abort(self, request):
        (self._running if request in self._running else self._waiting).remove(request)
        self._release(request)
        request.aborted = True
        self.counts["aborts"] += 1

    def _matched_blocks(self, keys):
        try:
            return self._cache.lookup(keys).matched_tokens // TOKENS
        except self._nqkv.UnavailableError:
            self.counts["lookups without service"] += 1
            return 0

    def _admit(self, request):
        """Allocates all pages of the request and begins its loads. False when there is no room."""
        for key in request.keys[:-1]:  # One block at least is computed.
            page = self._prefix_cache.get(key)
            if page is None:
                break
            self._prefix_cache.move_to_end(key)
            self._use(page)
            request.pages.append(page)
            self.counts["blocks in the engine"] += 1
        request.computed = local = len(request.pages)
        while len(request.pages) < len(request.keys):
            page = self._take_page()
            if page is None:
                self._release(request)
                return False
            request.pages.append(page)
        self._running.append(request)
        matched = min(self._matched_blocks(request.keys), len(request.keys) - 1)
        if matched > local:
            request.loading = True
            self._begin(request, list(range(local, matched)), is_load=True)
        return True

    # Transfers

    def _begin(self, request, blocks, is_load):
        pairs = [(request.keys[block], request.pages[block]) for block in blocks]
        for _, page in pairs:
            self._use(page)
        futures = []
        for rank in self._ranks:
            if is_load:
                targets = [self._nqkv.GetTarget(key, rank.memory.views(page)) for key, page in pairs]
                futures.append(self._pool.submit(rank.cache.get, targets))
                continue
            puts = [
                self._nqkv.PutBlock(
                    key,
                    rank.memory.views(page),
                    token_start=block * TOKENS,
                    first_in_sequence=block == 0,
                    provenance=self._nqkv.Provenance.DECODED
                    if self._content[page][1]
                    else self._nqkv.Provenance.ORIGINAL,
                )
                for block, (key, page) in zip(blocks, pairs)
            ]
            futures.append(self._pool.submit(rank.cache.put, puts))
        self._transfers.append(Transfer(request, pairs, futures, is_load))

    def _end(self, transfer):
        results = [future.result() for future in transfer.futures]  # One list a rank.
        whole = True
        for block, (key, page) in enumerate(transfer.blocks):
            answers = [of_rank[block] for of_rank in results]
            for answer in answers:
                if not answer.ok:
                    self.counts[f"{'loads' if transfer.is_load else 'saves'}: {type(answer.error).__name__}"] += 1
                    if not isinstance(answer.error, (self._nqkv.NotFoundError, self._nqkv.UnavailableError)):
                        raise answer.error
            if transfer.is_load:
                whole = self._end_load(transfer, key, page, answers, whole)
            else:
                self.counts["blocks saved"] += all(answer.ok for answer in answers)
            self._give_back(page)
        transfer.request.loading = False

    def _end_load(self, transfer, key, page, answers, whole):
        """Checks a loaded block. Returns whether all blocks up to this one were loaded."""
        is_decoded = self._codec == self._nqkv.Codec.NQKV4
        for rank, answer in zip(self._ranks, answers):
            if answer.ok:
                rank.check(page, self._planes_of((key, is_decoded)), "load")
                self.counts["bytes checked"] += answer.payload_bytes
        if not whole or not all(answer.ok for answer in answers):
            return False
        self._fill(page, key, is_decoded)
        self.counts["blocks loaded"] += 1
        if not transfer.request.aborted:
            transfer.request.computed += 1
        return True

    # Steps

    def step(self, number):
        self._service_step()
        for transfer in [transfer for transfer in self._transfers if all(f.done() for f in transfer.futures)]:
            self._transfers.remove(transfer)
            self._end(transfer)
        if len(self._waiting) < 6 and self._chance.random() < 0.7:
            self._arrive()
        if self._running and self._chance.random() < 0.03:
            self._preempt(self._chance.choice(self._running))
        if self._running and self._chance.random() < 0.03:
            self._abort(self._chance.choice(self._running))
        if self._waiting and self._chance.random() < 0.01:
            self._abort(self._chance.choice(self._waiting))
        while self._waiting and len(self._running) < 6:
            if not self._admit(self._waiting[0]):
                self.counts["no room"] += 1
                break
            self._waiting.popleft()
        ready = [request for request in self._running if not request.loading]
        for request in ready:
            self._compute(request)
        if not ready:
            self._wait_for_a_transfer()
        if number % AUDIT_STEPS == 0:
            self._audit()

    def _wait_for_a_transfer(self):
        """An engine with nothing to compute."""
        futures = [future for transfer in self._transfers for future in transfer.futures if not future.done()]
        if futures:
            concurrent.futures.wait(futures, TIMEOUT_SECONDS, concurrent.futures.FIRST_COMPLETED)

    def _service_step(self):
        """Ends the service at random; it comes back some steps later."""
        if self._down_steps > 0:
            self._down_steps -= 1
            if self._down_steps == 0:
                self._nqkvd.start()
                self._wait_for_service()
        elif self._chance.random() < 1 / 150:
            self.counts["restarts"] += 1
            self._nqkvd.kill() if self._chance.random() < 0.5 else self._nqkvd.stop()
            self._down_steps = self._chance.randint(1, 5)

    def _wait_for_service(self):
        """Until every connection is back; each has a backoff of its own."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        for cache in [self._cache, *(rank.cache for rank in self._ranks)]:
            while True:
                try:
                    cache.lookup([b"any"])
                    break
                except self._nqkv.UnavailableError:
                    if time.monotonic() > deadline:
                        raise

    def _compute(self, request):
        """Some blocks; when all are there the request is saved and ends."""
        for _ in range(4):
            if request.computed == len(request.keys):
                break
            key, page = request.keys[request.computed], request.pages[request.computed]
            for rank in self._ranks:
                rank.write(page, computed_planes(key))
            self._fill(page, key, False)
            request.computed += 1
            self.counts["blocks computed"] += 1
        if request.computed == len(request.keys):
            self._begin(request, list(range(len(request.keys))), is_load=False)
            self._running.remove(request)
            self._release(request)
            self.counts["requests served"] += 1

    def _audit(self):
        """All memory: pages with content hold it, whatever was loaded beside them."""
        for page, content in enumerate(self._content):
            if content is not None:
                for rank in self._ranks:
                    rank.check(page, self._planes_of(content), "audit")
        self.counts["audits"] += 1

    def close(self):
        """Ends what is under way; then nothing holds a page any more."""
        if self._down_steps > 0:
            self._down_steps = 0
            self._nqkvd.start()
        for transfer in self._transfers:
            self._end(transfer)
        for request in [*self._running]:
            self._abort(request)
        self._audit()
        if any(self._uses) or len(self._free) + len(self._prefix_cache) != PAGES:
            raise AssertionError(f"pages are lost: uses {self._uses}, {len(self._free)} free, "
                                 f"{len(self._prefix_cache)} cached")
        self._pool.shutdown()
        for rank in self._ranks:
            rank.cache.close()
            rank.client.close()
        self._cache.close()
        self._client.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("backend", choices=("native", "grpcio"))
    parser.add_argument("nqkvd")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    nqkv = backend.load(arguments.backend)
    chance = random.Random(arguments.seed)
    begin = time.monotonic()
    counts = collections.Counter()
    with NqkvdProcess(arguments.nqkvd, "--host_bytes=16MiB") as nqkvd:
        for codec in (nqkv.Codec.RAW, nqkv.Codec.NQKV4):
            layouts = chance.sample(("tokens first", "heads first", "packed"), RANKS)
            engine = Engine(nqkv, nqkvd, chance, codec, layouts)
            for number in range(arguments.steps // 2):
                engine.step(number)
            engine.close()
            counts += engine.counts
    seconds = time.monotonic() - begin
    print(f"{nqkv.backend_name}, seed {arguments.seed}: {arguments.steps} steps in {seconds:.1f} s")
    for name, count in sorted(counts.items()):
        print(f"  {name:32} {count:12,}")
    for name in ("restarts", "preemptions", "aborts", "blocks loaded", "blocks saved", "requests served"):
        if counts[name] == 0:
            sys.exit(f"no {name}: the run has shown nothing")


if __name__ == "__main__":
    main()
