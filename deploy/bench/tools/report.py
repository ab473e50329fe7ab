"""Holds the latencies of tool calls, and of searches, against their goals."""

import sys

from measured import Cells, number, row, verdict, write

# A warm box of bubblewrap may cost this much of starting the runner by itself.
WARM_BUBBLEWRAP = 5
# So soon after its limit a runaway must be gone, in milliseconds.
GONE_MS = 500
# A warm container may cost this much more than starting the runner by itself, in milliseconds.
WARM_DOCKER_MS = 10
# Starting a box may cost this much of making it by hand.
COLD_DOCKER = 1.2
COLD_BUBBLEWRAP = 1.3
# A search may take this much of `rg`'s time.
SEARCH = 1.3


def main() -> None:
    cells, file, quick = Cells(sys.argv[1]), sys.argv[2], "--quick" in sys.argv
    disturbed = cells.disturbed()

    def goal(met: bool | None) -> bool | None:
        return None if disturbed else met

    rows = latencies(cells, goal) + searches(cells, goal)
    for found in rows:
        beside = f"{found['peer_name']} {number(found['peer'])}" if found["peer_name"] else ""
        print(f"  {found['metric']:<60} {number(found['ours']):>10}  {beside:<32} {verdict(found)}")
    write(file, "tools", quick, 1, cells, rows)


def latencies(cells: Cells, goal) -> list[dict]:
    """One small call, a built-in tool and a command; what runs away, and what many calls leave."""
    rows = []
    for tier, by_hand, ratio in (("bubblewrap", "bwrap", COLD_BUBBLEWRAP), ("docker", "docker run", COLD_DOCKER)):
        if cells(tier, "warm_ms") is None:
            continue
        plain = cells(tier, "plain_ms")
        for what, warm, cold, hand in (
            ("read_file", "warm_ms", "cold_ms", "by_hand_ms"),
            ("the command true", "command_warm_ms", "command_cold_ms", "command_by_hand_ms"),
        ):
            warm, cold, hand = cells(tier, warm), cells(tier, cold), cells(tier, hand)
            if tier == "docker":
                within, met = f"at most {WARM_DOCKER_MS} ms more", warm - plain <= WARM_DOCKER_MS
            else:
                within, met = f"at most {WARM_BUBBLEWRAP} times", warm <= WARM_BUBBLEWRAP * plain
            metric = f"{tier}: {what}, in a box that waits, ms"
            rows.append(row(metric, warm, plain, "the runner by itself", within, goal(met)))
            within = f"at most {ratio} times"
            rows.append(row(f"{tier}: {what}, in a new box, ms", cold, hand, by_hand, within, goal(cold <= ratio * hand)))
        rows.append(row(f"{tier}: ready after the self-test, ms", cells(tier, "ready_ms")))
        rows.append(row(f"{tier}: 64 calls at once, ms", cells(tier, "together_ms")))
        failed = cells(tier, "together_failed")
        rows.append(row(f"{tier}: of which failed", failed, goal="none", met=failed == 0))
        runaways, slowest = cells(tier, "runaways"), cells(tier, "runaway_slowest_ms")
        late, within = cells(tier, "runaways_late"), f"at most {GONE_MS}"
        rows.append(row(f"{tier}: slowest of {runaways:.0f} runaways gone, ms", slowest, goal=within, met=goal(late == 0)))
        calls, failed, left = cells(tier, "calls"), cells(tier, "calls_failed"), cells(tier, "calls_left")
        metric = f"{tier}: {calls:.0f} calls, failed or left behind"
        rows.append(row(metric, failed + left, goal="none", met=failed + left == 0))
    return rows


def searches(cells: Cells, goal) -> list[dict]:
    """Large trees; whether both find the same does not depend on who else is busy."""
    rows = []
    within = f"at most {SEARCH} times"
    for tier in ("bubblewrap", "docker"):
        for kind in ("rare", "common", "regex"):
            name = f"search {tier} {kind}"
            if cells(name, "rg_ms") is None:
                continue
            what = {"rare": "a rare text", "common": "a common text", "regex": "a pattern"}[kind]
            rg = cells(name, "rg_ms")
            for box, key in (("a box that waits", "warm_ms"), ("a new box", "cold_ms")):
                ours = cells(name, key)
                metric = f"{tier}: search for {what}, {box}, ms"
                rows.append(row(metric, ours, rg, "rg", within, goal(ours <= SEARCH * rg)))
            equal = all(result["equal"] for result in cells.by_name[name])
            lines, within_rg = cells(name, "matches"), cells(name, "rg_matches")
            rows.append(row(f"{tier}: lines with {what}", lines, within_rg, "rg", "the same, and columns", equal))
    return rows


main()
