"""Medians over the rounds, the table, and the results file.

report.py CELLS RESULTS [--quick]
"""

import sys
from importlib.metadata import version

from measured import Cells, number, row, verdict, write

PEERS = {
    "dbos postgres": f"DBOS {version('dbos')}, PostgreSQL",
    "langgraph postgres": f"LangGraph {version('langgraph')}, PostgreSQL",
    "langgraph sqlite": f"LangGraph {version('langgraph')}, SQLite",
}


def rows(cells: Cells) -> list[dict]:
    found = []
    at_64 = {peer: cells(f"{peer} 64", "steps_per_second") for peer in PEERS}
    times_faster = {"dbos postgres": 6, "langgraph postgres": 8}
    for sync in ("always", "default"):
        for concurrent in (1, 64):
            ours = f"ours {sync} {concurrent}"
            where = f"{concurrent} at once, sync {sync}"
            for peer, name in PEERS.items():
                other = f"{peer} {concurrent}"
                steps, theirs = cells(ours, "steps_per_second"), cells(other, "steps_per_second")
                goal = met = None
                if sync == "always" and concurrent == 64 and peer in times_faster:
                    goal = f">= {times_faster[peer]} times the peer"
                    met = steps >= times_faster[peer] * theirs
                if sync == "default" and concurrent == 64 and peer == "dbos postgres":
                    goal = ">= 3000 or >= 20 times the peer"
                    met = steps >= 3000 or steps >= 20 * at_64[peer]
                found.append(row(f"steps/s, {where}", steps, theirs, name, goal, met))
            for what, label in (("hop_ms", "hop"), ("agent_ms", "agent")):
                for percentile in ("p50", "p99"):
                    mine = cells(ours, what, percentile)
                    for peer, name in PEERS.items():
                        theirs = cells(f"{peer} {concurrent}", what, percentile)
                        goal = met = None
                        if (sync, concurrent, what, percentile, peer) == (
                            "always",
                            1,
                            "hop_ms",
                            "p50",
                            "dbos postgres",
                        ):
                            goal, met = "<= a third of the peer", mine <= theirs / 3
                        found.append(row(f"{label} {percentile} ms, {where}", mine, theirs, name, goal, met))
    for sync in ("always", "default"):
        for in_flight in (1, 64):
            rate = cells(f"ours {sync} publish {in_flight}", "per_second")
            found.append(
                row(f"facts/s appended by {in_flight} at once over 16 streams, sync {sync} (the ceiling)", rate)
            )
    stored = cells("ours growth", "stored_over_useful")
    found.append(
        row(
            "bytes stored over bytes of content, 100 model calls, just written",
            stored,
            cells("langgraph growth", "stored_over_useful"),
            PEERS["langgraph sqlite"],
            "<= 1.5",
            stored <= 1.5,
        )
    )
    kept = cells("ours growth kept", "stored_over_useful")
    found.append(row("bytes stored over bytes of content, 24 such executions, as kept", kept))
    folded = cells("ours fold", "folded_per_second")
    found.append(row("events/s folded on one core", folded, goal=">= 1000000", met=folded >= 1_000_000))
    found.append(
        row("events/s read from bytes and folded on one core", cells("ours fold", "read_and_folded_per_second"))
    )
    return found


def show(cells: Cells, found: list[dict]) -> None:
    systems = {"ours always": "Vlinders, sync always", "ours default": "Vlinders, default sync", **PEERS}
    if cells.disturbed():
        print("\nOther work kept the cores busy: no comparison with a peer counts, least with a single-threaded one.")
    for concurrent in (1, 64):
        print(
            f"\n{concurrent} at once{'':<20}{'steps/s':>10}{'hop p50':>10}{'p99 ms':>10}{'agent p50':>11}{'p99 ms':>10}"
        )
        for system, name in systems.items():
            cell = f"{system} {concurrent}"
            figures = [cells(cell, what, at) for what in ("hop_ms", "agent_ms") for at in ("p50", "p99")]
            print(f"  {name:<28}{cells(cell, 'steps_per_second'):>8.0f}", end="")
            print(f"{figures[0]:>10.2f}{figures[1]:>10.1f}{figures[2]:>11.1f}{figures[3]:>10.1f}")
    print(f"\n{'':<72}{'ours':>10}{'peer':>10}{'ratio':>8}  goal")

    for r in found:
        if r["goal"] is None and r["peer"] is not None:
            continue
        name = r["metric"] + (f" ({r['peer_name'].split(',')[0]})" if r["peer_name"] else "")
        print(f"{name:<72}{number(r['ours']):>10}{number(r['peer']):>10}{number(r['ratio']):>8}  {verdict(r)}")


def main() -> None:
    cells = Cells(sys.argv[1])
    found = rows(cells)
    if cells.disturbed():
        for compared in (r for r in found if "peer" in (r["goal"] or "")):
            compared["met"] = None
    show(cells, found)
    write(sys.argv[2], "orchestrator", "--quick" in sys.argv, len(cells.by_name["ours always 64"]), cells, found)


main()
