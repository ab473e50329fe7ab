"""Medians over the rounds, the table, and the results file.

report.py CELLS RESULTS [--quick]
"""

import sys

from measured import Cells, row, verdict, write


def rows(cells: Cells) -> list[dict]:
    open_ = cells.by_name["restart"][0]["open"]
    restart, standby = f"kill -9 of the orchestrator, {open_} open", f"the same, by a standby, {open_} open"
    audit = cells.by_name["audit"][0]
    audited = f"audit of {audit['events']} messages"
    figures = [
        (f"{restart}: first resumed effect, ms after restart", cells("restart", "first_effect_ms"), 1000),
        (f"{restart}: all of them, ms after restart", cells("restart", "all_effects_ms"), None),
        (f"{standby}: first resumed effect, ms after the kill", cells("standby", "first_effect_ms"), 3000),
        (f"{standby}: all of them, ms after the kill", cells("standby", "all_effects_ms"), 3000),
        ("kill -9 of a worker in mid-answer: loss in the log, p50 ms", cells("worker", "lost_ms", "p50"), 300),
        ("kill -9 of a worker in mid-answer: loss in the log, slowest ms", cells("worker", "lost_ms", "max"), 300),
        ("cancel of an agent: three leaves told, p50 ms", cells("cancel", "all_leaves_told_ms", "p50"), None),
        ("cancel of an agent: three leaves told, p99 ms", cells("cancel", "all_leaves_told_ms", "p99"), 250),
        (f"{audited}, ms", audit["proven_ms"], None),
        (f"{audited} with one byte changed, ms", audit["found_ms"], None),
    ]
    found = [
        row(name, value, goal=goal and f"<= {goal}", met=goal and value <= goal) for name, value, goal in figures
    ]
    what = f"{audit['changed_byte']}: {audit['broken_count']} breaks, the first: {audit['broken'][0]['difference']}"
    found.append(row(f"one byte changed on disk ({what})", None, goal="found", met=audit["found"]))
    return found


def main() -> None:
    cells = Cells(sys.argv[1])
    found = rows(cells)
    if cells.disturbed():
        print("\nOther work kept the cores busy: an idle machine is faster.")
    for r in found:
        print(f"{r['metric']:<80}{'' if r['ours'] is None else r['ours']:>10}  {verdict(r)}")
    write(sys.argv[2], "recovery", "--quick" in sys.argv, len(cells.by_name["restart"]), cells, found)


main()
