"""Medians over the rounds, the table, and the results file.

report.py CELLS RESULTS [--quick]
"""

import sys
from importlib.metadata import version

from measured import Cells, number, row, verdict, write

PEERS = {
    "llama": f"llama.cpp server (xllamacpp {version('xllamacpp')})",
    "mistral": f"mistral.rs (mistralrs {version('mistralrs')})",
}
WEIGHTS = {"q8": "Q8_0", "f32": "f32"}
# Scenario, what is measured, in words, and the least ratio to a peer that is aimed at.
RATES = [
    ("decode", "one stream, tokens/s", {"llama q8": 1.0, "llama f32": 1.0, "mistral q8": 1.8}),
    ("prefill", "prompt of 512, tokens/s", {"llama q8": 1.2, "llama f32": 1.5, "mistral q8": 5.0}),
    ("together 8", "8 at once, 128 in and 64 out, tokens/s", {"llama q8": 1.4, "llama f32": 1.4}),
    ("together 32", "32 at once, 128 in and 64 out, tokens/s", {"llama q8": 1.5, "llama f32": 1.5}),
    ("ragged 8", "8 at once, 64 to 192 in and 64 out, tokens/s", {}),
    ("ragged 32", "32 at once, 64 to 192 in and 64 out, tokens/s", {}),
]


def rows(cells: Cells) -> list[dict]:
    found = []
    for weights, kind in WEIGHTS.items():
        for scenario, what, aims in RATES:
            ours = cells(f"ours {weights} {scenario}", "tokens_per_second")
            for peer, name in PEERS.items():
                theirs = cells(f"{peer} {weights} {scenario}", "tokens_per_second")
                goal = met = None
                if (aim := aims.get(f"{peer} {weights}")) and ours and theirs:
                    goal, met = f">= {aim} times the peer", ours >= aim * theirs
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
    # mistral.rs ends every crowd of equal prompts with quantised weights by an error: its floats stand in.
    ours = cells("ours q8 together 8", "tokens_per_second")
    theirs = cells("mistral f32 together 8", "tokens_per_second")
    if ours and theirs:
        what = "Q8_0 beside f32: 8 at once, 128 in and 64 out, tokens/s"
        found.append(row(what, ours, theirs, PEERS["mistral"], ">= 3 times the peer", ours >= 3 * theirs))
    return found


def show(found: list[dict]) -> None:
    print(f"\n{'':<92}{'ours':>9}{'peer':>9}{'ratio':>8}  goal")
    for r in found:
        name = f"{r['metric']} ({r['peer_name'].split(' (')[0]})"
        figures = f"{number(r['ours']):>9}{number(r['peer']):>9}{number(r['ratio']):>8}"
        print(f"{name:<92}{figures}  {verdict(r)}")


def main() -> None:
    cells = Cells(sys.argv[1])
    found = rows(cells)
    # Other work takes unequally from servers that spin and from those that wait: then nothing is decided.
    if cells.disturbed():
        print("\nOther work kept the cores busy: no comparison with a peer counts.")
        for compared in found:
            compared["met"] = None
    show(found)
    rounds = max(len(results) for name, results in cells.by_name.items() if name.endswith(" decode"))
    write(sys.argv[2], "inference", "--quick" in sys.argv, rounds, cells, found)


main()
