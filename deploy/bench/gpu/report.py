"""What was measured on the GPU, against what the card can do at most: the table, and the results file.

report.py CELLS RESULTS [--quick]
"""

import json
import sys
from pathlib import Path

from measured import Cells, commit, machine, number, row, verdict

# Measured on an H200; used where this card's own ceilings are missing.
COPY, FLOPS = 4.3e12, 790e12


def floor(cells: Cells, name: str) -> float:
    """The shortest a step can take, seconds: its bytes and its products, weights and cache one after the other."""
    copy = cells("ceilings", "copy_bytes_per_second") or COPY
    flops = cells("ceilings", "flops_per_second") or FLOPS
    weights = max(cells(name, "weights_bytes") / copy, cells(name, "flops") / flops)
    return weights + cells(name, "cache_bytes") / copy


def rows(cells: Cells) -> list[dict]:
    found = []
    off = cells("check", "worst")
    limit = cells("check", "tolerance")
    found.append(row("logits beside the CPU's, off by", off, goal=f"<= {limit}", met=off <= limit))
    if (together := cells("check on 2 GPUs", "worst")) is not None:
        found.append(row("logits of 2 GPUs beside the CPU's, off by", together, goal=f"<= {limit}", met=together <= limit))
    if (off := cells("compare", "worst")) is not None:
        same, all_ = cells("compare", "same"), cells("compare", "of")
        found.append(row("logits beside transformers', off by", off, goal=f"<= {limit}", met=off <= limit))
        found.append(row("greedy tokens that are transformers'", same, all_, "all", ">= 98 %", same >= 0.98 * all_))
    found.append(row("copy, read and written, GB/s", cells("ceilings", "copy_bytes_per_second") / 1e9))
    found.append(row("bf16 products, TFLOP/s", cells("ceilings", "flops_per_second") / 1e12))
    for name in cells.by_name:
        if name.startswith("decode "):
            step, least = cells(name, "step_ms") / 1e3, floor(cells, name)
            goal, met = (None, None) if name.endswith(("plain", "blas", "GPUs")) else (">= 0.5 of the floor", least / step >= 0.5)
            found.append(row(f"{name}, context 1,024, tokens/s", cells(name, "batch") / step, cells(name, "batch") / least,
                             "the card's floor", goal, met))  # fmt: skip
        if name.startswith("prefill "):
            found.append(row(f"{name}, tokens/s", cells(name, "tokens_per_second")))
    if (ours := cells("together 128", "tokens_per_second")) is not None:
        theirs = cells("peer together 128", "tokens_per_second")
        met = None if theirs is None else ours >= theirs
        found.append(row("128 at once, 256 in and 128 out, tokens/s", ours, theirs, "transformers", ">= the peer", met))
        busy = cells("together 128", "utilisation")
        if busy is not None:
            found.append(row("128 at once, part of the time the card computes", busy))
    return found


def main() -> None:
    cells = Cells(sys.argv[1])
    found = rows(cells)
    print(f"\n{'':<64}{'ours':>12}{'peer':>12}{'ratio':>8}  goal")
    for r in found:
        print(f"{r['metric']:<64}{number(r['ours']):>12}{number(r['peer']):>12}{number(r['ratio']):>8}  {verdict(r)}")
    results = {
        "suite": "gpu",
        "commit": commit(),
        "machine": machine(cells) | {"gpus": cells.by_name["devices"][0]},
        "quick": "--quick" in sys.argv,
        "rows": found,
    }
    Path(sys.argv[2]).write_text(json.dumps(results, indent=1) + "\n")
    print(f"\nwritten to {sys.argv[2]}")


main()
