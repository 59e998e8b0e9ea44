"""YAML read strictly: every value with the place it stands at, no key twice, no tags, numbers as anyone writes them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import yaml

from megatron_rl.spec.schema import SpecError

Scalar = None | bool | int | float | str


@dataclass(frozen=True)
class Node:
    """A value and where it was written: Node({"tp": Node(2, "run.yaml:4")}, "run.yaml:3")."""

    value: Scalar | dict[str, Node] | list[Node]
    place: str

    @property
    def plain(self) -> object:
        """The value alone, nested nodes unwrapped."""
        if isinstance(self.value, dict):
            return {key: node.plain for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain for node in self.value]
        return self.value

    @property
    def kind(self) -> str:
        """What came, in a sentence: "'two' (text)"."""
        if isinstance(self.value, dict):
            return "a mapping" + (f" with {', '.join(map(repr, self.value))}" if self.value else " that is empty")
        if isinstance(self.value, list):
            return f"a list of {len(self.value)}"
        if self.value is None:
            return "empty (null)"
        if isinstance(self.value, bool):
            return f"{str(self.value).lower()} (a truth value)"
        return f"{self.value!r} ({'text' if isinstance(self.value, str) else 'a number'})"


# YAML 1.1 would read `1e-6` as text, `on` as true, `12:30` as 750 and `2024-01-01` as a date.
# Here each is what it looks like.
_CONSTANTS: Final = {"": None, "~": None, "null": None, "true": True, "false": False, "True": True, "False": False}
_INTEGER: Final = re.compile(r"[-+]?[0-9]{1,30}|[-+]?[0-9]{1,3}(_[0-9]{3}){1,9}")
_NUMBER: Final = re.compile(r"[-+]?([0-9]{1,30}\.?[0-9]{0,30}|\.[0-9]{1,30})([eE][-+]?[0-9]{1,4})?")
_INFINITE: Final = re.compile(r"[-+]?\.inf")


def scalar(text: str) -> Scalar:
    """What unquoted text means."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _NUMBER.fullmatch(text) or _INFINITE.fullmatch(text):
        return float(text.replace(".inf", "inf"))
    return text


def read_text(text: str, name: str, line: int | None = None) -> Node:
    """The YAML document `text`; a `line` given is the place of all of it (a command line has only one)."""
    try:
        composed = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{mark.line + 1}" if mark and line is None else name
        raise SpecError(
            f"{place}: this is not YAML: {error.problem or error}; check indentation, colons and quotes."
        ) from None
    except RecursionError:
        raise SpecError(f"{name}: this YAML is nested too deeply to be a configuration.") from None
    except yaml.YAMLError as error:
        raise SpecError(f"{name}: this is not YAML: {' '.join(str(error).split())}.") from None
    reader = _Reader(name=name, line=line, problems=[])
    node = reader.node(composed) if composed is not None else Node({}, f"{name}:1" if line is None else name)
    if reader.problems:
        raise SpecError(reader.problems)
    return node


def read_file(path: Path) -> Node:
    """The YAML file at `path`, which holds a mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = sorted(other.name for other in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        hint = f"; its folder holds {', '.join(near[:12])}" if near else ""
        raise SpecError(f"{path}: there is no such file{hint}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: this file cannot be read as text: {error}.") from None
    node = read_text(text, str(path))
    if not isinstance(node.value, dict):
        raise SpecError(f"{node.place}: a configuration is a mapping of sections, but this file holds {node.kind}.")
    return node


@dataclass(frozen=True)
class _Reader:
    name: str
    line: int | None
    problems: list[str]
    seen: set[int] = field(default_factory=set)

    def place(self, raw: yaml.Node) -> str:
        return f"{self.name}:{raw.start_mark.line + 1}" if self.line is None else self.name

    def node(self, raw: yaml.Node) -> Node:
        if id(raw) in self.seen:
            self.problems.append(f"{self.place(raw)}: anchors and aliases are not supported; write the value out.")
            return Node(None, self.place(raw))
        self.seen.add(id(raw))
        if not raw.tag.startswith("tag:yaml.org,2002:") or "python" in raw.tag:
            self.problems.append(f"{self.place(raw)}: the tag {raw.tag!r} is not supported; write the value itself.")
        if isinstance(raw, yaml.MappingNode):
            return Node(self.mapping(raw), self.place(raw))
        if isinstance(raw, yaml.SequenceNode):
            return Node([self.node(item) for item in raw.value], self.place(raw))
        return Node(self.scalar(raw), self.place(raw))

    def mapping(self, raw: yaml.MappingNode) -> dict[str, Node]:
        found: dict[str, Node] = {}
        for key, value in raw.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            if name is None:
                self.problems.append(f"{self.place(key)}: a key must be text, but here it is a list or a mapping.")
            elif name in found:
                first = found[name].place
                self.problems.append(
                    f"{self.place(key)}: the key '{name}' stands twice (first at {first}); remove one."
                )
            else:
                node = self.node(value)
                found[name] = Node(node.value, self.place(key))
        return found

    def scalar(self, raw: yaml.ScalarNode) -> Scalar:
        is_quoted = raw.style is not None
        return str(raw.value) if is_quoted else scalar(str(raw.value))
