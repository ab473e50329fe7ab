"""Held-out evaluation: single exchanges made of words, identifiers and paths that training never draws.

An answer counts only when every assistant token of it is the most likely one after the true prefix, which is the same
as greedy decoding writing it character for character; a task counts when all its assistant turns do. Tool output is
given, as it would be by a working tool.

python evaluate.py                        (the exported model in the parent folder)
python evaluate.py --checkpoint run/checkpoint.pt --average --json
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from batches import Encoded, encode, pad
from generate import (
    ALL_TOOLS,
    NAME,
    TASKS,
    USUAL_TOOLS,
    VALUE,
    Segments,
    World,
    conversation,
    draw_tools,
    system_prompt,
    task_unavailable,
)
from model import Config, TinyQwen3, from_hugging_face

COLUMNS = ("name", "call", "values", "answer", "whole")


def load_exported(folder: Path) -> TinyQwen3:
    """The exported model as the training network."""
    settings = json.loads((folder / "config.json").read_text())
    config = Config(**{name: settings[name] for name in Config.__dataclass_fields__})
    return from_hugging_face(config, load_file(folder / "model.safetensors"))


def load_checkpoint(path: Path, average: bool) -> TinyQwen3:
    """A model out of a training checkpoint: the weights themselves or their running average."""
    checkpoint = torch.load(path, weights_only=True)
    model = TinyQwen3(Config(**checkpoint["config"]))
    model.load_state_dict(checkpoint["model"])
    if average:
        with torch.no_grad():
            for weight, mean in zip(model.parameters(), checkpoint["average"], strict=True):
                weight.copy_(mean)
    return model


def spans(kinds: list[int]) -> list[tuple[int, int]]:
    """Maximal runs of assistant tokens."""
    found, start = [], None
    for index, kind in enumerate([*kinds, 0]):
        if kind and start is None:
            start = index
        elif not kind and start is not None:
            found.append((start, index))
            start = None
    return found


def value_runs(kinds: list[int], start: int, end: int) -> list[tuple[int, int]]:
    """Runs of copied tokens within a span."""
    return [(start + a, start + b) for a, b in spans([int(kind == VALUE) for kind in kinds[start:end]])]


class Tally:
    """Right and total per column."""

    def __init__(self) -> None:
        self.right = dict.fromkeys(COLUMNS, 0)
        self.total = dict.fromkeys(COLUMNS, 0)

    def add(self, column: str, right: bool) -> None:
        """One more case."""
        self.right[column] += right
        self.total[column] += 1

    def merge(self, other: Tally) -> None:
        """Adds another tally."""
        for column in COLUMNS:
            self.right[column] += other.right[column]
            self.total[column] += other.total[column]

    def percent(self) -> dict[str, float | None]:
        """Percentages; None where there was nothing to count."""
        return {c: round(100 * self.right[c] / self.total[c], 1) if self.total[c] else None for c in COLUMNS}


def judge(ids: list[int], kinds: list[int], hit: list[bool], tally: Tally) -> list[tuple[int, int]]:
    """Counts one conversation; returns the spans that went wrong."""
    wrong = []
    for start, end in spans(kinds):
        good = all(hit[start - 1 : end - 1])
        if not good:
            wrong.append((start, end))
        names = [index for index in range(start, end) if kinds[index] == NAME]
        tally.add("call" if names else "answer", good)
        if names:
            tally.add("name", all(hit[index - 1] for index in names))
        for a, b in value_runs(kinds, start, end):
            tally.add("values", all(hit[a - 1 : b - 1]))
    tally.add("whole", not wrong)
    return wrong


@torch.no_grad()
def predict(model: TinyQwen3, prefix: list[int], rows: list[Encoded]) -> list[list[int]]:
    """The most likely token after every position of every row (only where an assistant token follows)."""
    batch = pad(prefix, rows)
    keep = torch.from_numpy(batch.kinds[:, 1:]).reshape(-1).nonzero()[:, 0]
    logits = model(torch.from_numpy(batch.prefix), torch.from_numpy(batch.ids[:, :-1]), keep)
    best = torch.full((len(rows) * (batch.ids.shape[1] - 1),), -1)
    best[keep] = logits.argmax(-1)
    return best.view(len(rows), -1).tolist()


def run_task(
    model: TinyQwen3, tokenizer: Tokenizer, system: str, rows: list[Encoded], tally: Tally, failures: list[dict]
) -> None:
    """Counts conversations that share a system turn."""
    prefix = tokenizer.encode(system, add_special_tokens=False).ids
    rows = sorted(rows, key=lambda row: len(row[0]))

    def decode(tokens: list[int]) -> str:
        return tokenizer.decode([max(token, 0) for token in tokens], skip_special_tokens=False)

    for offset in range(0, len(rows), 16):
        chunk = rows[offset : offset + 16]
        for (ids, kinds), best in zip(chunk, predict(model, prefix, chunk), strict=True):
            hit = [guess == token for guess, token in zip(best, ids[1:], strict=False)]  # best is padded
            for start, end in judge(ids, kinds, hit, tally):
                failures.append({"want": decode(ids[start:end]), "got": decode(best[start - 1 : end - 1])})


def make(world: World, task: Callable[[World, tuple[str, ...]], Segments], tools: tuple[str, ...]) -> Segments:
    """One exchange of its own."""
    world.turn_page()
    return task(world, tools)


def evaluate(
    model: TinyQwen3, tokenizer: Tokenizer, pool: dict, count: int, seed: int, split: str = "held"
) -> tuple[dict[str, Tally], dict[str, list[dict]]]:
    """Tallies and failures per task."""
    model.eval()
    tallies: dict[str, Tally] = {}
    failures: dict[str, list[dict]] = {}
    for name in (*TASKS, "no_tools", "some_tools"):
        world = World(pool, split, seed + zlib.crc32(name.encode()) % 1000)
        tallies[name], failures[name] = Tally(), []
        if name in TASKS:
            tools = USUAL_TOOLS if set(TASKS[name].tools) <= set(USUAL_TOOLS) else ALL_TOOLS
            items = [make(world, TASKS[name].make, tools) for _ in range(count)]
            run_task(model, tokenizer, system_prompt(tools), encode(tokenizer, items), tallies[name], failures[name])
            continue
        for index in range(count):
            tools = ()
            while name == "some_tools" and (not tools or len(tools) == len(ALL_TOOLS)):
                tools = draw_tools(world)
            item = make(world, task_unavailable, tools) if index % 3 == 0 else conversation(world, tools, single=True)
            rows = encode(tokenizer, [item])
            run_task(model, tokenizer, system_prompt(tools), rows, tallies[name], failures[name])
    return tallies, failures


def table(results: dict[str, dict[str, float | None]]) -> str:
    """Markdown table."""
    lines = ["| task, % | tool name | whole call | copied values | answer | whole task |", "|---|---|---|---|---|---|"]
    for name, row in results.items():
        lines.append(f"| {name} | " + " | ".join("-" if row[c] is None else f"{row[c]:.1f}" for c in COLUMNS) + " |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=here.parent, help="exported folder")
    parser.add_argument("--checkpoint", type=Path, help="a training checkpoint instead")
    parser.add_argument("--average", action="store_true", help="averaged weights of the checkpoint")
    parser.add_argument("--tokenizer", type=Path, default=here.parent / "tokenizer.json")
    parser.add_argument("--pool", type=Path, default=here / "pool.json")
    parser.add_argument("--count", type=int, default=100, help="conversations per task")
    parser.add_argument("--seed", type=int, default=40_000)
    parser.add_argument("--split", choices=("held", "train"), default="held")
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.add_argument("--failures", type=int, default=0, help="failures to print per task")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.checkpoint:
        model = load_checkpoint(options.checkpoint, options.average)
    else:
        model = load_exported(options.model)
    tokenizer = Tokenizer.from_file(str(options.tokenizer))
    pool = json.loads(options.pool.read_text())
    tallies, failures = evaluate(model, tokenizer, pool, options.count, options.seed, options.split)
    overall = Tally()
    for tally in tallies.values():
        overall.merge(tally)
    results = {name: tally.percent() for name, tally in {**tallies, "all": overall}.items()}
    if options.json:
        kept = {name: items[: options.failures] for name, items in failures.items()}
        print(json.dumps({"seed": options.seed, "count": options.count, "results": results, "failures": kept}))
        return
    print(f"seed {options.seed}, {options.count} conversations per task, {options.split} half of the pool\n")
    print(table(results))
    for name, items in failures.items():
        for item in items[: options.failures]:
            print(f"\n[{name}]\n  want {item['want']!r}\n  got  {item['got']!r}")


if __name__ == "__main__":
    main()
