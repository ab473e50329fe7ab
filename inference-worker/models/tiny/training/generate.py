"""Endless synthetic agent conversations, and the word pool they are made of.

A conversation is a list of segments `(text, kind)`. Segments of kind `CONTEXT` carry no loss; the others are what the
assistant writes: fixed wording (`TEMPLATE`), values that must be copied from the conversation (`VALUE`) and tool
names (`NAME`). Values are always copied, never computed.

`python generate.py pool --out pool.json ROOT...` collects a pool from source trees;
`python generate.py show --count 5` prints sample conversations.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from shapes import Shapes

CONTEXT, TEMPLATE, VALUE, NAME = range(4)
Segments = list[tuple[str, int]]
T = TypeVar("T")
Split = Literal["train", "held"]
Kind = Literal["where", "imports", "symbols", "read"]

BEGIN, END = "<|im_start|>", "<|im_end|>"
SYSTEM = "You are Vlinder, a code assistant."
TOOLS: dict[str, tuple[str, ...]] = {
    "search_code": ("query", "path", "regex", "max"),
    "semantic_search": ("query",),
    "read_file": ("path", "start", "end"),
    "analyze_code": ("path",),
    "web_search": ("query",),
}
ALL_TOOLS = tuple(TOOLS)
USUAL_TOOLS = ("search_code", "read_file", "analyze_code")  # what a server without index and search provider offers
OTHER_TOOLS: dict[str, tuple[str, ...]] = {  # may be offered too; no question here needs them
    "remember": ("key", "value"),
    "recall": ("query",),
    "run_command": ("command",),
}
RESULT_BYTES = 640  # what the server shows of one tool result to a model with a window of 1,024 tokens
LINE_CHARS = 90  # what `search_code` shows of a line
LINE_SHARE = 12  # a line of a file takes at most this part of a result
NAMES_SHOWN = 8  # what `analyze_code` shows of each list

EXTENSIONS = (
    ["rs"] * 7 + ["py"] * 5 + "ts js tsx go toml md c h cpp java yaml yml json sh sql html css txt proto".split()
)
FOLDERS = (
    "src src src src lib tests crates app core server client utils api internal pkg docs examples bin benches scripts "
    "deploy config tools models data common runtime worker agents web gateway include test .github/workflows"
).split()
ROOT_FILES = (
    "README.md Cargo.toml main.py setup.py Makefile build.rs src/main.rs src/lib.rs pyproject.toml src/config.rs "
    "package.json Cargo.lock Dockerfile docker-compose.yml LICENSE CHANGELOG.md src/mod.rs .gitignore requirements.txt"
).split()
SYLLABLES = "ba ko ri ten mu za lor vi que sho pla nex dri fo gam hy jul wex ty cro".split()
TYPES = (
    "str u32 usize String bool int Vec<u8> Option<String> dict Path f32 &str Result<()> i64 list[str] Arc<Self>".split()
)
LETTERS = "abcdefghijklmnopqrstuvwxyz"
PLAIN_FILES = "LICENSE LICENSE Makefile Dockerfile README CHANGELOG NOTICE .gitignore .env Justfile COPYING".split()
SHORT_NAMES = (
    "new new new default fmt from drop next poll len get set run main tests open read write start stop call build "
    "parse check clone eq hash as_str is_empty into_inner push insert remove name id error Error Config State Kind"
).split()
COMMON_NAMES = (
    "line lines file files code calls called call find search read show open list path name names used use uses source "
    "symbols symbol imports import functions function modules module result results matches match error tool tools "
    "question answer text count start end execution executions where defined definition find_all main new run test"
).split()
STD_MODULES = (
    "collections sync path time io fmt str mem ops cmp net fs env error future pin task num iter process thread borrow "
    "convert hash rc cell marker any ffi ptr slice sync::atomic os::fd net::tcp collections::btree_map"
).split()
STD_NAMES = (
    "BTreeMap HashMap HashSet VecDeque Arc Mutex OnceLock Path PathBuf Duration Instant Read Write Ordering AtomicU64 "
    "AtomicBool Future Pin Context Poll Display Formatter Debug Cow Infallible Hash Rc Cell RefCell PhantomData Any"
).split()
PYTHON_MODULES = (
    "os sys re json time typing collections collections.abc pathlib dataclasses functools itertools logging asyncio "
    "argparse random math subprocess threading unittest __future__ contextlib datetime io abc enum numpy torch"
).split()
SENTENCE_WORDS = "the a is are of to in and that not no what who when with by it its one every only are has".split()
# Pieces of the tokenizer, so that each of them is something to copy.
PIECES = [
    piece
    for piece in json.loads(Path(__file__).parents[1].joinpath("tokenizer.json").read_text())["model"]["vocab"]
    if re.fullmatch("[a-z]{2,8}", piece)
] + ["vlinder", "vlinders", "linder"] * 12
RARE = "→ · – — … “ ” ’ é ü ß × ≥ ≤ µ ✓ ─ │ ▶ ° ² 中 文 🎉 § «".split()


class World:
    """Random source of words, identifiers, paths and code lines, from one half of the pool."""

    def __init__(self, pool: dict[str, dict[str, list[str]]], split: Split, seed: int) -> None:
        self.random = random.Random(seed)
        self.words = pool[split]["words"]
        self.identifiers = pool[split]["identifiers"]
        self.paths = pool[split]["paths"]
        self.real = 0.5 if split == "held" else 0.2
        self.shapes = Shapes(split, self.random, self.word)
        self.topic: list[str] = []
        self.on_topic = 0.0
        self.short = False

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.random.random() < probability

    def pick(self, items: Sequence[T]) -> T:
        """One of the items."""
        return self.random.choice(items)

    def turn_page(self) -> None:
        """A new conversation: usually one about few things, whose words come back everywhere, as in real code."""
        self.on_topic = 0.0
        self.topic = [self.word() for _ in range(self.pick((5, 8, 12, 20, 40)))]
        self.on_topic = self.pick((0.0, 0.0, 0.3, 0.5, 0.7, 0.85))
        self.short = self.chance(0.6)  # tools print little, which trains faster

    def word(self) -> str:
        """A lower-case word: one of the topic, or mostly from the pool, else made up."""
        if self.chance(self.on_topic):
            return self.pick(self.topic)
        x = self.random.random()
        if x < 0.70:
            return self.pick(self.words)
        if x < 0.80:
            return "".join(self.pick(PIECES) for _ in range(self.pick((1, 2, 2, 3))))
        if x < 0.93:
            return "".join(self.pick(SYLLABLES) for _ in range(self.random.randint(1, 3)))
        return "".join(self.pick(LETTERS) for _ in range(self.random.randint(2, 6)))

    def phrase(self, counts: tuple[int, ...] = (1, 2, 2, 3, 4)) -> str:
        """A few words, now and then with a version or a hyphen."""
        words = [self.word() for _ in range(self.pick(counts))]
        if self.chance(0.06):
            words.append(self.version())
        if self.chance(0.06):
            words[0] += "-" + self.word()
        return " ".join(words)

    def identifier(self) -> str:
        """A snake, camel or upper case identifier."""
        if self.chance(self.real):
            return self.pick(self.identifiers)
        words = [self.word() for _ in range(self.pick((1, 2, 2, 2, 3, 3, 4)))]
        x = self.random.random()
        if x < 0.03:
            words += [self.pick((self.pick(SENTENCE_WORDS), self.word())) for _ in range(self.random.randint(2, 6))]
        if x < 0.52:
            name = "_".join(words)
        elif x < 0.80:
            name = "".join(word.capitalize() for word in words)
        elif x < 0.90:
            name = words[0] + "".join(word.capitalize() for word in words[1:])
        else:
            name = "_".join(words).upper()
        if self.chance(0.05):
            name = "_" + name
        if self.chance(0.06):
            name += self.pick(("", "_", "_v")) + str(self.random.randint(0, 99))
        return name

    def asked(self) -> str:
        """A name as people ask for it: an identifier, now and then with what it belongs to."""
        x, name = self.random.random(), self.identifier()
        if x < 0.04:
            return self.pick(COMMON_NAMES)
        if x < 0.88:
            return name
        if x < 0.95:
            return self.pick((self.word(), self.word().capitalize(), self.identifier())) + "::" + name
        if x < 0.98:
            return self.pick((self.word(), "self", self.word().capitalize())) + "." + name
        return name + self.pick(("!", "(", "()"))

    def version(self) -> str:
        """A version number."""
        numbers = [self.pick((0, 0, 1, 1, 2, 3, self.random.randint(4, 60))) for _ in range(self.pick((2, 3, 3, 3)))]
        return ".".join(map(str, numbers))

    def folder(self) -> str:
        """One folder of a path."""
        x = self.random.random()
        if x < 0.5:
            return self.pick(FOLDERS)
        if x < 0.75:
            return self.word()
        if x < 0.9:
            return self.word() + self.pick("-_") + self.word()
        return self.word() + self.pick(("-", "-", "-", "_", "-v")) + self.version()

    def path(self) -> str:
        """A file path."""
        if self.chance(0.05):
            return self.pick(ROOT_FILES)
        if self.chance(0.07):
            name = self.pick((self.pick(PLAIN_FILES), self.pick(PLAIN_FILES), self.word(), self.word().upper()))
            return "/".join([*(self.folder() for _ in range(self.pick((0, 0, 0, 1, 2)))), name])
        if self.chance(self.real):
            return self.pick(self.paths)
        parts = [self.folder() for _ in range(self.pick((0, 1, 1, 1, 2, 2, 2, 3, 3, 4)))]
        stem = self.word()
        if self.chance(0.4):
            stem += self.pick(("_", "_", "-", ".")) + self.word()
        if self.chance(0.05):
            stem += self.pick(("", "_", "-", ".")) + str(self.random.randint(0, 30))
        prefix = "./" if self.chance(0.02) else ""
        return prefix + "/".join([*parts, stem]) + "." + self.pick(EXTENSIONS)

    def near(self, path: str) -> str:
        """A file that may well stand in the same repository as another one."""
        folder, _, name = path.rpartition("/")
        x, stem = self.random.random(), self.word()
        if self.chance(0.3):
            stem += self.pick("_-") + self.word()
        extension = name.rpartition(".")[2] if "." in name and self.chance(0.8) else self.pick(EXTENSIONS)
        if x < 0.3:
            return path
        if x < 0.55:
            return f"{folder}/{stem}.{extension}".lstrip("/")
        if x < 0.65:
            return f"{path.rpartition('.')[0] or path}/{stem}.{extension}"
        if x < 0.85:
            below = [self.folder() for _ in range(self.pick((0, 1, 1)))]
            parts = [*folder.split("/")[: self.random.randint(1, 3)], *below, f"{stem}.{extension}"]
            return "/".join(filter(None, parts))
        return self.path()

    def number(self) -> int:
        """A line number."""
        if self.chance(0.08):
            return self.random.randint(1, 12)
        return self.random.randint(1, 999) if self.chance(0.9) else self.random.randint(1000, 6000)

    def module(self) -> str:
        """What an import names."""
        x = self.random.random()
        if x < 0.4:
            return self.word()
        if x < 0.85:
            head = [self.pick(("std", "crate", "super", self.word(), self.word()))]
            head += [self.word() for _ in range(self.pick((0, 0, 1)))]
            return "::".join([*head, self.identifier()])
        return self.pick((".", "/", "-", "_")).join((self.word(), self.word()))

    def definition(self, name: str) -> str:
        """A line that defines `name`."""
        word, kind = self.word, self.pick(TYPES)
        head = "pub " if self.chance(0.4) else ""
        return self.pick(
            (
                f"{head}fn {name}({word()}: {kind}) {{",
                f"{head}fn {name}(&self) -> {kind} {{",
                f"{head}fn {name}(&mut self, {word()}: {kind}, {word()}: {self.pick(TYPES)}) -> {self.pick(TYPES)} {{",
                f"{head}async fn {name}() {{",
                f"{head}struct {name} {{",
                f"{head}struct {name}({kind});",
                f"{head}enum {name} {{",
                f"{head}trait {name} {{",
                f"{head}const {name}: {kind} = {self.number()};",
                f"{head}mod {name};",
                f"def {name}({word()}, {word()}):",
                f"def {name}(self) -> {kind}:",
                f"class {name}:",
                f"class {name}({word().capitalize()}):",
                f"function {name}({word()}) {{",
                f"export const {name} = ({word()}) => {{",
                f"{name} = {self.number()}",
            )
        )

    def rare(self, line: str) -> str:
        """The line, now and then with a character that is not ASCII."""
        if not line or not self.chance(0.03):
            return line
        at = self.random.randrange(len(line) + 1)
        return line[:at] + self.pick(RARE) + line[at:]

    def use(self, name: str) -> str:
        """A line that uses `name`, or holds it as part of a longer one."""
        if self.chance(0.15):
            name = self.pick((f"{name}_{self.word()}", f"{self.word()}_{name}", name + self.word().capitalize()))
        if self.chance(0.7):
            return self.rare(self.shapes.use(name))
        word = self.word
        return self.pick(
            (
                f"let {word()} = {name}({word()});",
                f"{word()} = {name}({word()}, {self.number()})",
                f"use crate::{word()}::{name};",
                f"from {word()} import {name}",
                f"return {name}({word()})",
                f"{name}::{word()}({self.number()})",
                f"// see {name}",
                f"self.{word()}.{name}(&{word()})?;",
                f"assert_eq!({name}({word()}), {self.number()});",
                f"if {name}.{word()}() {{",
            )
        )

    def block(self, count: int, top: bool) -> list[str]:
        """Consecutive lines of a file, as they stand there; now and then the first one is a centred title."""
        if count and self.chance(0.03):
            title = " ".join(word.capitalize() for word in self.phrase((1, 2, 3)).split())
            return [" " * self.random.randint(8, 36) + title, *self.block(count - 1, False)]
        if self.chance(0.75):
            return [self.rare(line) for line in self.shapes.block(count, top)]
        lines = [self.code() for _ in range(count)]
        return [" " * self.pick((0, 0, 4, 4, 8)) * (k > 0 or not top) + line for k, line in enumerate(lines)]

    def definition_block(self, name: str, count: int) -> list[str]:
        """A definition and what follows it."""
        if self.chance(0.7):
            return [self.rare(line) for line in self.shapes.definition(name, count)]
        indent = " " * self.pick((0, 0, 0, 4, 4, 8))
        rest = [indent + "    " * self.pick((0, 1, 1, 2)) + self.code() for _ in range(count - 1)]
        return [indent + self.definition(name), *rest]

    def imports(self, count: int) -> list[str]:
        """What a file imports, with the common beginnings such lists have; Rust paths mostly of two segments."""
        x, found = self.random.random(), {}
        roots = [self.pick(("crate", "crate", "super", self.word(), f"{self.word()}_{self.word()}")) for _ in range(5)]
        while len(found) < count:
            if x < 0.6:
                root = "std" if not found and self.chance(0.5) else self.pick(("std", "crate", *roots))
                for _ in range(self.pick((1, 1, 2, 2, 3, 4))):
                    name = self.word() if self.chance(0.55) else self.identifier()
                    if root == "std":
                        name = self.pick(STD_MODULES).partition("::")[0]
                    found[self.pick((root, f"{root}::*", name)) if self.chance(0.06) else f"{root}::{name}"] = None
            elif x < 0.72:
                root = self.pick((f"std::{self.pick(STD_MODULES)}", f"{self.pick(roots)}::{self.word()}"))
                for _ in range(self.pick((1, 1, 2, 3))):
                    name = self.pick(STD_NAMES) if root[:3] == "std" and self.chance(0.8) else self.identifier()
                    found[f"{root}::{name}"] = None
            elif x < 0.88:
                dots = self.pick(("", "", "", ".", ".."))
                tail = self.pick(("", "", "." + self.word(), f".{self.word()}_{self.word()}"))
                found[self.pick(PYTHON_MODULES) if self.chance(0.5) else dots + self.word() + tail] = None
            else:
                found[self.module()] = None
        return list(found)[:count]

    def symbols(self, count: int) -> list[str]:
        """What a file defines: distinct names, short ones among them, or many with the same beginning or end."""
        found: dict[str, None] = {}
        stem = "_".join(self.word() for _ in range(self.random.randint(1, 3)))
        alike = self.pick((0.0, 0.0, 0.0, 0.3, 0.6))
        while len(found) < count:
            if self.chance(alike):
                name = self.pick((f"{stem}_{self.word()}", f"{stem}_{self.word()}", f"{self.word()}_{stem}"))
                if self.chance(0.2):
                    name = "".join(word.capitalize() for word in name.split("_"))
            else:
                name = self.pick(SHORT_NAMES) if self.chance(0.2) else self.identifier()
            found[name] = None
        return list(found)

    def code(self) -> str:
        """Any line of code or prose."""
        if self.chance(0.65):
            return self.rare(self.shapes.line())
        x, word = self.random.random(), self.word
        if x < 0.2:
            return self.definition(self.identifier())
        if x < 0.4:
            return self.use(self.identifier())
        sentence = " ".join(word() for _ in range(self.random.randint(2, 8)))
        return self.pick(
            (
                f"if {word()} > {self.number()} {{",
                f"for {word()} in {word()}:",
                f"self.{word()} = {word()}",
                f"import {word()}",
                f"use {self.module()};",
                f"# {sentence}",
                f"// {sentence}.",
                f"//! {sentence.capitalize()}.",
                f"/// {sentence.capitalize()}.",
                f'"""{sentence.capitalize()}."""',
                f"{sentence.capitalize()}.",
                f"let mut {word()} = {self.number()};",
                f"[{word()}]",
                f'{word()} = "{self.version()}"',
                f'{word()}: "{word()}",',
                f"#[derive(Debug, {word().capitalize()})]",
                f"print({word()})",
                f"match {word()}.{word()}() {{",
                f"{word()}: {self.number()}",
                f"#!/usr/bin/env {word()}",
            )
        )


# --- wording -----------------------------------------------------------------------------------------------------


def user(text: str) -> Segments:
    """A user turn."""
    return [(f"{BEGIN}user\n{text}{END}\n", CONTEXT)]


def responses(*texts: str) -> Segments:
    """The turn that carries tool output."""
    body = "\n".join(f"<tool_response>\n{text}\n</tool_response>" for text in texts)
    return [(f"{BEGIN}user\n{body}{END}\n", CONTEXT)]


def assistant(segments: Segments) -> Segments:
    """An assistant turn."""
    return [(f"{BEGIN}assistant\n", CONTEXT), *segments, (END, TEMPLATE), ("\n", CONTEXT)]


def tool_call(name: str, **arguments: str | int) -> Segments:
    """One tool call in the Hermes form."""
    segments: Segments = [('<tool_call>\n{"name": "', TEMPLATE), (name, NAME), ('", "arguments": {', TEMPLATE)]
    for index, (key, value) in enumerate(arguments.items()):
        comma = ", " if index else ""
        if isinstance(value, int):
            segments += [(f'{comma}"{key}": ', TEMPLATE), (str(value), VALUE)]
        else:
            segments += [(f'{comma}"{key}": "', TEMPLATE), (json.dumps(value)[1:-1], VALUE), ('"', TEMPLATE)]
    return [*segments, ("}}\n</tool_call>", TEMPLATE)]


def say(form: str, *values: str | int) -> Segments:
    """Fixed wording with `{}` where the values go."""
    pieces = form.split("{}")
    segments: Segments = []
    for index, piece in enumerate(pieces):
        if piece:
            segments.append((piece, TEMPLATE))
        if index < len(values):
            segments.append((str(values[index]), VALUE))
    return segments


def grouped(imports: list[str]) -> list[str]:
    """Imports as `analyze_code` prints them: names of one module together, `std::{fs, io}`, modules as they came."""
    modules: dict[str, list[str]] = {}
    for item in imports:
        module, _, name = item.rpartition("::")
        modules.setdefault(module or item, []).append(name if module else "")
    result = []
    for module, names in modules.items():
        inner = [name or "self" for name in names]
        if len(names) == 1:
            result.append(f"{module}::{names[0]}" if names[0] else module)
        else:
            result.append(f"{module}::{{{', '.join(inner)}}}")
    return result


def listing(items: list[str]) -> Segments:
    """`a, b, c`."""
    segments: Segments = []
    for index, item in enumerate(items):
        if index:
            segments.append((", ", TEMPLATE))
        segments.append((item, VALUE))
    return segments


def quoted(world: World, text: str) -> str:
    """The value as a user writes it: bare, in back-ticks or in quotes."""
    x = world.random.random()
    return text if x < 0.70 else f"`{text}`" if x < 0.95 else f'"{text}"'


def ask(world: World, forms: tuple[str, ...], **values: str | int) -> Segments:
    """A user turn from one of the phrasings, with the carelessness of real users."""
    form = world.pick(forms)
    if world.chance(0.2):
        form = form[0].lower() + form[1:]
    if world.chance(0.08):
        form = world.pick(("Please ", "please ", "Hey, ", "Ok, ", "Now ", "Hi, ")) + form[0].lower() + form[1:]
    if world.chance(0.3):
        form = form.rstrip("?.")
    if world.chance(0.04):
        form = form.rstrip("?.") + world.pick((" please", ", please.", " for me", "!"))
    return user(form.format(**values))


# --- tool output and the answers to it ---------------------------------------------------------------------------


@dataclass
class Outcome:
    """What a tool printed and the sentence that answers the question about it."""

    output: str
    answer: Segments
    ok: bool = True
    path: str = ""
    line: int = 0
    count: str = ""
    block: list[str] = field(default_factory=list)  # the code at the place found


def cut_line(line: str) -> str:
    """A line as `search_code` shows it."""
    line = line.strip()
    return line if len(line) <= LINE_CHARS else line[:LINE_CHARS] + "…"


def cut_result(world: World, text: str, longest: int = 0) -> str:
    """A tool result as the server shows it to the model: cut at a line."""
    longest = longest or world.pick((RESULT_BYTES,) * 9 + (1000,))
    if len(text.encode()) <= longest:
        return text
    mark = "\n... (cut)"
    shown = text.encode()[: longest - len(mark)].decode(errors="ignore")
    end = shown.rfind("\n")
    return (shown[:end] if end >= 0 else shown) + mark


def failure(world: World, path: str | None, probability: float, name: str = "") -> Outcome | None:
    """An error message now and then: most of them those of the real tools."""
    if not world.chance(probability):
        return None
    about = path or name or world.phrase()
    x = world.random.random()
    if path and x < 0.5:
        message = f"no such file: {path}"
    elif path and x < 0.75:
        message = world.pick(
            (
                f"{path} is a directory, not a file",
                f"{path} is a binary file",
                f"start {world.number()} is beyond the end of {path}, it has {world.number()} lines",
                f"end {world.number()} is before start {world.number()}",
                f"{path} is {world.random.randint(10**6, 10**9)} bytes, more than the limit of 16777216",
                f"path is outside the workspace: {path} (give a path relative to the workspace)",
                f"no permission to read {path}",
                f"{path} is a loop of links",
                f"cannot analyze {path}: its language is not supported (supported: "
                "rust, python, javascript, typescript, tsx, go)",
                f"cannot analyze {path}: it is a binary file",
                f"cannot analyze {path}: it looks minified or generated",
            )
        )
    else:
        message = world.pick(
            (
                f"timed out after {world.number()} ms",
                f"not allowed: {about}",
                f"not found: {about}",
                f"{world.phrase((2, 3, 4))}",
                f"invalid argument: {world.word()}",
                f"the {world.word()} is not available",
                "the tool took too long",
                "the tool call is not valid JSON",
                "the tool used more memory than it may and was stopped",
                "no analysis worker is running",
                f"no sandbox: {world.phrase((2, 3, 4))}",
                f"the sandbox did not start: {world.phrase((2, 3, 4))}",
                f"the {world.word()} worker did not answer in time",
                "the limit of tool calls is reached; answer with what is known",
            )
        )
    return Outcome(f"error: {message}", say("The tool failed: {}.", message), ok=False)


def search_outcome(world: World, name: str, longest: int = 5) -> Outcome:
    """`search_code`: `N matches`, then `path:line: code`, the definition on top."""
    if failed := failure(world, None, 0.025, name):
        return failed
    if world.chance(0.07):
        return Outcome("no matches", say("I found no match for {}.", name), ok=False)
    shown = min(longest, world.pick((1, 1, 2, 2, 3) if world.short else (1, 2, 3, 3, 4, 5, 5, 5, 5, 5)))
    count = str(shown)
    if shown == longest and world.chance(0.8):
        count = "1000+" if world.chance(0.1) else str(shown + world.random.randint(1, world.pick((10, 60, 800))))
    path, line = world.path(), world.number()
    last = [part for part in re.split(r"[^A-Za-z0-9_]", name) if part]
    # `Type::method` is found where it is written so, which is hardly ever its definition.
    defined = bool(last) and (last[-1] == name or world.chance(0.2)) and world.chance(0.85)
    block = world.definition_block(last[-1], 14) if defined else [world.use(name), *world.block(13, False)]
    lines = [f"{path}:{line}: {cut_line(block[0])}"]
    other = path
    for _ in range(shown - 1):
        other = world.near(world.pick((path, other)))
        lines.append(f"{other}:{world.number()}: {cut_line(world.use(name))}")
    answer = say("{} is defined in {}.", name, f"{path}:{line}")
    output = cut_result(world, "\n".join([f"{count} matches", *lines]))
    return Outcome(output, answer, True, path, line, count=count, block=block)


def analysis_outcome(world: World, path: str, what: Literal["imports", "symbols"]) -> Outcome:
    """`analyze_code`: line count, imports and symbols, at most eight of each."""
    if failed := failure(world, path, 0.07):
        return failed
    counts = (0, 1, 2, 2, 3, 3, 4, 5) if world.short else (1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 8)
    imports, symbols = world.imports(world.pick(counts)), world.symbols(world.pick(counts))
    full = {"imports": len(imports) == NAMES_SHOWN, "symbols": len(symbols) == NAMES_SHOWN}
    imports = grouped(imports)
    parts, shown = [f"{world.number()} lines"], {}
    for name, items in (("imports", imports), ("symbols", symbols)):
        more = full[name] and world.chance(0.8) or items and world.chance(0.04)
        shown[name] = f" (+{world.random.randint(1, world.pick((9, 40, 200)))} more)" if more else ""
        parts.append(f"{name}: {', '.join(items) + shown[name] if items else 'none'}")
    output = cut_result(world, "\n".join(parts))
    if f"\n{what}: " not in output:
        return Outcome(output, say(f"The list of {what} in {{}} was cut off.", path))
    verb, items = (" imports ", imports) if what == "imports" else (" defines ", symbols)
    rest = listing(items) + [(shown[what], VALUE)] * bool(shown[what]) if items else [("nothing", TEMPLATE)]
    return Outcome(output, [(path, VALUE), (verb, TEMPLATE), *rest, (".", TEMPLATE)])


def file_lines(world: World, first: int, lines: list[str], more: int = 0) -> tuple[str, str]:
    """`read_file`: numbered lines, long ones cut, the rest counted. Also the first of them as shown, unnumbered."""
    longest = world.pick((RESULT_BYTES,) * 9 + (1000,))
    widest = longest // LINE_SHARE
    shown = [f"{first + k}: {line}" for k, line in enumerate(lines)]
    shown = [line if len(line) <= widest else line[:widest] + "…" for line in shown]
    head = shown[0].partition(": ")[2].strip()
    return cut_result(world, "\n".join(shown + [f"... ({more} more lines)"] * bool(more)), longest), head


def draw_length(world: World) -> int:
    """Lines shown of a file: as many as fit, or few."""
    return world.pick((1, 2, 2, 3, 3, 4) if world.short else (3, 4, 6, 8, 10, 14, 20, 20))


def starts_with(head: str, plural: bool = False) -> Segments:
    """`starts with CODE`, the first line without its indentation."""
    verb = "start" if plural else "starts"
    return say(f" {verb} with `{{}}`.", head) if head else say(f" {verb} with an empty line.")


def read_outcome(world: World, path: str) -> Outcome:
    """Reading a whole file."""
    if failed := failure(world, path, 0.08):
        return failed
    if world.chance(0.01):
        return Outcome("the file is empty", say("{} is empty.", path))
    lines = world.block(draw_length(world), world.chance(0.6)) or [world.code()]
    if not lines[0].strip() and world.chance(0.7):
        lines[0] = world.code()
    more = world.number() if len(lines) > 6 or world.chance(0.1) else 0
    output, head = file_lines(world, 1, lines, more)
    return Outcome(output, [(path, VALUE), *starts_with(head)])


def web_outcome(world: World) -> Outcome:
    """`web_search`: `title - address` lines."""
    if failed := failure(world, None, 0.05):
        return failed
    if world.chance(0.04):
        return Outcome("no results", say("I found nothing on the web."))
    hits = []
    for _ in range(world.pick((1, 2, 2, 3, 4))):
        words = [world.word() for _ in range(world.random.randint(1, 5))]
        title = " ".join(word.capitalize() if world.chance(0.6) else word for word in words)
        if world.chance(0.1):
            title += " " + world.version()
        domain = f"{world.word()}.{world.pick(('com', 'org', 'io', 'dev', 'rs', 'net'))}"
        if world.chance(0.3):
            domain = world.pick(("docs", "www", "github", "blog")) + "." + domain
        tail = "/".join(world.pick((world.word(), world.folder())) for _ in range(world.pick((0, 1, 1, 2, 3))))
        hits.append((title, f"https://{domain}/{tail}"))
    return Outcome("\n".join(f"{t} - {u}" for t, u in hits), say("The top result is {} ({}).", *hits[0]))


def semantic_outcome(world: World) -> Outcome:
    """`semantic_search`: the closest places first."""
    if failed := failure(world, None, 0.04):
        return failed
    if world.chance(0.06):
        return Outcome("no matches", say("I found nothing close to that."))
    path, line = world.path(), world.number()
    lines = [f"{path}:{line}: {cut_line(world.code())}"]
    for _ in range(world.pick((0, 0, 1, 2, 2, 4, 4))):
        lines.append(f"{world.near(path)}:{world.number()}: {cut_line(world.code())}")
    if world.chance(0.5):
        lines.insert(0, f"{len(lines)} matches")
    return Outcome(cut_result(world, "\n".join(lines)), say("The closest match is {}.", f"{path}:{line}"))


# --- tasks -------------------------------------------------------------------------------------------------------

WHERE = (
    "Where is {x} defined?", "Where can I find {x}?", "Find the definition of {x}.", "Which file defines {x}?",
    "Where does {x} live?", "Locate {x}.", "Find {x}.", "Where is the function {x}?", "Where is {x}?",
    "Where is the struct {x} declared?", "In which file is {x}?", "Search for {x}.", "Look for {x} in the code.",
    "Where is the class {x} defined?", "Which file contains {x}?", "Search the code for {x}.",
    "Where is the trait {x} defined?", "Where is the type {x} defined?", "Where is the enum {x}?",
    "Where is the constant {x} defined?", "Where is the method {x} defined?", "Where is the {x} struct?",
    "Can you find {x}?", "I am looking for {x}.", "Tell me where {x} is defined.",
)  # fmt: skip
USAGE = (
    "Who calls {x}?", "Where is {x} used?", "Find usages of {x}.", "How many times is {x} used?",
    "List the uses of {x}.", "What references {x}?", "Which code uses {x}?", "Which files use {x}?",
    "Find all references to {x}.", "How often is {x} used?", "Show the callers of {x}.",
)  # fmt: skip
IMPORTS = (
    "What does {p} import?", "Which modules does {p} import?", "List the imports of {p}.",
    "What are the dependencies of {p}?", "Show the imports in {p}.", "What does {p} depend on?",
    "Which imports are in {p}?", "Tell me what {p} imports.", "What is imported in {p}?",
)  # fmt: skip
SYMBOLS = (
    "What symbols are in {p}?", "What is defined in {p}?", "List the functions in {p}.", "Analyze {p}.",
    "What does {p} contain?", "Which symbols does {p} define?", "Give me an outline of {p}.",
    "What does {p} define?", "List the symbols of {p}.", "Which functions are in {p}?",
)  # fmt: skip
LINES = (
    "Show lines {a}-{b} of {p}.", "Show me lines {a} to {b} of {p}.", "Read {p} lines {a}-{b}.",
    "Print lines {a} to {b} in {p}.", "What is on lines {a}-{b} of {p}?", "Open {p} from line {a} to {b}.",
    "Read lines {a} to {b} of {p}.", "Read lines {a}-{b} of {p}.", "Show lines {a} to {b} of {p}.",
    "Show {p} lines {a} to {b}.", "Display {p} from {a} to {b}.",
)  # fmt: skip
READ = (
    "Read {p}.", "Open {p}.", "Show me {p}.", "Show {p}.", "Display the file {p}.", "Can you open {p}?",
    "What is in the file {p}?", "Cat {p}.", "Print {p}.", "Read the file {p}.", "Show the contents of {p}.",
)  # fmt: skip
SEMANTIC = (
    "How does the code handle {q}?", "Where do we handle {q}?", "Which part of the code is about {q}?",
    "How is {q} implemented?", "Find code related to {q}.", "Explain how {q} works here.",
    "Is there code for {q}?", "Find code about {q}.", "Which code deals with {q}?", "How do we do {q}?",
)  # fmt: skip
WEB = (
    "Search the web for {q}.", "Look up {q} online.", "Google {q}.", "Find {q} on the internet.",
    "What does the web say about {q}?", "Search online for {q}.", "Do a web search for {q}.",
    "Look on the web for {q}.",
)  # fmt: skip
TWO_STEP = (
    "Find and read {x}.", "Find {x} and read it.", "Find {x} and show me the code.", "Search for {x} and open it.",
    "Show me the source of {x}.", "Show the code of {x}.", "Locate {x} and read the file.",
    "Find {x} and open the file.", "Look up {x} and show the code.", "Show me the code of {x}.",
    "Where is {x} defined? Show me the code.", "Search for {x} and read the file.",
)  # fmt: skip
THAT_CODE = (
    "Show me the code.", "Read it.", "Open it.", "Show me that code.", "Can you show it?", "Show it to me.",
    "Now open it.", "Read the code there.",
)  # fmt: skip
THAT_IMPORTS = ("What does that file import?", "List its imports.", "What does it import?")
THAT_SYMBOLS = ("What else is in that file?", "What else does that file define?", "Analyze that file.")
PARALLEL = (
    "Search for {x} and {y}.", "Find {x} and {y}.", "Where are {x} and {y} defined?", "Locate both {x} and {y}.",
    "Look for {x} and also {y}.", "Find the definitions of {x} and {y}.", "Where are {x} and {y}?",
    "Where is {x} and where is {y}?", "Find {x} and then {y}.", "Which files define {x} and {y}?",
    "Where can I find {x} and {y}?", "Where is {x} defined, and {y}?", "Search for both {x} and {y}.",
    "Tell me where {x} and {y} are defined.", "Find {x}. Also find {y}.", "Where do {x} and {y} live?",
)  # fmt: skip
# Two kinds of question in one turn; `o` is the second of two files.
MIXED: tuple[tuple[tuple[Kind, Kind], tuple[str, ...]], ...] = (
    (("where", "imports"), (
        "Find {x} and also tell me what {p} imports.", "Where is {x} defined and what does {p} import?",
        "Find {x} and list the imports of {p}.", "Locate {x} and show the imports in {p}.",
    )),
    (("where", "symbols"), (
        "Find {x} and tell me what {p} defines.", "Where is {x} and what is defined in {p}?",
        "Find {x} and list the symbols of {p}.", "Locate {x} and analyze {p}.",
    )),
    (("imports", "where"), (
        "What does {p} import and where is {x} defined?", "List the imports of {p} and find {x}.",
        "Tell me what {p} imports and also where {x} is.", "Show the imports in {p} and locate {x}.",
    )),
    (("imports", "imports"), (
        "What do {p} and {o} import?", "List the imports of {p} and {o}.", "Show the imports in {p} and {o}.",
        "Which modules do {p} and {o} import?",
    )),
    (("read", "read"), ("Open {p} and {o}.", "Read {p} and {o}.", "Show me {p} and {o}.", "Read both {p} and {o}.")),
    (("where", "read"), (
        "Find {x} and open {p}.", "Where is {x} defined? Also show me {p}.", "Locate {x} and read {p}.",
        "Search for {x} and show {p}.",
    )),
)  # fmt: skip
SMALL_TALK: tuple[tuple[tuple[str, ...], str], ...] = (
    (("hi", "hello", "hey", "hello there", "hi there", "good morning", "hey vlinder", "good evening", "hi vlinder"),
     "Hello! Ask me about the code in this workspace."),
    (("thanks", "thank you", "thanks a lot", "great, thanks", "cool", "perfect, thank you", "nice", "great"),
     "You are welcome."),
    (("who are you?", "what are you?", "what is your name?", "are you a bot?", "are you a robot?",
      "tell me who you are"),
     "I am Vlinder, a small code assistant."),
    (("bye", "goodbye", "see you", "that is all", "bye bye", "see you later"), "Goodbye!"),
    (("ok", "okay", "yes", "sure", "alright"), "What would you like to look up?"),
    (("how are you?", "how is it going?", "how are you doing?", "how are you today?"),
     "I am fine. What should I look up?"),
)  # fmt: skip
ABILITIES = ("what can you do?", "help", "how can you help me?", "what tools do you have?", "what are you able to do?")
ABLE = "I can search code, read files, analyze code and search the web."
ABLE_HERE = "I can search code, read files and analyze code."
UNABLE = "I have no tools here, so I can only talk a little."
NO_TOOL = "I have no tool for that."


def task_where(world: World, tools: tuple[str, ...]) -> Segments:
    """Where something is defined."""
    name = world.asked()
    found = search_outcome(world, name)
    asked = ask(world, WHERE, x=quoted(world, name))
    return asked + assistant(tool_call("search_code", query=name)) + responses(found.output) + assistant(found.answer)


def task_usage(world: World, tools: tuple[str, ...]) -> Segments:
    """How often something is used."""
    name = world.asked()
    found = search_outcome(world, name)
    answer = found.answer
    if found.ok:
        form = "{} has {} matches, the first in {}."
        answer = say(form, name, found.count, f"{found.path}:{found.line}")
    asked = ask(world, USAGE, x=quoted(world, name))
    return asked + assistant(tool_call("search_code", query=name)) + responses(found.output) + assistant(answer)


def task_imports(world: World, tools: tuple[str, ...]) -> Segments:
    """What a file imports."""
    path = world.path()
    found = analysis_outcome(world, path, "imports")
    asked = ask(world, IMPORTS, p=quoted(world, path))
    return asked + assistant(tool_call("analyze_code", path=path)) + responses(found.output) + assistant(found.answer)


def task_symbols(world: World, tools: tuple[str, ...]) -> Segments:
    """What a file defines."""
    path = world.path()
    found = analysis_outcome(world, path, "symbols")
    asked = ask(world, SYMBOLS, p=quoted(world, path))
    return asked + assistant(tool_call("analyze_code", path=path)) + responses(found.output) + assistant(found.answer)


def task_lines(world: World, tools: tuple[str, ...]) -> Segments:
    """A range of lines of a file."""
    path, first = world.pick(PLAIN_FILES) if world.chance(0.06) else world.path(), world.number()
    if world.chance(0.25):
        first = world.random.randint(1, 9)
    last = first + world.random.randint(1, world.pick((3, 9, 20, 80)))
    found = failure(world, path, 0.08)
    if found is None:
        lines = world.block(min(last - first + 1, draw_length(world)), first == 1) or [world.code()]
        output, head = file_lines(world, first, lines)
        found = Outcome(output, [*say("Lines {}-{} of {}", first, last, path), *starts_with(head, True)])
    asked = ask(world, LINES, a=first, b=last, p=quoted(world, path))
    call = tool_call("read_file", path=path, start=first, end=last)
    return asked + assistant(call) + responses(found.output) + assistant(found.answer)


def task_read(world: World, tools: tuple[str, ...]) -> Segments:
    """A whole file."""
    path = world.path()
    found = read_outcome(world, path)
    asked = ask(world, READ, p=quoted(world, path))
    return asked + assistant(tool_call("read_file", path=path)) + responses(found.output) + assistant(found.answer)


def task_semantic(world: World, tools: tuple[str, ...]) -> Segments:
    """Code about a topic."""
    topic = world.phrase()
    found = semantic_outcome(world)
    asked = ask(world, SEMANTIC, q=topic)
    call = tool_call("semantic_search", query=topic)
    return asked + assistant(call) + responses(found.output) + assistant(found.answer)


def task_web(world: World, tools: tuple[str, ...]) -> Segments:
    """A web search."""
    topic = world.phrase()
    found = web_outcome(world)
    asked = ask(world, WEB, q=topic)
    return asked + assistant(tool_call("web_search", query=topic)) + responses(found.output) + assistant(found.answer)


def task_two_step(world: World, tools: tuple[str, ...]) -> Segments:
    """Search, then read the place found."""
    name = world.asked()
    found = search_outcome(world, name)
    turn = ask(world, TWO_STEP, x=quoted(world, name))
    turn += assistant(tool_call("search_code", query=name)) + responses(found.output)
    if not found.ok:
        return turn + assistant(found.answer)
    turn += assistant(tool_call("read_file", path=found.path, start=found.line))
    if failed := failure(world, found.path, 0.05):
        return turn + responses(failed.output) + assistant(failed.answer)
    return turn + read_at(world, name, found)


def read_at(world: World, name: str, found: Outcome) -> Segments:
    """What the tool prints at the place found, and the answer."""
    lines = found.block[: draw_length(world)]
    more = world.number() if len(lines) > 6 or world.chance(0.1) else 0
    output, head = file_lines(world, found.line, lines, more)
    answer = say("{} is in {}: `{}`.", name, f"{found.path}:{found.line}", head)
    return responses(output) + assistant(answer)


def task_follow_up(world: World, tools: tuple[str, ...]) -> Segments:
    """A question about the place just found."""
    name = world.asked()
    found = search_outcome(world, name)
    turn = ask(world, WHERE, x=quoted(world, name)) + assistant(tool_call("search_code", query=name))
    turn += responses(found.output) + assistant(found.answer)
    if not found.ok:
        return turn
    if "analyze_code" in tools and world.chance(0.3):
        what = world.pick(("imports", "symbols"))
        forms = THAT_IMPORTS if what == "imports" else THAT_SYMBOLS
        outline = analysis_outcome(world, found.path, what)
        call = tool_call("analyze_code", path=found.path)
        return turn + ask(world, forms) + assistant(call) + responses(outline.output) + assistant(outline.answer)
    turn += ask(world, THAT_CODE) + assistant(tool_call("read_file", path=found.path, start=found.line))
    return turn + read_at(world, name, found)


def two_calls(asked: Segments, calls: list[Segments], found: list[Outcome]) -> Segments:
    """Two calls in one turn and an answer of two sentences."""
    both = calls[0] + [("\n", TEMPLATE)] + calls[1]
    answer = found[0].answer + [(" ", TEMPLATE)] + found[1].answer
    return asked + assistant(both) + responses(*(outcome.output for outcome in found)) + assistant(answer)


def task_parallel(world: World, tools: tuple[str, ...]) -> Segments:
    """Two definitions at once."""
    names = [world.asked(), world.asked()]
    asked = ask(world, PARALLEL, x=quoted(world, names[0]), y=quoted(world, names[1]))
    calls = [tool_call("search_code", query=name) for name in names]
    return two_calls(asked, calls, [search_outcome(world, name) for name in names])


def task_mixed(world: World, tools: tuple[str, ...]) -> Segments:
    """Two different questions, or two files, at once."""
    name, path = world.asked(), world.path()
    other = world.near(path) if world.chance(0.5) else world.path()
    other = other if other != path else world.path()
    kinds, forms = world.pick(MIXED)
    calls, found = [], []
    for kind, file in zip(kinds, (path, path) if "where" in kinds else (path, other), strict=True):
        if kind == "where":
            calls.append(tool_call("search_code", query=name))
            found.append(search_outcome(world, name))
        elif kind == "read":
            calls.append(tool_call("read_file", path=file))
            found.append(read_outcome(world, file))
        else:
            calls.append(tool_call("analyze_code", path=file))
            found.append(analysis_outcome(world, file, kind))
    asked = ask(world, forms, x=quoted(world, name), p=quoted(world, path), o=quoted(world, other))
    return two_calls(asked, calls, found)


def task_smalltalk(world: World, tools: tuple[str, ...]) -> Segments:
    """Greetings and the like."""
    if world.chance(0.15) and (not tools or set(USUAL_TOOLS) <= set(tools)):
        question = world.pick(ABILITIES)
        answer = UNABLE if not tools else ABLE if "web_search" in tools else ABLE_HERE
    else:
        questions, answer = world.pick(SMALL_TALK)
        question = world.pick(questions)
    if world.chance(0.5):
        question = question[0].upper() + question[1:]
    if world.chance(0.15):
        question = question.rstrip("?") + world.pick(("!", ".", "")) if "?" not in question else question.rstrip("?")
    return user(question) + assistant([(answer, TEMPLATE)])


def task_summary(world: World, tools: tuple[str, ...]) -> Segments:
    """One line about a short history."""
    history, summary = [], []
    for index in range(world.pick((1, 2, 2, 3, 3, 4))):
        if index:
            summary.append(("; ", TEMPLATE))
        x, path = world.random.random(), world.path()
        if x < 0.5:
            name, line = world.identifier(), world.number()
            question = world.pick(WHERE).format(x=name)
            history.append(f"user: {question}\nassistant: {name} is defined in {path}:{line}.")
            summary += say("{} is defined in {}", name, f"{path}:{line}")
        else:
            forms, verb = (IMPORTS, "imports") if x < 0.75 else (SYMBOLS, "defines")
            make = world.module if verb == "imports" else world.identifier
            items = [make() for _ in range(world.pick((1, 1, 2, 3)))]
            items = grouped(items) if verb == "imports" else items
            text = "".join(piece for piece, _ in listing(items))
            history.append(f"user: {world.pick(forms).format(p=path)}\nassistant: {path} {verb} {text}.")
            summary += [(path, VALUE), (f" {verb} ", TEMPLATE), *listing(items)]
    head = world.pick(
        ("Summarize this conversation:", "Summarize this conversation:", "Summarize:", "Summarize the conversation:")
    )
    return user(head + "\n" + "\n".join(history)) + assistant([("Summary: ", TEMPLATE), *summary, (".", TEMPLATE)])


NEEDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "search_code": (WHERE, USAGE),
    "semantic_search": (SEMANTIC, SEMANTIC),
    "read_file": (READ, LINES),
    "analyze_code": (IMPORTS, SYMBOLS),
    "web_search": (WEB, WEB),
}


def task_unavailable(world: World, tools: tuple[str, ...]) -> Segments:
    """A question whose tool is not offered."""
    forms = world.pick(NEEDS[world.pick([tool for tool in ALL_TOOLS if tool not in tools])])
    first = world.number()
    asked = ask(
        world, forms, x=quoted(world, world.identifier()), p=quoted(world, world.path()), q=world.phrase(),
        a=first, b=first + world.random.randint(1, 60),
    )  # fmt: skip
    return asked + assistant([(NO_TOOL, TEMPLATE)])


def task_copy(world: World, tools: tuple[str, ...]) -> Segments:
    """Curriculum: plain copying, of mixed values or of a list whose items resemble each other."""
    makers = (world.identifier, world.path, lambda: str(world.number()), world.word, world.code)
    separator, quote = world.pick(((" ", ""), (", ", ""), ("\n", ""), (" ", '"'), (" ", "`")))
    count = world.random.randint(4, 12)
    match world.random.randrange(6):
        case 0:
            items, separator, quote = grouped(world.imports(count)), ", ", ""
        case 1:
            items, separator, quote = world.symbols(count), ", ", ""
        case 2:
            items, separator, quote = [world.code() for _ in range(3)], "\n", world.pick(("", "`"))
        case 3:
            path = world.path()
            items = [f"{world.near(path)}:{world.number()}" for _ in range(count // 2)]
        case _:
            items = [world.pick(makers)() for _ in range(world.random.randint(2, 5))]
    segments: Segments = []
    for index, item in enumerate(items):
        before = (separator if index else "") + quote
        segments += [(before, TEMPLATE)] * bool(before) + [(item, VALUE)] + [(quote, TEMPLATE)] * bool(quote)
    return user("copy " + (separator if separator == ", " else " ").join(items)) + assistant(segments)


def task_fetch(world: World, tools: tuple[str, ...]) -> Segments:
    """Curriculum: the value that stands behind a key."""
    makers = (world.path, world.identifier, lambda: str(world.number()))
    pairs = [(world.identifier(), world.pick(makers)()) for _ in range(world.random.randint(1, 4))]
    key, value = world.pick(pairs)
    asked = user("\n".join(f"{k}: {v}" for k, v in pairs) + f"\nget {key}")
    return asked + assistant(say("{} is {}.", key, value))


@dataclass(frozen=True)
class Task:
    """A kind of exchange, its share, and the tools it needs."""

    make: Callable[[World, tuple[str, ...]], Segments]
    weight: float
    tools: tuple[str, ...] = ()


TASKS: dict[str, Task] = {
    "where": Task(task_where, 2.5, ("search_code",)),
    "usage": Task(task_usage, 1.5, ("search_code",)),
    "imports": Task(task_imports, 2.6, ("analyze_code",)),
    "symbols": Task(task_symbols, 2.8, ("analyze_code",)),
    "lines": Task(task_lines, 2.6, ("read_file",)),
    "read": Task(task_read, 2.6, ("read_file",)),
    "semantic": Task(task_semantic, 0.9, ("semantic_search",)),
    "web": Task(task_web, 0.7, ("web_search",)),
    "two_step": Task(task_two_step, 2.0, ("search_code", "read_file")),
    "parallel": Task(task_parallel, 3.0, ("search_code",)),
    "mixed": Task(task_mixed, 2.0, ("search_code", "analyze_code", "read_file")),
    "smalltalk": Task(task_smalltalk, 0.6),
    "follow_up": Task(task_follow_up, 0.8, ("search_code", "read_file")),
    "summary": Task(task_summary, 1.0),
}
CURRICULUM = (task_copy, task_copy, task_fetch)


def system_prompt(
    tools: tuple[str, ...], text: str = SYSTEM, others: tuple[str, ...] = (), short: bool = False
) -> str:
    """The system turn as the chat template prints it; `short` leaves out all but the first argument of a search."""
    if tools or others:
        known = TOOLS | OTHER_TOOLS | ({"search_code": ("query",)} if short else {})
        text += " Tools:" + "".join(f"\n{name}({', '.join(known[name])})" for name in (*tools, *others))
    return f"{BEGIN}system\n{text}{END}\n"


def draw_tools(world: World) -> tuple[str, ...]:
    """A set of tools other than the usual ones."""
    x = world.random.random()
    if x < 0.25:
        return ()
    tools = world.random.sample(ALL_TOOLS, len(ALL_TOOLS) if x < 0.45 else world.random.randint(1, 4))
    if world.chance(0.5):
        tools.sort(key=ALL_TOOLS.index)
    return tuple(tools)


def draw_system(world: World, tools: tuple[str, ...]) -> str:
    """A system turn, usually with the standard sentence."""
    others = tuple(world.random.sample(list(OTHER_TOOLS), world.random.randint(1, 3))) if world.chance(0.2) else ()
    short = world.chance(0.2)
    if world.chance(0.6):
        return system_prompt(tools, SYSTEM, others, short)
    text = world.pick(
        (
            "You are a helpful assistant.",
            "You are a code assistant.",
            "You are Vlinder.",
            "You are Vlinder, a small code assistant. Answer in one sentence.",
            f"You are {world.word().capitalize()}, a {world.word()} agent.",
            f"You are Vlinder, a {world.word()} assistant. {world.phrase().capitalize()}.",
        )
    )
    return system_prompt(tools, text, others, short)


def conversation(world: World, tools: tuple[str, ...], curriculum: float = 0.0, single: bool = False) -> Segments:
    """One conversation after the system turn."""
    if world.chance(curriculum):
        world.turn_page()
        return world.pick(CURRICULUM)(world, tools)
    usable = [task for task in TASKS.values() if set(task.tools) <= set(tools)]
    if len(tools) < len(TOOLS):
        usable.append(Task(task_unavailable, 1.2 if set(USUAL_TOOLS) <= set(tools) else 4.0))
    segments: Segments = []
    world.turn_page()
    for _ in range(1 if single else world.random.choices((1, 2, 3), (88, 10, 2))[0]):
        task = world.random.choices(usable, [task.weight for task in usable])[0]
        segments += task.make(world, tools)
        if task.make is task_summary:
            break
    return segments


# --- word pool ---------------------------------------------------------------------------------------------------


def collect(roots: list[str]) -> dict[str, dict[str, list[str]]]:
    """Words, identifiers and paths of source trees, divided into a training and a held-out half."""
    files = []
    for root in roots:
        for folder, _, names in os.walk(root):
            files += [os.path.join(folder, name) for name in names if name.endswith((".rs", ".py"))]
    files.sort()
    random.Random(1).shuffle(files)
    counts: collections.Counter[str] = collections.Counter()
    paths: set[str] = set()
    for file in files[:4000]:
        try:
            text = Path(file).read_text(errors="ignore")[:40000]
        except OSError:
            continue
        counts.update(set(re.findall(r"[A-Za-z_][A-Za-z0-9_]{2,30}", text)))
        for tail in (3, 4):
            short = "/".join(file.split("/")[-tail:])
            if re.fullmatch(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)+", short) and 5 <= len(short) <= 52:
                paths.add(short)
    words: collections.Counter[str] = collections.Counter()
    for name in counts:
        words.update(word.lower() for word in re.findall(r"[A-Z]?[a-z]{2,12}", name))
    common = [word for word, count in sorted(words.items(), key=lambda x: (-x[1], x[0]))[:7000] if count >= 2]
    real = sorted(n for n in counts if "_" in n.strip("_") or re.search("[a-z][A-Z]", n))
    places = sorted(paths)
    for seed, items in ((2, common), (3, real), (4, places)):
        random.Random(seed).shuffle(items)
    cut = int(len(common) * 0.85)
    held_files = {place.split("/")[-1] for place in places[:1500]}
    rest = [place for place in places[1500:] if place.split("/")[-1] not in held_files]
    return {
        "train": {"words": common[:cut], "identifiers": real[2500:6000], "paths": rest[:1600]},
        "held": {"words": common[cut:], "identifiers": real[:2500], "paths": places[:1000]},
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    pool = commands.add_parser("pool", help="collect a word pool")
    pool.add_argument("--out", type=Path, required=True)
    pool.add_argument("roots", nargs="+")
    show = commands.add_parser("show", help="print samples")
    show.add_argument("--pool", type=Path, default=Path(__file__).with_name("pool.json"))
    show.add_argument("--count", type=int, default=5)
    show.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.command == "pool":
        found = collect(options.roots)
        options.out.write_text(json.dumps(found, separators=(",", ":"), ensure_ascii=True) + "\n")
        print({split: {name: len(items) for name, items in half.items()} for split, half in found.items()})
        return
    world = World(json.loads(options.pool.read_text()), "train", options.seed)
    for _ in range(options.count):
        print(system_prompt(USUAL_TOOLS) + "".join(text for text, _ in conversation(world, USUAL_TOOLS)), end="\n\n")


if __name__ == "__main__":
    main()
