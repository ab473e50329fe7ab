"""Encoding of conversations and a background process that makes training batches."""

from __future__ import annotations

import json
import multiprocessing
import queue
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from generate import (
    ALL_TOOLS,
    USUAL_TOOLS,
    Segments,
    World,
    conversation,
    draw_system,
    draw_tools,
    system_prompt,
)

Encoded = tuple[list[int], list[int]]

# System turns of one round: the tools (none: drawn), whether it is the standard turn, and how many conversations.
MIX: tuple[tuple[tuple[str, ...] | None, bool, int], ...] = (
    (USUAL_TOOLS, True, 500),
    (USUAL_TOOLS, False, 60),
    (ALL_TOOLS, True, 220),
    (ALL_TOOLS, False, 60),
    *((None, False, 40),) * 4,
)


@dataclass
class Batch:
    """Rows of similar length behind one system turn; `kinds` says which tokens carry loss."""

    prefix: NDArray[np.int64]
    ids: NDArray[np.int64]
    kinds: NDArray[np.int64]
    curriculum: float = 0.0


def encode(tokenizer: Tokenizer, items: list[Segments]) -> list[Encoded]:
    """Token ids and the kind of each token; every conversation is encoded as one text, as at inference."""
    encodings = tokenizer.encode_batch(["".join(text for text, _ in item) for item in items], add_special_tokens=False)
    result = []
    for item, encoding in zip(items, encodings, strict=True):
        ends, kinds, position = [], [], 0
        for text, kind in item:
            position += len(text)
            ends.append(position)
            kinds.append(kind)
        result.append((encoding.ids, [kinds[bisect_right(ends, start)] for start, _ in encoding.offsets]))
    return result


def pad(prefix: list[int], rows: list[Encoded]) -> Batch:
    """Right-padded arrays."""
    length = max(len(ids) for ids, _ in rows)
    ids = np.zeros((len(rows), length), np.int64)
    kinds = np.zeros((len(rows), length), np.int64)
    for index, (row, row_kinds) in enumerate(rows):
        ids[index, : len(row)] = row
        kinds[index, : len(row)] = row_kinds
    return Batch(np.array(prefix, np.int64), ids, kinds)


def group(prefix: list[int], rows: list[Encoded], tokens: int, longest: int) -> list[Batch]:
    """Cuts rows, sorted by length, into batches of about `tokens` tokens."""
    rows = sorted((row for row in rows if len(row[0]) <= longest), key=lambda row: len(row[0]))
    batches, current = [], []
    for row in rows:
        if len(current) > 1 and len(row[0]) * (len(current) + 1) > tokens:
            batches.append(pad(prefix, current))
            current = []
        current.append(row)
    if len(current) > 7:
        batches.append(pad(prefix, current))
    return batches


def stream(
    tokenizer: Tokenizer, pool: dict, seed: int, tokens: int, longest: int, curriculum: list[float]
) -> Iterator[Batch]:
    """Endless batches. `curriculum[0]` is the share of copying exercises and may be changed while it runs."""
    world = World(pool, "train", seed)
    while True:
        batches: list[Batch] = []
        share = curriculum[0]
        for tools, standard, count in MIX:
            tools = draw_tools(world) if tools is None else tools
            system = system_prompt(tools) if standard else draw_system(world, tools)
            items = [conversation(world, tools, share) for _ in range(count)]
            prefix = tokenizer.encode(system, add_special_tokens=False).ids
            batches += group(prefix, encode(tokenizer, items), tokens, longest)
        world.random.shuffle(batches)
        for batch in batches:
            batch.curriculum = share
            yield batch


def _produce(
    tokenizer: str, pool: str, seed: int, tokens: int, longest: int, out: multiprocessing.Queue, share: object
) -> None:
    """Body of the background process."""
    source = stream(Tokenizer.from_file(tokenizer), json.loads(Path(pool).read_text()), seed, tokens, longest, share)
    while True:
        out.put(next(source))


class Loader:
    """Batches from a background process."""

    def __init__(self, tokenizer: Path, pool: Path, seed: int, tokens: int, longest: int, curriculum: float) -> None:
        context = multiprocessing.get_context("spawn")
        self.share = context.Array("d", [curriculum], lock=False)
        self.queue = context.Queue(maxsize=64)
        arguments = (str(tokenizer), str(pool), seed, tokens, longest, self.queue, self.share)
        self.process = context.Process(target=_produce, args=arguments, daemon=True)
        self.process.start()

    def next(self) -> Batch:
        """The next batch; fails if the process has died."""
        while True:
            try:
                return self.queue.get(timeout=30)
            except queue.Empty:
                if not self.process.is_alive():
                    raise RuntimeError("the batch process has died") from None
