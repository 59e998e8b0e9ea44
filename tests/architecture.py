"""The laws of the house, as functions from source text to offences; `test_architecture.py` applies them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

PACKAGE = "megatron_rl"

IDEAS = ("stages", "samplers", "objectives", "rewards")
MACHINES = ("actor", "rollout", "cluster", "data", "telemetry")
FLOORS: Mapping[str, int] = (
    dict.fromkeys(("answers", "batch", "spec"), 0)
    | {"ops": 1, "failures": 2, "beside": 2, "interpreter": 2, "logs": 2, "manifest": 2, "schedule": 2}
    | dict.fromkeys(
        ("ports", "accounting", "pipeline", "combining", "laws", "budget", "buffer", "drawing", "nursery", "reshard"), 2
    )
    | {"chatter": 2, "orphans": 2}
    | dict.fromkeys((*IDEAS, *MACHINES), 3)
    | dict.fromkeys(("loop", "ahead", "in_flight", "evaluate", "checkpoint", "saver", "replay"), 4)
    | dict.fromkeys(
        (
            *("cli", "commands", "launch", "signals", "occupancy", "own_code", "assemble", "ideas", "processes"),
            *("actor_rank", "preview", "diagnosis", "bundle", "redaction", "differences", "rehearsal", "planner"),
            *("deaths", "driver_log", "progress", "secret_names", "secret_shapes"),
        ),
        5,
    )
)
DOORS: Mapping[str, tuple[str, ...]] = {
    "megatron": ("actor",),
    "transformer_engine": ("actor",),
    "apex": ("actor",),
    "vllm": ("rollout",),
    "ray": ("cluster",),
    "pyarrow": ("batch", "data"),
    "math_verify": ("rewards.math",),
    "wandb": ("telemetry.wandb",),
}
HEAVY = (*DOORS, "torch", "transformers", "matplotlib")
"""Packages that a function may import for itself, where their door allows them at all."""
WITHOUT_TORCH = (
    *(
        "answers",
        "cluster.member",
        "nursery",
        "rewards.grader",
        "rewards.math",
        "spec",
        "cli",
        "preview",
        "commands.configuration",
        "commands.plan",
        "commands.train",
        "planner",
    ),
    *("orphans", "reshard.layout", "reshard.names", "reshard.plan", "reshard.bound"),
)

FILE_LINES, FUNCTION_LINES, PARAMETERS = 300, 60, 5
FORBIDDEN_CALLS = ("eval", "exec", "compile", "torch.load", "yaml.load", "yaml.unsafe_load", "os.system", "os.popen")
FORBIDDEN_IMPORTS = ("pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib")
CONFIG_NAMES = ("cfg", "conf", "config", "settings", "spec")
EMPTY_NAMES = ("utils", "util", "helpers", "helper", "common", "misc", "lib", "base", "core", "tools")
EMPTY_CLASS = re.compile(r"(Handler|Manager|Helper|Worker|Utils|DataProto|Trajectory|V\d+)$")
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|\bfor now\b", re.IGNORECASE)


class Offence(NamedTuple):
    """Where a law is broken, and which."""

    module: str
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.module}:{self.line}: {self.what}"


@dataclass(frozen=True)
class Source:
    """A module by its name within the package ('reshard.plan') and its text."""

    name: str
    text: str

    @property
    def room(self) -> str:
        return self.name.split(".")[0]

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)


class Import(NamedTuple):
    """One imported module, in full, and whether it is imported only inside a function."""

    module: str
    line: int
    is_local: bool


def sources(root: Path) -> list[Source]:
    """Every module of the package under `root`; a package's own file carries its name."""
    found = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if parts:
            found.append(Source(".".join(parts), path.read_text(encoding="utf-8")))
    return found


def imports(source: Source) -> Iterator[Import]:
    """Every import, `from a import b` as a.b and as a, since b may be a module."""
    tree = source.tree
    local = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, id(node) in local)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield Import(f"{node.module}.{alias.name}", node.lineno, id(node) in local)


def within(name: str, places: tuple[str, ...]) -> bool:
    """Whether a module is one of the places or inside one."""
    return any(name == place or name.startswith(f"{place}.") for place in places)


def own(module: str) -> str | None:
    """The name within the package of an imported module, None where it is somebody else's."""
    return module.removeprefix(f"{PACKAGE}.") if module.startswith(f"{PACKAGE}.") else None


def floors(source: Source) -> Iterator[Offence]:
    """Imports point down: the map of house style section 2."""
    floor = FLOORS.get(source.room)
    if floor is None:
        yield Offence(source.name, 1, "has no floor in the map; a new room is a change of the design")
        return
    for found in imports(source):
        name = own(found.module)
        room = name.split(".")[0] if name else source.room
        if name and room in FLOORS and not _may_import(source, name, floor):
            yield Offence(source.name, found.line, f"stands on floor {floor} and may not import {name}")


def _may_import(source: Source, name: str, floor: int) -> bool:
    room = name.split(".")[0]
    if source.room in IDEAS:
        return FLOORS[room] < 3 or within(name, (source.name,))
    if floor < 2:
        return room == source.room
    if floor == 3:
        return room == source.room or FLOORS[room] < floor
    if floor == 4:
        return FLOORS[room] in (0, 1, 2, 4)
    return FLOORS[room] <= floor


def doors(source: Source) -> Iterator[Offence]:
    """Each heavy package enters by its own door."""
    for found in imports(source):
        package = found.module.split(".")[0]
        if package in DOORS and not within(source.name, DOORS[package]):
            yield Offence(source.name, found.line, f"imports {package}, whose door is {' and '.join(DOORS[package])}")


def local_imports(source: Source) -> Iterator[Offence]:
    """Imports stand at the top, but for heavy packages; a command may also fetch what does it late."""
    for found in imports(source):
        is_late_command = source.room == "commands" and own(found.module) is not None
        if found.is_local and found.module.split(".")[0] not in HEAVY and not is_late_command:
            yield Offence(source.name, found.line, f"imports {found.module} inside a function")


def sizes(source: Source, parameters: int = PARAMETERS) -> Iterator[Offence]:
    """Files, functions and signatures stay small."""
    lines = source.text.count("\n")
    if lines > FILE_LINES:
        yield Offence(source.name, 1, f"has {lines} lines, limit {FILE_LINES}")
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            taken = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            count = sum(argument.arg not in ("self", "cls") for argument in taken)
            if length > FUNCTION_LINES:
                yield Offence(source.name, node.lineno, f"{node.name} has {length} lines, limit {FUNCTION_LINES}")
            if count > parameters:
                yield Offence(source.name, node.lineno, f"{node.name} takes {count} parameters, limit {parameters}")


def dangers(source: Source) -> Iterator[Offence]:
    """Nothing runs foreign code or text, and no configuration is read softly."""
    for found in imports(source):
        if found.module.split(".")[0] in FORBIDDEN_IMPORTS:
            yield Offence(source.name, found.line, f"imports {found.module}")
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in FORBIDDEN_CALLS:
            yield Offence(source.name, node.lineno, f"calls {called}")
        if any(word.arg == "shell" and ast.unparse(word.value) != "False" for word in node.keywords):
            yield Offence(source.name, node.lineno, "starts a shell")
        if any(word.arg in ("allow_pickle", "weights_only") and _unpickles(word) for word in node.keywords):
            yield Offence(source.name, node.lineno, "unpickles")
        softly = node.args[0] if called in ("getattr", "hasattr") and node.args else _receiver_of_get(node)
        if softly is not None and ast.unparse(softly).split(".")[-1] in CONFIG_NAMES:
            yield Offence(source.name, node.lineno, f"reads a configuration softly: {ast.unparse(node)}")


def _unpickles(word: ast.keyword) -> bool:
    return ast.unparse(word.value) == ("True" if word.arg == "allow_pickle" else "False")


def _receiver_of_get(node: ast.Call) -> ast.expr | None:
    return node.func.value if isinstance(node.func, ast.Attribute) and node.func.attr == "get" else None


def words(source: Source) -> Iterator[Offence]:
    """Names say what a thing is, and nothing is left for later."""
    if source.name.split(".")[-1] in EMPTY_NAMES:
        yield Offence(source.name, 1, "has a name that says nothing of its subject")
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ClassDef) and EMPTY_CLASS.search(node.name):
            yield Offence(
                source.name, node.lineno, f"class {node.name} has a name that house style has another word for"
            )
    for number, line in enumerate(source.text.splitlines(), start=1):
        if UNFINISHED.search(line):
            yield Offence(source.name, number, f"leaves something unfinished: {line.strip()}")


def graph(found: list[Source]) -> dict[str, set[str]]:
    """Which of the modules each module imports at its top."""
    known = {source.name for source in found}
    return {
        source.name: {
            name
            for each in imports(source)
            if not each.is_local and (target := own(each.module))
            for name in (target, target.rpartition(".")[0])
            if name in known and name != source.name
        }
        for source in found
    }


def cycles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """Circles of imports, each once, beginning with its first name. A package holding its own modules is none."""
    found: dict[frozenset[str], list[str]] = {}

    def walk(name: str, path: list[str]) -> None:
        if name in path:
            circle = path[path.index(name) :]
            found.setdefault(frozenset(circle), circle)
            return
        if name in done:
            return
        for target in sorted(edges[name]):
            walk(target, [*path, name])
        done.add(name)

    done: set[str] = set()
    for name in sorted(edges):
        walk(name, [])
    return list(found.values())


def reach(name: str, edges: Mapping[str, set[str]]) -> set[str]:
    """Every module that importing this one imports, itself included and the packages above each."""
    reached: set[str] = set()
    waiting = [name]
    while waiting:
        each = waiting.pop()
        if each and each not in reached:
            reached.add(each)
            waiting.extend([*edges.get(each, ()), each.rpartition(".")[0]])
    return reached
