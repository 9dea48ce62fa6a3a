"""Manifests of the largest models: cut, written, read and checked."""

from __future__ import annotations

import json
import statistics
import struct
import time
from collections.abc import Iterator, Sequence
from typing import TypeAlias

from bench.bench import Bench
from bench.results import Figure, Outcome
from packtrain.model.digest import Digest
from packtrain.model.manifest import Chunks, FileEntry, Manifest
from packtrain.model.safetensors import cut, parse_header

Shaped: TypeAlias = tuple[str, tuple[int, ...]]  # a tensor's name and its shape

TITLE = "Manifests"
NOTE = (
    "In process, without the bytes: headers parsed, files cut at tensors, the manifest written, then read and held "
    "against its digest as a pull does. CPU time of the one thread that does it."
)


def run(bench: Bench) -> Outcome:
    figures = []
    for what, shards, target in (
        ("Llama 70B's shapes", _llama_70b(), 150),
        ("a mixture of experts with 200,000 tensors", _experts(200_000), 1000),
    ):
        headers = [_header(tensors) for tensors in shards]
        took, size, chunks = zip(*(_once(headers) for _ in range(2 * bench.runs + 1)), strict=True)
        print(f"  {what}: {chunks[0]} chunks, {size[0] / 1e6:.1f} MB")
        value = 1000 * statistics.median(took)
        count = sum(len(shard) for shard in shards)
        about = f"manifest of {what} ({count:,} tensors, {chunks[0]:,} chunks, {size[0] / 1e6:.1f} MB)"
        figures.append(Figure(about, value, "ms", target))
    return Outcome(TITLE, NOTE, [], figures)


def _once(headers: Sequence[tuple[bytes, int]]) -> tuple[float, int, int]:
    """CPU seconds, which on a core of one's own are the wall; bytes of the manifest; chunks."""
    began = time.process_time()
    lengths = [cut(size, parse_header(header, size)) for header, size in headers]
    cutting = time.process_time() - began
    files = [_file(number, each) for number, each in enumerate(lengths)]  # hashing gives these: not ours to measure
    began = time.process_time()
    data = Manifest.of("merged", files).encode()
    read = Manifest.decode(data, expect=Digest.of(data))
    took = cutting + time.process_time() - began
    return took, len(data), sum(len(file.chunks) for file in read.files)


def _file(number: int, lengths: Sequence[int]) -> FileEntry:
    chunks = Chunks(lengths, [f"{number:08x}{index:056x}" for index in range(len(lengths))])
    return FileEntry(f"model-{number:05}.safetensors", sum(lengths), f"{number:064x}", chunks)


def _header(tensors: Sequence[Shaped]) -> tuple[bytes, int]:
    """Of a file of these tensors in bfloat16, and how long that is."""
    entries, end = {}, 0
    for name, shape in tensors:
        begin = end
        count = 2
        for length in shape:
            count *= length
        end += count
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text, 8 + len(text) + end


def _llama_70b() -> list[list[Shaped]]:
    """In 30 files, as on the Hugging Face Hub."""
    tensors: list[Shaped] = [("model.embed_tokens.weight", (128256, 8192)), ("lm_head.weight", (128256, 8192))]
    for number in range(80):
        tensors += [
            (f"model.layers.{number}.{name}.weight", shape)
            for name, shape in (
                ("input_layernorm", (8192,)),
                ("mlp.down_proj", (8192, 28672)),
                ("mlp.gate_proj", (28672, 8192)),
                ("mlp.up_proj", (28672, 8192)),
                ("post_attention_layernorm", (8192,)),
                ("self_attn.k_proj", (1024, 8192)),
                ("self_attn.o_proj", (8192, 8192)),
                ("self_attn.q_proj", (8192, 8192)),
                ("self_attn.v_proj", (1024, 8192)),
            )
        ]
    tensors.append(("model.norm.weight", (8192,)))
    return list(_shards(tensors, 30))


def _experts(count: int) -> list[list[Shaped]]:
    """Of 1 MiB each, so that each tensor is a chunk: the most there can be."""
    names = (f"model.layers.{n // 768}.mlp.experts.{n % 768 // 3}.{n % 3}.weight" for n in range(count))
    tensors: list[Shaped] = [(name, (1024, 512)) for name in names]
    return list(_shards(tensors, 60))


def _shards(tensors: Sequence[Shaped], count: int) -> Iterator[list[Shaped]]:
    each = -(-len(tensors) // count)
    for start in range(0, len(tensors), each):
        yield list(tensors[start : start + each])
