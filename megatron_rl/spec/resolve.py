"""From a name in YAML to the class of that name: the file name is the registration.

`shrinkage_baseline` among the stages is the class `ShrinkageBaseline` of `stages/shrinkage_baseline.py`; `drafts.reuse`
is the class `Reuse` of `stages/drafts/reuse.py`; `my_package.my_module:MyStage` is a class of the user's own, wherever
Python finds it.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter, ValidationError

from megatron_rl.spec.run import Part, Section
from megatron_rl.spec.schema import Shape, SpecError, nearest
from megatron_rl.spec.shape import find_module, read_module, shape_of

PACKAGE: Final = __name__.split(".")[0]
_ROOT: Final = Path(__file__).parent.parent


def class_name(name: str) -> str:
    """'drafts.reuse' -> 'Reuse', 'shrinkage_baseline' -> 'ShrinkageBaseline'."""
    return "".join(word.capitalize() for word in name.rsplit(".", 1)[-1].split("_"))


def names(room: str) -> tuple[str, ...]:
    """Every name that a room knows: its files that hold the class they are named after."""
    return tuple(sorted(_names(_ROOT / room, f"{PACKAGE}.{room}", "")))


def known(section: Section) -> tuple[str, ...]:
    """The names that a choice or a chain may take here."""
    there = names(section.room)
    return tuple(name for name in there if not section.known or name in section.known)


def _names(folder: Path, package: str, prefix: str) -> Iterator[str]:
    for path in folder.glob("*.py"):
        if not path.name.startswith("_") and shape_of(f"{package}.{path.stem}", class_name(path.stem)) is not None:
            yield f"{prefix}{path.stem}"
    for child in folder.glob("*/__init__.py"):
        name = child.parent.name
        yield from _names(child.parent, f"{package}.{name}", f"{prefix}{name}.")


def settings(section: Section) -> Shape:
    """The shape of a `settings` section."""
    module, _, name = section.target.partition(":")
    shape = shape_of(module, name)
    if shape is None:
        raise SpecError(f"section '{section.name}' is described by {section.target}, which this install does not have.")
    return shape


def find(name: str, room: str) -> Shape:
    """The shape of the idea called `name`. SpecError says what is known instead."""
    if ":" in name:
        return _find_own(name)
    shape = shape_of(f"{PACKAGE}.{room}.{name}", class_name(name))
    if shape is None:
        raise SpecError(f"there is no '{name}' among the {room}{nearest(name, names(room))}")
    return shape


def _find_own(name: str) -> Shape:
    """A class, or a function, by import path."""
    module_name, _, wanted = name.partition(":")
    if find_module(module_name) is None:
        raise SpecError(
            f"'{name}' names the module '{module_name}', which Python does not find; put its folder on PYTHONPATH"
        )
    try:
        module = read_module(module_name)
    except SyntaxError as error:
        raise SpecError(f"'{name}' cannot be read: {error.msg} ({error.filename}:{error.lineno})") from None
    if module is not None and wanted in module.functions:
        return Shape(target=name, meaning="", fields=())
    shape = shape_of(module_name, wanted)
    if shape is None:
        known = [*module.classes, *module.functions] if module else []
        raise SpecError(f"'{name}' names '{wanted}', which '{module_name}' does not define{nearest(wanted, known)}")
    return shape


def build(part: Part) -> object:
    """The object itself. This imports its module and whatever that needs; a function comes back as it is."""
    module_name, _, name = part.target.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), name)
    except ImportError as error:
        raise SpecError(f"{part.place}: '{part.path}' is {part.name!r}, which cannot be imported: {error}.") from error
    except SystemExit as error:
        raise SpecError(
            f"{part.place}: '{part.path}' is {part.name!r}, whose module ends the program where it is imported "
            f"(sys.exit({error.code!r})); put that behind `if __name__ == '__main__':`."
        ) from error
    if not isinstance(found, type):
        return found
    try:
        return TypeAdapter(found).validate_json(json.dumps(part.given), strict=True)
    except ValidationError as error:
        raise SpecError([_sentence(part, item["loc"], item["msg"]) for item in error.errors()]) from None


def _sentence(part: Part, location: tuple[int | str, ...], message: str) -> str:
    path = ".".join([part.path, *(str(step) for step in location)])
    return f"{part.place}: '{path}': {message.removeprefix('Value error, ').rstrip('.')}."
