"""Shapes of real lines: this repository's own sources with every name and word replaced by a random one.

Keywords, punctuation, indentation and a few names that every program has stay; all else is drawn anew each time, so a
line is never seen twice. Files are divided into a training and a held-out part by a hash of their path.
"""

from __future__ import annotations

import os
import random
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[4]
SUFFIXES = (".rs", ".py", ".md", ".toml")
SKIPPED = {"target", "node_modules", "venv", ".git", ".cache", "run"}
WIDEST = 220  # wider lines are data
HELD_SHARE = 6  # one file in so many is held out

KEPT = frozenset(
    """
    as async await break const continue crate dyn else enum extern false fn for if impl in let loop match mod move mut
    pub ref return self Self static struct super trait true type union unsafe use where while macro_rules def class
    import from None True False with elif not and or is lambda yield try except raise pass assert del global
    str bool char u8 u16 u32 u64 u128 usize i8 i16 i32 i64 isize f16 f32 f64 int float list dict tuple set object
    Vec Option Some Ok Err Result String Box Arc Rc HashMap BTreeMap HashSet Path PathBuf Duration Instant Debug Clone
    Copy Default PartialEq Eq Hash Ord Serialize Deserialize From Into Iterator Send Sync Fn FnMut FnOnce Sized Drop
    std core alloc serde tokio json fmt io println format vec assert_eq unwrap expect clone iter map collect into len
    push insert get derive cfg test tests allow inline must_use to_owned to_string is_empty new default print range
    isinstance __init__ __name__ __main__ os sys re typing pathlib dataclass version workspace dependencies package
    a an the of to at on by it its this that these those which who what when how no so than then there they them their
    be been are was were has have had do does did can may must will would should only also more most other each every
    all any both one two very into out up over under between after before again such own same too if but nor while
    """.split()
)
DEFINITION = re.compile(
    r"^(?:[\w()<>:@,.*]+\s+)*(?:fn|struct|enum|trait|mod|type|const|static|macro_rules!|class|def)\s+(?:mut\s+)?"
    r"([A-Za-z_]\w*)"
)
PIECES = re.compile(r"([A-Za-z_][A-Za-z0-9_]*|[0-9]+)")
PARTS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^A-Za-z]+")


def case_of(name: str) -> str:
    """`upper`, `camel` or `snake`."""
    letters = name.strip("_0123456789")
    if len(letters) > 1 and letters.isupper():
        return "upper"
    return "camel" if letters[:1].isupper() else "snake"


@dataclass(frozen=True)
class Line:
    """A line in pieces: text that stays, and places of names and numbers."""

    indent: str
    pieces: tuple[str, ...]
    names: tuple[int, ...]
    numbers: tuple[int, ...]
    defined: str  # the name it defines, or nothing


def parse(text: str) -> Line:
    """One line of a source file."""
    body = text.strip()
    pieces = tuple(piece for piece in PIECES.split(body) if piece)
    names = tuple(k for k, piece in enumerate(pieces) if re.match(r"[A-Za-z_]", piece) and piece not in KEPT)
    numbers = tuple(k for k, piece in enumerate(pieces) if piece[0].isdigit())
    match = DEFINITION.match(body)
    defined = match[1] if match and match[1] not in KEPT and "//" not in body[: match.start(1)] else ""
    return Line(text[: len(text) - len(text.lstrip())].replace("\t", "    "), pieces, names, numbers, defined)


@cache
def files(split: str) -> tuple[tuple[Line, ...], ...]:
    """The lines of every source file of one part."""
    found = []
    for folder, folders, names in os.walk(ROOT):
        folders[:] = sorted(name for name in folders if name not in SKIPPED and not name.startswith("."))
        for name in sorted(names):
            path = Path(folder, name)
            held = zlib.crc32(str(path.relative_to(ROOT)).encode()) % HELD_SHARE == 0
            if name.endswith(SUFFIXES) and held == (split == "held"):
                lines = path.read_text(errors="ignore").splitlines()
                found.append(tuple(parse(line) for line in lines if len(line) <= WIDEST))
    return tuple(lines for lines in found if len(lines) > 4)


class Shapes:
    """Draws lines and blocks of lines."""

    def __init__(self, split: str, source: random.Random, word: Callable[[], str]) -> None:
        self.random, self.word = source, word
        self.files = files(split)
        self.sizes = [len(lines) for lines in self.files]
        self.lines = [line for lines in self.files for line in lines if line.names]
        self.definitions: dict[str, list[tuple[int, int]]] = {"upper": [], "camel": [], "snake": []}
        for index, lines in enumerate(self.files):
            for number, line in enumerate(lines):
                if line.defined:
                    self.definitions[case_of(line.defined)].append((index, number))

    def renamed(self, name: str, words: dict[str, str]) -> str:
        """Another name of the same form; `words` keeps one replacement for each word."""
        result = []
        for part in PARTS.findall(name):
            small = part.lower()
            if len(part) == 1 or not part.isalpha() or small in KEPT:
                result.append(part)
                continue
            if small not in words:
                words[small] = self.word()
            new = words[small]
            result.append(new.upper() if part.isupper() else new.capitalize() if part[0].isupper() else new)
        return "".join(result)

    def render(
        self, line: Line, words: dict[str, str], given: dict[str, str], at: tuple[int, str] | None = None
    ) -> str:
        """The line with new names: `given` for whole names, `at` for one place, else words drawn once each."""
        pieces = list(line.pieces)
        for index in line.names:
            pieces[index] = given.get(pieces[index]) or self.renamed(pieces[index], words)
        for index in line.numbers:
            if len(pieces[index]) < 6 and self.random.random() < 0.7:
                low = 10 ** (len(pieces[index]) - 1) if len(pieces[index]) > 1 else 0
                pieces[index] = str(self.random.randint(low, 10 ** len(pieces[index]) - 1))
        if at:
            pieces[at[0]] = at[1]
        return "".join(pieces)

    def line(self) -> str:
        """Any line, without its indentation."""
        return self.render(self.random.choice(self.lines), {}, {})

    def use(self, name: str) -> str:
        """A line in which `name` stands for one of the names."""
        for _ in range(4):
            line = self.random.choice(self.lines)
            places = [k for k in line.names if case_of(line.pieces[k]) == case_of(name) and len(line.pieces[k]) > 2]
            if places:
                return self.render(line, {}, {}, (self.random.choice(places), name))
        return self.render(line, {}, {}, (self.random.choice(line.names), name))

    def block(self, count: int, top: bool) -> list[str]:
        """Consecutive lines of one file, indented; from its first line if `top`."""
        lines = self.random.choices(self.files, None if top else self.sizes)[0]
        start = 0 if top else self.random.randrange(len(lines))
        words: dict[str, str] = {}
        return [line.indent + self.render(line, words, {}) for line in lines[start : start + count]]

    def definition(self, name: str, count: int) -> list[str]:
        """A line that defines `name` and the lines after it."""
        index, number = self.random.choice(self.definitions[case_of(name)] or self.definitions["snake"])
        lines = self.files[index][number : number + count]
        words: dict[str, str] = {}
        given = {lines[0].defined: name}
        return [line.indent + self.render(line, words, given) for line in lines]
