"""Holds the latencies of tool calls against their goals."""

import sys

from measured import Cells, number, row, verdict, write

# A warm container may cost this much more than starting the runner by itself, in milliseconds.
WARM_DOCKER_MS = 10
# Starting a box may cost this much of making it by hand.
COLD_DOCKER = 1.2
COLD_BUBBLEWRAP = 1.3


def main() -> None:
    cells, file, quick = Cells(sys.argv[1]), sys.argv[2], "--quick" in sys.argv
    disturbed = cells.disturbed()

    def goal(met: bool | None) -> bool | None:
        return None if disturbed else met

    rows = []
    for tier, by_hand, ratio in (("bubblewrap", "bwrap", COLD_BUBBLEWRAP), ("docker", "docker run", COLD_DOCKER)):
        if cells(tier, "warm_ms") is None:
            continue
        warm, cold = cells(tier, "warm_ms"), cells(tier, "cold_ms")
        plain, hand = cells(tier, "plain_ms"), cells(tier, "by_hand_ms")
        within = f"at most {WARM_DOCKER_MS} ms more" if tier == "docker" else None
        met = goal(warm - plain <= WARM_DOCKER_MS) if within else None
        rows.append(row(f"{tier}: a call with a box that waits, ms", warm, plain, "the runner by itself", within, met))
        within = f"at most {ratio} times"
        rows.append(row(f"{tier}: a call without, ms", cold, hand, by_hand, within, goal(cold <= ratio * hand)))
        rows.append(row(f"{tier}: ready after the self-test, ms", cells(tier, "ready_ms")))
        rows.append(row(f"{tier}: 64 calls at once, ms", cells(tier, "together_ms")))
        failed = cells(tier, "together_failed")
        rows.append(row(f"{tier}: of which failed", failed, goal="none", met=failed == 0))
    for found in rows:
        beside = f"{found['peer_name']} {number(found['peer'])}" if found["peer_name"] else ""
        print(f"  {found['metric']:<52} {number(found['ours']):>10}  {beside:<32} {verdict(found)}")
    write(file, "tools", quick, 1, cells, rows)


main()
