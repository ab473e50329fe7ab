"""What the reports of all suites share: the cells of a run, rows of a table, the machine, and the results file."""

import json
import os
import platform
import statistics
import subprocess
from pathlib import Path


class Cells:
    """Results by cell; each figure is the median over the rounds, `None` where a system has none."""

    def __init__(self, file: str) -> None:
        self.by_name: dict[str, list[dict]] = {}
        for line in Path(file).read_text().splitlines():
            cell = json.loads(line)
            self.by_name.setdefault(cell["cell"], []).append(cell["result"])

    def __call__(self, name: str, *path: str) -> float | None:
        def at(result):
            for key in path:
                result = result[key]
            return result

        results = self.by_name.get(name)
        return statistics.median(at(result) for result in results) if results else None

    def busy(self) -> list[float]:
        """Cores that other work kept busy, at several moments."""
        return [result["busy_cores"] for result in self.by_name["others"]]

    def disturbed(self) -> bool:
        """Whether other work had more than a quarter of the cores at some moment."""
        return max(self.busy()) > 0.25 * os.cpu_count()


def row(metric, ours, peer=None, peer_name=None, goal=None, met=None) -> dict:
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


def number(value: float | None) -> str:
    return "" if value is None else f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"


def verdict(found: dict) -> str:
    """A row's goal and whether it was met."""
    met = {None: "undecided" if found["goal"] else "", True: "met", False: "MISSED"}[found["met"]]
    return f"{found['goal'] or ''}  {met}"


def write(file: str, suite: str, quick: bool, rounds: int, cells: Cells, rows: list[dict]) -> None:
    results = {
        "suite": suite,
        "commit": commit(),
        "machine": machine(cells),
        "quick": quick,
        "rounds": rounds,
        "rows": rows,
    }
    Path(file).write_text(json.dumps(results, indent=1) + "\n")
    print(f"\nwritten to {file}")


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
        "busy_with_other_work_cores": cells.busy(),
    }


def commit() -> str:
    def git(*command):
        return subprocess.run(["git", *command], capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":!deploy/bench/results")
    return git("rev-parse", "--short=12", "HEAD") + ("-changed" if changed else "")
