"""Medians over the rounds, the table, and the results file.

report.py CELLS RESULTS [--quick]
"""

import json
import os
import platform
import statistics
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

PEERS = {
    "llama": f"llama.cpp server (xllamacpp {version('xllamacpp')})",
    "mistral": f"mistral.rs (mistralrs {version('mistralrs')})",
}
WEIGHTS = {"q8": "Q8_0", "f32": "f32"}
# Scenario, what is measured, in words, and the least ratio to llama.cpp's server that is aimed at, by weights.
RATES = [
    ("decode", "one stream, tokens/s", {"q8": 1.0, "f32": 1.0}),
    ("prefill", "prompt of 512, tokens/s", {"q8": 1.2, "f32": 1.5}),
    ("together 8", "8 at once, 128 in and 64 out, tokens/s", {"q8": 1.4, "f32": 1.4}),
    ("together 32", "32 at once, 128 in and 64 out, tokens/s", {"q8": 1.5, "f32": 1.5}),
    ("ragged 8", "8 at once, 64 to 192 in and 64 out, tokens/s", {}),
    ("ragged 32", "32 at once, 64 to 192 in and 64 out, tokens/s", {}),
]


class Cells:
    """Results by cell; each figure is the median over the rounds, `None` where a system has none."""

    def __init__(self, file: str) -> None:
        self.by_name: dict[str, list[dict]] = {}
        for line in Path(file).read_text().splitlines():
            cell = json.loads(line)
            self.by_name.setdefault(cell["cell"], []).append(cell["result"])

    def __call__(self, name: str, key: str) -> float | None:
        results = self.by_name.get(name)
        return statistics.median(result[key] for result in results) if results else None


def row(metric, ours, peer=None, peer_name=None, goal=None, met=None):
    def rounded(value):
        return None if value is None else float(f"{value:.4g}")

    ratio = ours / peer if peer else None
    return {
        "metric": metric,
        "ours": rounded(ours),
        "peer": rounded(peer),
        "peer_name": peer_name,
        "ratio": rounded(ratio),
        "goal": goal,
        "met": met,
    }


def rows(cells: Cells) -> list[dict]:
    found = []
    for weights, kind in WEIGHTS.items():
        for scenario, what, aims in RATES:
            ours = cells(f"ours {weights} {scenario}", "tokens_per_second")
            for peer, name in PEERS.items():
                theirs = cells(f"{peer} {weights} {scenario}", "tokens_per_second")
                goal = met = None
                if peer == "llama" and weights in aims and ours and theirs:
                    goal, met = f">= {aims[weights]} times the peer", ours >= aims[weights] * theirs
                if ours and theirs:
                    found.append(row(f"{kind}: {what}", ours, theirs, name, goal, met))
        for count in (8, 32):
            equal = cells(f"ours {weights} together {count}", "tokens_per_second")
            ragged = cells(f"ours {weights} ragged {count}", "tokens_per_second")
            if equal and ragged:
                what = f"{kind}: {count} ragged beside {count} equal, tokens/s"
                within = row(what, ragged, equal, "ours, equal lengths")
                found.append(within | {"goal": ">= 0.9 times equal lengths", "met": ragged >= 0.9 * equal})
        for percentile in ("p50", "p95"):
            ours = cells(f"ours {weights} shared 32", f"first_{percentile}_s")
            theirs = cells(f"llama {weights} shared 32", f"first_{percentile}_s")
            if ours and theirs:
                goal, met = ("<= a tenth of the peer", ours <= theirs / 10) if percentile == "p50" else (None, None)
                what = f"{kind}: 32 at once behind one prefix of 512, first token {percentile} s"
                found.append(row(what, ours, theirs, PEERS["llama"], goal, met))
    return found


def busy(cells: Cells) -> list[float]:
    return [result["busy_cores"] for result in cells.by_name["others"]]


def machine(cells: Cells) -> dict:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "vectors": [flag for flag in ("avx2", "fma", "avx512f", "avx512_vnni") if flag in flags],
        "memory_gib": round(memory / 2**30, 1),
        "kernel": platform.release(),
        "busy_with_other_work_cores": busy(cells),
    }


def commit() -> str:
    def git(*command):
        return subprocess.run(["git", *command], capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":!deploy/bench/results")
    return git("rev-parse", "--short=12", "HEAD") + ("-changed" if changed else "")


def show(found: list[dict]) -> None:
    def number(value):
        return "" if value is None else f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"

    print(f"\n{'':<92}{'ours':>9}{'peer':>9}{'ratio':>8}  goal")
    for r in found:
        name = f"{r['metric']} ({r['peer_name'].split(' (')[0]})"
        met = {None: "undecided" if r["goal"] else "", True: "met", False: "MISSED"}[r["met"]]
        figures = f"{number(r['ours']):>9}{number(r['peer']):>9}{number(r['ratio']):>8}"
        print(f"{name:<92}{figures}  {r['goal'] or ''}  {met}")


def main() -> None:
    cells = Cells(sys.argv[1])
    found = rows(cells)
    # Other work takes unequally from servers that spin and from those that wait: then nothing is decided.
    if max(busy(cells)) > 0.25 * os.cpu_count():
        print("\nOther work kept the cores busy: no comparison with a peer counts.")
        for compared in found:
            compared["met"] = None
    show(found)
    results = {
        "suite": "inference",
        "commit": commit(),
        "machine": machine(cells),
        "quick": "--quick" in sys.argv,
        "rounds": max(len(results) for name, results in cells.by_name.items() if name.endswith(" decode")),
        "rows": found,
    }
    Path(sys.argv[2]).write_text(json.dumps(results, indent=1) + "\n")
    print(f"\nwritten to {sys.argv[2]}")


main()
