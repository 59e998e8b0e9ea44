"""Values checked against the shape of a section: every mistake at once, and for each where it is and what is wanted."""

from __future__ import annotations

import json
from collections.abc import Mapping

from pydantic import ValidationError

from megatron_rl.spec.reading import Node
from megatron_rl.spec.schema import UNKNOWN, Field, Shape, adapter, nearest, words


def read_section(shape: Shape, node: Node, path: str, problems: list[str]) -> dict[str, object]:
    """The plain values written for a section. One bare value stands for the section's first key (`precision: bf16`)."""
    if node.value is None:
        node = Node({}, node.place)
    if not isinstance(node.value, dict | list) and shape.bare_key:
        node = Node({shape.bare_key: node}, node.place)
    if not isinstance(node.value, dict):
        problems.append(f"{node.place}: '{path}' should be a mapping of keys, but is {node.kind}.")
        return {}
    for field in shape.fields:
        if field.is_required and field.name not in node.value:
            wanted = f"{words(field.type)}{_said(field)}"
            problems.append(f"{node.place}: '{path}' lacks the key '{field.name}', which should be {wanted}.")
    return {key: _read_key(shape, key, child, path, problems) for key, child in node.value.items()}


def _read_key(shape: Shape, key: str, node: Node, path: str, problems: list[str]) -> object:
    field = shape.field(key)
    if field is None:
        if not shape.is_open:
            known = nearest(key, (field.name for field in shape.fields))
            problems.append(f"{node.place}: '{path}' has no key '{key}'{known}.")
        return node.plain
    if isinstance(field.type, Shape):
        is_null = field.is_optional and node.value is None
        return None if is_null else read_section(field.type, node, f"{path}.{key}", problems)
    _check_value(field, node, f"{path}.{key}", problems)
    return node.plain


def _check_value(field: Field, node: Node, path: str, problems: list[str]) -> None:
    try:
        adapter(field.type).validate_json(json.dumps(node.plain))
    except ValidationError as error:
        location = error.errors()[0]["loc"]
        wrong, came = node, "but is"
        item = location[0] if location else None
        # An item that is wanting has a place in the type alone: then the list itself is what is wrong.
        if isinstance(node.value, list) and isinstance(item, int) and item < len(node.value):
            wrong, came = node.value[item], f"but its item {item} is"
        problems.append(f"{wrong.place}: '{path}' should be {words(field.type)}{_said(field)}, {came} {wrong.kind}.")


def _said(field: Field) -> str:
    """The first clause of the key's meaning, in brackets."""
    clause = field.meaning.split(". ")[0].split("; ")[0].rstrip(".")
    return f" ({clause})" if clause and len(clause) <= 80 else ""


def complete(shape: Shape, given: Mapping[str, object]) -> dict[str, object]:
    """What was given, and the defaults of the rest as far as the source tells them."""
    values: dict[str, object] = {}
    for field in shape.fields:
        value = given.get(field.name, field.default)
        if isinstance(field.type, Shape) and field.name in given and isinstance(value, Mapping):
            value = complete(field.type, value)
        if value is not UNKNOWN:
            values[field.name] = _known(value)
    return values | {key: value for key, value in given.items() if shape.field(key) is None}


def _known(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _known(item) for key, item in value.items() if item is not UNKNOWN}
    return value
