"""Questions about a real workspace, put to a running server, judged by what its own tools print.

Names and paths are drawn from the workspace; the wording is that of `generate.py`. The answer must be right character
for character. What is right follows from `POST /internal/tools/execute` with the calls that should be made, cut as the
server cuts results for a model with this window.

vlinders up --models DIR --workspace DIR --data DATA --http 127.0.0.1:8080
python evaluate_real.py --http http://127.0.0.1:8080 --secret DATA/secret --workspace DIR --count 40
"""

from __future__ import annotations

import argparse
import json
import os
import re
import urllib.error
import urllib.request
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from generate import (
    BEGIN,
    END,
    IMPORTS,
    LINE_SHARE,
    LINES,
    MIXED,
    PARALLEL,
    READ,
    SYMBOLS,
    TWO_STEP,
    USAGE,
    WHERE,
    World,
    ask,
    quoted,
)
from shapes import DEFINITION, KEPT

KINDS = ("where", "usage", "imports", "symbols", "lines", "read", "two_step", "parallel", "mixed")
CODE = (".rs", ".py", ".js", ".ts", ".tsx", ".go")
TEXT = (*CODE, ".md", ".toml", ".txt", ".json", ".yml", ".yaml", ".sh", ".html", ".c", ".h", ".css")
Call = tuple[str, dict[str, str | int]]


class Server:
    """A running `vlinders up`."""

    def __init__(self, http: str, secret: str, workspace: str) -> None:
        self.http, self.secret, self.workspace = http.rstrip("/"), secret, workspace

    def post(self, path: str, **body: object) -> dict:
        """One request; a refusal is returned like an answer."""
        data = json.dumps({**body, "workspace": self.workspace}).encode()
        request = urllib.request.Request(self.http + path, data, {"X-Internal-Auth": self.secret})
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            return {"response": error.read().decode(errors="ignore"), "tool_calls": []}

    def tool(self, name: str, arguments: dict[str, str | int], longest: int) -> str:
        """What the model reads as the result of a call."""
        answer = self.post("/internal/tools/execute", tool_name=name, arguments=arguments)
        if not answer.get("success"):
            return f"error: {answer.get('error') or answer.get('response')}"
        result = answer["result"]
        if name == "read_file":
            widest = longest // LINE_SHARE
            lines = result.split("\n")
            result = "\n".join(line if len(line) <= widest else line[:widest] + "…" for line in lines)
        return cut(result, longest)


def cut(text: str, longest: int) -> str:
    """A result as the server cuts it: at a line."""
    mark = "\n... (cut)"
    if len(text.encode()) <= longest:
        return text
    shown = text.encode()[: longest - len(mark)].decode(errors="ignore")
    end = shown.rfind("\n")
    return (shown[:end] if end >= 0 else shown) + mark


# --- what is right -----------------------------------------------------------------------------------------------


@dataclass
class Truth:
    """Computes the right answers."""

    server: Server
    longest: int

    def search(self, name: str) -> tuple[str, re.Match[str] | None, str]:
        """The count, the first hit, and what is to be said when there is none."""
        text = self.server.tool("search_code", {"query": name}, self.longest)
        if text.startswith("error: "):
            return "", None, f"The tool failed: {text[7:]}."
        hit = re.match(r"(\S+) matches\n((.*?):(\d+)): ", text)
        return hit[1] if hit else "", hit, f"I found no match for {name}."

    def where(self, name: str) -> str:
        """Where a name is defined."""
        _, hit, none = self.search(name)
        return f"{name} is defined in {hit[2]}." if hit else none

    def usage(self, name: str) -> str:
        """How often a name occurs."""
        count, hit, none = self.search(name)
        return f"{name} has {count} matches, the first in {hit[2]}." if hit else none

    def outline(self, path: str, what: str) -> str:
        """Imports or symbols of a file."""
        text = self.server.tool("analyze_code", {"path": path}, self.longest)
        if text.startswith("error: "):
            return f"The tool failed: {text[7:]}."
        line = re.search(rf"^{what}: (.*)$", text, re.MULTILINE)
        if not line:
            return f"The list of {what} in {path} was cut off."
        return f"{path} {'imports' if what == 'imports' else 'defines'} {'nothing' if line[1] == 'none' else line[1]}."

    def head(self, path: str, **place: int) -> str | None:
        """First line that is shown, without indentation; None for an empty file."""
        text = self.server.tool("read_file", {"path": path, **place}, self.longest)
        if text.startswith("error: "):
            raise LookupError(f"The tool failed: {text[7:]}.")
        return None if text == "the file is empty" else text.split("\n")[0].partition(": ")[2].strip()

    def read(self, path: str) -> str:
        """How a file starts."""
        try:
            head = self.head(path)
        except LookupError as error:
            return str(error)
        start = "an empty line" if head == "" else f"`{head}`"
        return f"{path} is empty." if head is None else f"{path} starts with {start}."

    def lines(self, path: str, first: int, last: int) -> str:
        """How a range of lines starts."""
        try:
            head = self.head(path, start=first, end=last)
        except LookupError as error:
            return str(error)
        return f"Lines {first}-{last} of {path} start with {f'`{head}`' if head else 'an empty line'}."

    def two_step(self, name: str) -> tuple[str, list[Call]]:
        """A name and the code there; also the calls."""
        _, hit, none = self.search(name)
        calls: list[Call] = [("search_code", {"query": name})]
        if not hit:
            return none, calls
        calls.append(("read_file", {"path": hit[3], "start": int(hit[4])}))
        try:
            return f"{name} is in {hit[2]}: `{self.head(hit[3], start=int(hit[4]))}`.", calls
        except LookupError as error:
            return str(error), calls


# --- questions ---------------------------------------------------------------------------------------------------


class Workspace:
    """Names and paths to ask about."""

    def __init__(self, root: Path) -> None:
        self.sources: list[str] = []
        self.texts: list[tuple[str, int]] = []
        names: dict[str, None] = {}
        others: dict[str, None] = {}
        for folder, folders, files in os.walk(root):
            folders[:] = sorted(f for f in folders if f not in ("target", "node_modules", "venv") and f[0] != ".")
            for file in sorted(files):
                path = Path(folder, file)
                if not (file.endswith(TEXT) or "." not in file) or path.stat().st_size > 200_000 or path.is_symlink():
                    continue
                text = path.read_bytes().decode(errors="replace")
                relative = str(path.relative_to(root))
                if "\0" in text or not text or " " in relative:
                    continue
                self.texts.append((relative, len(text.splitlines())))
                if not file.endswith(CODE):
                    continue
                self.sources.append(relative)
                for line in text.splitlines():
                    match = DEFINITION.match(line.strip())
                    if match and len(match[1]) > 2 and match[1] not in KEPT:
                        names[match[1]] = None
                others |= dict.fromkeys(re.findall(r"\b[A-Z]\w+::[a-z]\w+\b|\b[A-Za-z]\w{4,}\b", text))
        self.names = list(names)
        self.others = [name for name in others if name not in KEPT]
        self.qualified = [name for name in self.others if "::" in name]

    def name(self, world: World) -> str:
        """Mostly something that is defined here."""
        x = world.random.random()
        if x < 0.08 and self.qualified:
            return world.pick(self.qualified)
        return world.pick(self.names if x < 0.85 and self.names else self.others)


@dataclass
class Question:
    """One question, its right answer and the right calls."""

    text: str
    answer: str
    calls: list[Call]


def draw(kind: str, world: World, place: Workspace, truth: Truth) -> Question:
    """A question of one kind."""

    def worded(forms: tuple[str, ...], **values: str | int) -> str:
        shown = {key: value if isinstance(value, int) else quoted(world, value) for key, value in values.items()}
        return ask(world, forms, **shown)[0][0].removeprefix(f"{BEGIN}user\n").removesuffix(f"{END}\n")

    name, path = place.name(world), world.pick(place.sources)
    search: Call = ("search_code", {"query": name})
    match kind:
        case "where":
            return Question(worded(WHERE, x=name), truth.where(name), [search])
        case "usage":
            return Question(worded(USAGE, x=name), truth.usage(name), [search])
        case "imports" | "symbols":
            text = worded(IMPORTS if kind == "imports" else SYMBOLS, p=path)
            return Question(text, truth.outline(path, kind), [("analyze_code", {"path": path})])
        case "lines":
            path, length = world.pick(place.texts)
            first = world.random.randint(1, 9 if world.chance(0.25) else max(1, length))
            last = first + world.random.randint(1, world.pick((3, 9, 20, 80)))
            call: Call = ("read_file", {"path": path, "start": first, "end": last})
            return Question(worded(LINES, a=first, b=last, p=path), truth.lines(path, first, last), [call])
        case "read":
            path = world.pick(place.texts)[0]
            return Question(worded(READ, p=path), truth.read(path), [("read_file", {"path": path})])
        case "two_step":
            return Question(worded(TWO_STEP, x=name), *truth.two_step(name))
        case "parallel":
            other = place.name(world)
            text = worded(PARALLEL, x=name, y=other)
            return Question(text, f"{truth.where(name)} {truth.where(other)}", [search, (search[0], {"query": other})])
    other = world.pick(place.sources)
    kinds, forms = world.pick(MIXED)
    calls, answers = [], []
    for part, file in zip(kinds, (path, path) if "where" in kinds else (path, other), strict=True):
        if part == "where":
            calls.append(search)
            answers.append(truth.where(name))
        elif part == "read":
            calls.append(("read_file", {"path": file}))
            answers.append(truth.read(file))
        else:
            calls.append(("analyze_code", {"path": file}))
            answers.append(truth.outline(file, part))
    return Question(worded(forms, x=name, p=path, o=other), " ".join(answers), calls)


def put(server: Server, agent: str, question: Question) -> tuple[bool, bool, str, list[Call]]:
    """Asks; returns whether the calls and the answer are right, and what they were."""
    answer = server.post("/internal/agent", agent_type=agent, instruction=question.text, config={"temperature": 0})
    calls = [(call["name"], call["arguments"]) for call in answer.get("tool_calls", [])]
    return calls == question.calls, answer.get("response") == question.answer, answer.get("response", ""), calls


def main() -> None:
    """Command line."""
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--http", default="http://127.0.0.1:8080")
    parser.add_argument("--secret", type=Path, required=True, help="file with the server's secret")
    parser.add_argument("--workspace", type=Path, default=here.resolve().parents[3], help="as the server knows it")
    parser.add_argument("--agent", default="coder")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--count", type=int, default=40, help="questions per kind")
    parser.add_argument("--seed", type=int, default=50_000)
    parser.add_argument("--window", type=int, default=1024, help="the model's, which decides how results are cut")
    parser.add_argument("--pool", type=Path, default=here / "pool.json")
    parser.add_argument("--parallel", type=int, default=4, help="questions at once")
    parser.add_argument("--failures", type=int, default=0, help="failures to print per kind")
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    options = parser.parse_args()
    server = Server(options.http, options.secret.read_text().strip(), str(options.workspace.resolve()))
    place, truth = Workspace(options.workspace.resolve()), Truth(server, options.window // 4 * 5 // 2)
    pool = json.loads(options.pool.read_text())
    rows: dict[str, tuple[int, int]] = {}
    failures: dict[str, list[dict[str, object]]] = {}
    with ThreadPoolExecutor(options.parallel) as threads:
        for kind in options.kinds:
            world = World(pool, "held", options.seed + zlib.crc32(kind.encode()) % 1000)
            questions = [draw(kind, world, place, truth) for _ in range(options.count)]
            results = list(threads.map(lambda question: put(server, options.agent, question), questions))
            rows[kind] = sum(calls for calls, _, _, _ in results), sum(answer for _, answer, _, _ in results)
            failures[kind] = [
                {"question": q.text, "want": q.answer, "got": got, "want_calls": q.calls, "calls": made}
                for q, (_, right, got, made) in zip(questions, results, strict=True)
                if not right
            ][: options.failures]
    results = {kind: [round(100 * n / options.count, 1) for n in row] for kind, row in rows.items()}
    results["all"] = [round(sum(row[k] for row in results.values()) / len(results), 1) for k in range(2)]
    if options.json:
        print(json.dumps({"seed": options.seed, "count": options.count, "results": results, "failures": failures}))
        return
    print(f"seed {options.seed}, {options.count} questions per kind, {len(place.sources)} source files\n")
    print("| kind, % | calls | answer |\n|---|---|---|")
    print("\n".join(f"| {kind} | {calls} | {answer} |" for kind, (calls, answer) in results.items()))
    for kind, items in failures.items():
        for item in items:
            print(f"\n[{kind}] {item['question']}\n  want {item['want']}")
            print(f"  got  {item['got'][:300]}\n  calls {str(item['calls'])[:300]}")


if __name__ == "__main__":
    main()
