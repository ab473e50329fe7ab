"""Medians over the rounds, the table, and the results file.

report.py CELLS RESULTS [--quick]
"""

import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path


def rows(cells: dict[str, list[dict]]) -> list[dict]:
    def median(cell, *path):
        def at(result):
            for key in path:
                result = result[key]
            return result

        return statistics.median(at(result) for result in cells[cell])

    open_ = cells["restart"][0]["open"]
    restart, standby = f"kill -9 of the orchestrator, {open_} open", f"the same, by a standby, {open_} open"
    audit = cells["audit"][0]
    audited = f"audit of {audit['events']} messages"
    figures = [
        (f"{restart}: first resumed effect, ms after restart", median("restart", "first_effect_ms"), 1000),
        (f"{restart}: all of them, ms after restart", median("restart", "all_effects_ms"), None),
        (f"{standby}: first resumed effect, ms after the kill", median("standby", "first_effect_ms"), 3000),
        (f"{standby}: all of them, ms after the kill", median("standby", "all_effects_ms"), 3000),
        ("kill -9 of a worker in mid-answer: loss in the log, p50 ms", median("worker", "lost_ms", "p50"), 300),
        ("kill -9 of a worker in mid-answer: loss in the log, slowest ms", median("worker", "lost_ms", "max"), 300),
        ("cancel of an agent: three leaves told, p50 ms", median("cancel", "all_leaves_told_ms", "p50"), None),
        ("cancel of an agent: three leaves told, p99 ms", median("cancel", "all_leaves_told_ms", "p99"), 250),
        (f"{audited}, ms", audit["proven_ms"], None),
        (f"{audited} with one byte changed, ms", audit["found_ms"], None),
    ]
    found = [
        {"metric": name, "ours": round(value, 1), "goal": goal, "met": None if goal is None else value <= goal}
        for name, value, goal in figures
    ]
    what = f"{audit['changed_byte']}: {audit['broken_count']} breaks, the first: {audit['broken'][0]['difference']}"
    found.append({"metric": "the changed byte is found", "ours": what, "goal": "found", "met": audit["found"]})
    return found


def main() -> None:
    file, results, quick = Path(sys.argv[1]), Path(sys.argv[2]), "--quick" in sys.argv
    cells: dict[str, list[dict]] = {}
    for line in file.read_text().splitlines():
        cell = json.loads(line)
        cells.setdefault(cell["cell"], []).append(cell["result"])
    table = rows(cells)
    for row in table:
        goal = "" if row["goal"] is None else f"goal {row['goal']}: {'met' if row['met'] else 'MISSED'}"
        print(f"  {row['metric']:<78} {row['ours']!s:>10}  {goal}")
    commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
    report = {
        "suite": "recovery",
        "commit": commit.stdout.strip(),
        "machine": {
            "cores": os.cpu_count(),
            "kernel": platform.release(),
            "busy_with_other_work_cores": [other["busy_cores"] for other in cells["others"]],
        },
        "quick": quick,
        "rows": table,
    }
    results.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
