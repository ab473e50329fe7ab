"""Medians over the rounds, the table, and the results file.

report.py CELLS RESULTS [--quick]
"""

import sys

from measured import Cells, number, row, verdict, write

DYNAMO = "NVIDIA Dynamo's frontend"


def rows(cells: Cells) -> list[dict]:
    found = []

    def met(goal, holds):
        return None if cells.disturbed() and not holds else holds if goal else None

    for concurrent in (1, 32, 128):
        ours, stub, dynamo = (cells(f"{who} {concurrent}", "tokens_per_s") for who in ("ours", "stub", "dynamo"))
        goals = ("2.5 times", "0.45 of it") if concurrent > 1 else (None, None)
        name = f"streamed tokens/s, {concurrent} at once"
        found.append(row(name, ours, dynamo, DYNAMO, goals[0], met(goals[0], ours >= 2.5 * dynamo)))
        found.append(row(name, ours, stub, "the floor", goals[1], met(goals[1], ours >= 0.45 * stub)))
        pieces, peer = (cells(f"{who} {concurrent}", "pieces_per_answer") for who in ("ours", "dynamo"))
        found.append(row(f"pieces in which an answer's 64 tokens come, {concurrent} at once", pieces, peer, DYNAMO))
        for which, title in (("ttft_ms", "first token"), ("gap_ms", "longest gap")):
            for at in ("p50", "p99"):
                ours, dynamo = (cells(f"{who} {concurrent}", which, at) for who in ("ours", "dynamo"))
                goal, holds = None, False
                if concurrent == 1 and which == "ttft_ms":
                    sync, p50 = cells("fdatasync", "p50_ms"), cells("ours 1", "ttft_ms", "p50")
                    limit = sync + 3 if at == "p50" else 4 * p50
                    goal, holds = f"<= {limit:.2f}", ours <= limit
                found.append(row(f"{title} {at}, ms, {concurrent} at once", ours, dynamo, DYNAMO, goal, met(goal, holds)))
        for who in ("gateway", "orchestrator", "nats"):
            used = cells(f"ours {concurrent}", "cpu_us_per_token", who)
            peer = cells(f"dynamo {concurrent}", "cpu_us_per_token", "frontend") if who == "gateway" else None
            found.append(row(f"processor time of {who}, us a token, {concurrent} at once", used, peer, peer and DYNAMO))

    def bound(name, value, limit, holds=None, unit="<="):
        found.append(row(name, value, goal=f"{unit} {limit}", met=value <= limit if holds is None else holds))

    bound("memory of the gateway, idle, MiB", cells("idle", "gateway_mib"), 25)
    found[-1].update(peer=round(cells("idle", "frontend_mib"), 1), peer_name=DYNAMO)
    bound("memory of the gateway after 128 at once, MiB", cells("memory", "before_mib"), 60)
    requests, after = cells("many", "requests"), cells("memory", "after_mib")
    growth = after - cells("memory", "before_mib")
    bound(f"growth of it over {requests:.0f} requests, MiB", growth, 5)
    complete, streams = cells("resume", "complete"), cells("resume", "streams")
    name = f"kill -9 of a gateway with {streams:.0f} streams: whole on another one"
    bound(name, complete, f"{streams:.0f}", complete == streams, "=")
    wrong = cells("resume", "missing_tokens") + cells("resume", "repeated_tokens")
    bound("tokens missing or repeated there", wrong, 0)
    found.append(row("slowest of them goes on, ms after the kill", cells("resume", "slowest_resumed_ms")))
    goodput = cells("overload", "goodput")
    bound("goodput of four times as many clients as are let in, of the peak", goodput, 0.9, goodput >= 0.9, ">=")
    bound("slowest refusal, ms", cells("overload", "slowest_refusal_ms"), 50)
    bound("refusals without Retry-After", cells("overload", "refusals_without_retry_after"), 0)
    alone, beside = cells("slow", "gap_ms", "alone", "p50"), cells("slow", "gap_ms", "beside", "p50")
    name = "one of 100 does not read: longest gap of the others, p50, ms, against the same without it"
    found.append(row(name, beside, alone, "without it", "<= 1.5 times", beside <= 1.5 * alone))
    memory = cells("slow", "rss_mib", "after") - cells("slow", "rss_mib", "before")
    bound("memory that it costs the gateway, MiB", memory, 16)
    return found


def main() -> None:
    cells = Cells(sys.argv[1])
    found = rows(cells)
    if cells.disturbed():
        print("\nOther work kept the cores busy: what is missed is left undecided.")
    print(f"\n{'':<95}{'ours':>10}{'peer':>10}{'ratio':>8}")
    for r in found:
        peer = f"  {r['peer_name']}" if r["peer_name"] else ""
        print(f"{r['metric']:<95}{number(r['ours']):>10}{number(r['peer']):>10}{number(r['ratio']):>8}  {verdict(r)}{peer}")
    write(sys.argv[2], "gateway", "--quick" in sys.argv, len(cells.by_name["ours 1"]), cells, found)


main()
