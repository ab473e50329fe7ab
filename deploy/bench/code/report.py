"""Holds parsing, indexing and finding code against their goals.

report.py CELLS RESULTS [--quick]
"""

import sys

from measured import Cells, number, row, verdict, write

# A cold pass over a tree may take this much of ctags's time.
COLD = 4
# Of the functions and types that ctags finds, this share must be found, in every language.
RECALL = 0.97
# Indexing again where nothing changed, milliseconds, and this much of ctags's time for as many bytes.
UNCHANGED_MS, UNCHANGED = 2_000, 0.1
# An edited file is found by what is new, milliseconds.
EDIT_MS = 300


def main() -> None:
    cells, file, quick = Cells(sys.argv[1]), sys.argv[2], "--quick" in sys.argv
    disturbed = cells.disturbed()

    def goal(met: bool) -> bool | None:
        return None if disturbed else met

    rows = definitions(cells, goal) + indexing(cells, goal) + finding(cells)
    for found in rows:
        beside = f"{found['peer_name']} {number(found['peer'])}" if found["peer_name"] else ""
        print(f"  {found['metric']:<72} {number(found['ours']):>10}  {beside:<24} {verdict(found)}")
    for missed in cells.by_name["retrieval"][0]["missed"]:
        print(f"  not found: {missed}")
    write(file, "code", quick, len(cells.by_name["definitions"]), cells, rows)


def definitions(cells: Cells, goal) -> list[dict]:
    """Both on the same tree; what they find is compared where both say that they know the language and the kind."""
    ours, theirs = cells("definitions", "seconds"), cells("ctags", "seconds")
    rows = [
        row("definitions of a tree, cold, s", ours, theirs, "universal-ctags", f"at most {COLD} times", goal(ours <= COLD * theirs)),
        row("the same, MB/s", cells("definitions", "megabytes_per_second")),
    ]
    for language, found in sorted(cells.by_name["recall"][0]["compared"].items()):
        recall = found["all"]["found"] / found["all"]["of"]
        metric = f"{language}: of ctags's {found['all']['of']} functions and types, found"
        rows.append(row(metric, recall, goal=f"at least {RECALL}", met=recall >= RECALL))
        clean = found.get("clean")
        if clean and recall < RECALL:
            metric = f"{language}: the same in files without syntax errors, {clean['of']}"
            rows.append(row(metric, clean["found"] / clean["of"]))
    return rows


def indexing(cells: Cells, goal) -> list[dict]:
    words, vectors = cells.by_name["words"][0], cells.by_name["vectors"][0]
    # ctags's time for as many bytes as were indexed.
    speed = cells.by_name["definitions"][0]["megabytes"] * 1e6 / cells("ctags", "seconds")
    theirs = words["bytes"] / speed * 1000
    unchanged, files = words["unchanged_ms"], words["files"]
    edit, edit_goal = vectors["edit_ms"], f"at most {EDIT_MS}"
    return [
        row(f"{files} files indexed without vectors, s", words["cold_ms"] / 1000),
        row("the same, files/s", files / words["cold_ms"] * 1000),
        row(
            f"{files} unchanged files indexed again, ms",
            unchanged,
            theirs,
            "ctags, as many bytes",
            f"at most {UNCHANGED_MS}, and {UNCHANGED} times",
            goal(unchanged <= UNCHANGED_MS and unchanged <= UNCHANGED * theirs),
        ),
        row(f"{vectors['files']} files indexed with vectors, files/s", vectors["files"] / vectors["cold_ms"] * 1000),
        row("the same, pieces embedded/s", vectors["embedded"] / vectors["cold_ms"] * 1000),
        row("the same, share of the time spent waiting for vectors", vectors["embedding_share"]),
        row("a file edited, until it is found by what is new, ms", edit, goal=edit_goal, met=goal(edit <= EDIT_MS)),
        row(f"a search by words in {words['pieces']} pieces, ms", words["search_ms"], words["rg_ms"], "rg, any of them"),
        row(f"a search by both in {vectors['pieces']} pieces, ms", vectors["search_ms"]),
    ]


def finding(cells: Cells) -> list[dict]:
    found = cells.by_name["retrieval"][0]
    words, meaning, both = found["words"], found["meaning"], found["both"]
    what = f"of {found['questions']} questions, a right file among the first five"
    return [
        row(f"{what}, by words", words),
        row(f"{what}, by meaning", meaning),
        row(f"{what}, by both", both, goal="above each alone", met=both > max(words, meaning)),
    ]


main()
