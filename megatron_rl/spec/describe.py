"""Every key of a configuration as text, and a resolved run as YAML."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator

import yaml

from megatron_rl.spec import resolve
from megatron_rl.spec.reading import scalar
from megatron_rl.spec.run import SECTIONS, RunSpec, Section
from megatron_rl.spec.schema import UNKNOWN, Field, Shape, words

WIDTH = 110


def describe() -> str:
    """Every section with every key: its type, default and meaning; for choices and chains, every name with its keys."""
    return "\n".join(line for section in SECTIONS for line in _section(section))


def as_yaml(spec: RunSpec) -> str:
    """The resolved run; loading this text gives the same run."""
    return str(yaml.dump(spec.plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=WIDTH))


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]  # yaml has no types
    """Quotes text that this package would read as something else, and writes no anchors."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = "" if isinstance(scalar(text), str) else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def _section(section: Section) -> Iterator[str]:
    yield ""
    if section.kind == "settings":
        shape = resolve.settings(section)
        yield f"{section.name}: {section.meaning}"
        yield from _keys(shape, "  ")
        return
    form = "a list of" if section.kind == "chain" else "one of"
    yield f"{section.name}: {section.meaning} {form[0].upper()}{form[1:]} {section.room}:"
    for name in resolve.known(section) if _is_first(section) else ():
        shape = resolve.find(name, section.room)
        yield f"  {name}: {_first_line(shape.meaning)}"
        yield from _keys(shape, "    ")


def _is_first(section: Section) -> bool:
    """Whether the room's names have not been listed under an earlier section."""
    return next(other for other in SECTIONS if other.room == section.room) is section


def _first_line(text: str) -> str:
    return text.split("\n\n")[0].replace("\n", " ")


def _keys(shape: Shape, indent: str) -> Iterator[str]:
    for field in shape.fields:
        if isinstance(field.type, Shape):
            yield f"{indent}{field.name}: {field.meaning}"
            yield from _keys(field.type, indent + "  ")
        else:
            yield from _key(field, indent)


def _default(field: Field) -> str:
    """The default as YAML would write it, or the code that computes it."""
    if field.default is UNKNOWN:
        return field.default_text
    return field.default if isinstance(field.default, str) and field.default else json.dumps(field.default)


def _key(field: Field, indent: str) -> Iterator[str]:
    default = "required" if field.is_required else _default(field)
    head = f"{indent}{field.name} = {default}  ({words(field.type)})"
    yield from textwrap.wrap(f"{head}  {field.meaning}", WIDTH, subsequent_indent=indent + "    ")
