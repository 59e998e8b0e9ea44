"""Configurations laid over one another, and single values set in them from the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from megatron_rl.spec.reading import Node, read_text
from megatron_rl.spec.resolve import find, names, settings
from megatron_rl.spec.run import SECTIONS, Section
from megatron_rl.spec.schema import Shape, SpecError, nearest

BY_NAME: Final[Mapping[str, Section]] = {section.name: section for section in SECTIONS}
COMMAND_LINE: Final = "command line"


def chosen(section: Section, node: Node) -> Node:
    """A choice in one form, {name: {fields}}, however it was written: `name`, `{name: {…}}` or the default's fields."""
    if isinstance(node.value, str):
        return Node({node.value: Node({}, node.place)}, node.place)
    if not isinstance(node.value, dict):
        return node
    if section.default and not _is_named(section, node.value):
        return Node({section.default: node}, node.place)
    return node


def _is_named(section: Section, written: dict[str, Node]) -> bool:
    if len(written) != 1:
        return False
    ((name, fields),) = written.items()
    is_field = find(section.default, section.room).field(name) is not None
    return name in names(section.room) or (isinstance(fields.value, dict) and not is_field)


def in_one_form(root: Node) -> Node:
    """The same configuration with every choice as `chosen` gives it and no section written as a bare value."""
    if not isinstance(root.value, dict):
        return root
    return Node({name: _section_in_one_form(name, node) for name, node in root.value.items()}, root.place)


def _section_in_one_form(name: str, node: Node) -> Node:
    section = BY_NAME.get(name)
    if section is None or section.kind == "chain":
        return node
    return chosen(section, node) if section.kind == "choice" else _spread(settings(section), node)


def _spread(shape: Shape, node: Node) -> Node:
    """A bare value set under the section's first key, as `precision: bf16` means `precision: {compute: bf16}`."""
    if node.value is not None and not isinstance(node.value, dict | list) and shape.bare_key:
        return Node({shape.bare_key: node}, node.place)
    if not isinstance(node.value, dict):
        return node
    inner = {field.name: field.type for field in shape.fields if isinstance(field.type, Shape)}
    return Node({key: _spread(inner[key], at) if key in inner else at for key, at in node.value.items()}, node.place)


def merged(base: Node, over: Node, depth: int = 0, name: str = "") -> Node:
    """`over` laid on `base`: mappings key by key; anything else, another choice included, replaces whole."""
    if not isinstance(base.value, dict) or not isinstance(over.value, dict):
        return over
    is_choice = depth == 1 and name in BY_NAME and BY_NAME[name].kind == "choice"
    if is_choice and set(base.value) != set(over.value):
        return over
    joined = dict(base.value)
    for key, node in over.value.items():
        joined[key] = merged(joined[key], node, depth + 1, key) if key in joined else node
    return Node(joined, over.place)


def read_overrides(overrides: Sequence[str], problems: list[str]) -> list[tuple[tuple[str, ...], Node]]:
    """Key paths and values of `a.b=c` arguments; the value is YAML."""
    read = []
    for override in overrides:
        key, equals, text = override.partition("=")
        place = f"{COMMAND_LINE} '{override}'"
        if key.startswith("-"):
            problems.append(f"{place}: settings take no dashes; write {key.lstrip('-') or 'key'}=value.")
        elif not equals or not all(key.split(".")):
            problems.append(f"{place}: a setting is key=value with dots between keys, as in actor.tp=2.")
        elif not text.strip():
            problems.append(f"{place}: there is no value after '='; write null for none, '' for empty text.")
        else:
            try:
                read.append((tuple(key.split(".")), read_text(text, place, line=1)))
            except SpecError as error:
                problems.extend(error.problems)
    return read


def with_override(root: Node, path: tuple[str, ...], value: Node, problems: list[str]) -> Node:
    """One value set: `sampler.prompts` of the sampler that is chosen, `learn.advantage.scale` of that step."""
    section = BY_NAME.get(path[0])
    sections = dict(root.value) if isinstance(root.value, dict) else {}
    if section is None:
        problems.append(f"{value.place}: there is no section '{path[0]}'{nearest(path[0], BY_NAME)}.")
        return root
    current = sections.get(section.name, Node({}, value.place))
    if section.kind == "chain":
        sections[section.name] = _in_chain(current, path, value, problems)
    elif section.kind == "choice":
        sections[section.name] = _in_choice(section, current, path, value, problems)
    else:
        bare_key = settings(section).bare_key
        is_bare = len(path) == 1 and bare_key and not isinstance(value.value, dict | list)
        keys = (bare_key,) if is_bare else path[1:]
        sections[section.name] = _set(current, keys, value, problems)
    return in_one_form(Node(sections, root.place))


def _in_choice(section: Section, current: Node, path: tuple[str, ...], value: Node, problems: list[str]) -> Node:
    if len(path) == 1:
        wanted = chosen(section, value)
        same = (
            isinstance(wanted.value, dict)
            and isinstance(current.value, dict)
            and set(wanted.value) == set(current.value)
        )
        return merged(current, wanted) if same else wanted
    written = current.value if isinstance(current.value, dict) else {}
    name = next(iter(written), section.default)
    if not name:
        problems.append(
            f"{value.place}: no {section.name} has been chosen, so it has no '{path[1]}'; set {section.name}=…."
        )
        return current
    keys = path[2:] if path[1] == name and len(path) > 2 else path[1:]
    return Node({name: _set(written.get(name, Node({}, value.place)), keys, value, problems)}, current.place)


def _in_chain(current: Node, path: tuple[str, ...], value: Node, problems: list[str]) -> Node:
    if len(path) == 1:
        return value
    steps = current.value if isinstance(current.value, list) else []
    known = {step_name(step) for step in steps}
    name = next((".".join(path[1:end]) for end in range(len(path) - 1, 1, -1) if ".".join(path[1:end]) in known), None)
    if name is None:
        problems.append(f"{value.place}: '{path[0]}' has no step '{path[1]}' to set a key of{nearest(path[1], known)}.")
        return current
    keys = path[2 + name.count(".") :]
    return Node(
        [
            Node({name: _set(step_fields(step), keys, value, problems)}, step.place)
            if step_name(step) == name
            else step
            for step in steps
        ],
        current.place,
    )


def step_name(step: Node) -> str:
    """The name of a chain's item, `name` or `{name: {…}}`; empty where it is neither."""
    if isinstance(step.value, dict) and len(step.value) == 1:
        return next(iter(step.value))
    return step.value if isinstance(step.value, str) else ""


def step_fields(step: Node) -> Node:
    """The fields of a chain's item."""
    return next(iter(step.value.values())) if isinstance(step.value, dict) else Node({}, step.place)


def _set(node: Node, keys: tuple[str, ...], value: Node, problems: list[str]) -> Node:
    if not keys:
        return value
    if node.value is not None and not isinstance(node.value, dict):
        problems.append(
            f"{value.place}: '{keys[0]}' cannot be set inside a single value; there is {node.kind} at {node.place}."
        )
        return node
    inner = dict(node.value or {})
    inner[keys[0]] = _set(inner.get(keys[0], Node({}, value.place)), keys[1:], value, problems)
    return Node(inner, node.place)
