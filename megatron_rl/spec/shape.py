"""The keys a dataclass takes, read from its source: nothing is imported, so nothing heavy wakes.

Every component owns its dataclass, many of them in modules that import torch. Their fields, types, defaults and the
string under each field are all in the text of the module, which is read here; a type this reader does not know is
`object`, and is checked by the class itself when it is built.
"""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Final, Literal

import annotated_types

from megatron_rl.spec.schema import UNKNOWN, Field, Shape

_PLAIN: Final[Mapping[str, object]] = {
    "int": int,
    "float": float,
    "str": str,
    "bool": bool,
    "Path": Path,
    "None": None,
    "dict": dict,
}
_SEQUENCES: Final = ("tuple", "list", "Sequence", "frozenset", "set")
_BOUNDS: Final = ("Ge", "Gt", "Le", "Lt")


@dataclass(frozen=True)
class Module:
    """The text of a module: its classes, functions, aliases and imports."""

    name: str
    path: Path
    classes: Mapping[str, ast.ClassDef]
    functions: Mapping[str, ast.FunctionDef]
    aliases: Mapping[str, ast.expr]
    imports: Mapping[str, tuple[str, str]]


def find_module(name: str) -> Path | None:
    """The file of a module, found without running the packages above it."""
    first, *rest = name.split(".")
    try:
        # Through every finder, since an editable install has one of its own; a first name alone imports nothing.
        spec = importlib.util.find_spec(first) if first else None
    except ValueError:  # a module in use that was not found but made, such as __main__
        return None
    for part in rest:
        # By its last name alone: a dotted name would make a namespace package look for its parent among the imported.
        search = list(spec.submodule_search_locations or []) if spec else []
        spec = importlib.machinery.PathFinder.find_spec(part, search) if part else None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


@lru_cache(maxsize=256)
def read_module(name: str) -> Module | None:
    """The module's text as a tree, or None where there is no such source. A SyntaxError is the caller's to tell."""
    path = find_module(name)
    if path is None:
        return None
    body = ast.parse(path.read_text(encoding="utf-8"), filename=str(path)).body
    assigned = {node.targets[0].id: node.value for node in body if isinstance(node, ast.Assign) and _is_named(node)}  # type: ignore[attr-defined]  # _is_named
    return Module(
        name=name,
        path=path,
        classes={node.name: node for node in body if isinstance(node, ast.ClassDef)},
        functions={node.name: node for node in body if isinstance(node, ast.FunctionDef)},
        aliases=assigned,
        imports={
            alias.asname or alias.name: (node.module, alias.name)
            for node in body
            if isinstance(node, ast.ImportFrom) and node.module and not node.level
            for alias in node.names
        },
    )


def _is_named(node: ast.Assign) -> bool:
    return len(node.targets) == 1 and isinstance(node.targets[0], ast.Name)


@lru_cache(maxsize=256)
def shape_of(module_name: str, class_name: str) -> Shape | None:
    """The shape of `module:Class`, or None where the module or the class is not there."""
    module = read_module(module_name)
    definition = module.classes.get(class_name) if module else None
    if module is None or definition is None:
        return None
    fields: dict[str, Field] = {}
    is_open = False
    for base in definition.bases:
        inherited = _named_shape(base, module)
        is_open = is_open or inherited is None or inherited.is_open
        fields |= {field.name: field for field in (inherited.fields if inherited else ())}
    fields |= {field.name: field for field in _own_fields(definition, module)}
    meaning = ast.get_docstring(definition) or ""
    return Shape(target=f"{module_name}:{class_name}", meaning=meaning, fields=tuple(fields.values()), is_open=is_open)


def _named_shape(expression: ast.expr, module: Module) -> Shape | None:
    """The shape of a dataclass named in the module, there or imported from this package."""
    if not isinstance(expression, ast.Name):
        return None
    definition = module.classes.get(expression.id)
    if definition is not None:
        return shape_of(module.name, expression.id) if _is_dataclass(definition) else None
    origin, name = module.imports.get(expression.id, ("", ""))
    if origin.split(".")[0] != module.name.split(".")[0]:
        return None
    source = read_module(origin)
    return _named_shape(ast.Name(id=name), source) if source else None


def _is_dataclass(definition: ast.ClassDef) -> bool:
    return any(
        (decorator.func if isinstance(decorator, ast.Call) else decorator).id == "dataclass"  # type: ignore[attr-defined]  # guarded
        for decorator in definition.decorator_list
        if isinstance(decorator.func if isinstance(decorator, ast.Call) else decorator, ast.Name)
    )


def _own_fields(definition: ast.ClassDef, module: Module) -> list[Field]:
    fields = []
    following: list[ast.stmt | None] = [*definition.body[1:], None]
    for node, after in zip(definition.body, following, strict=True):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        if "ClassVar" in ast.unparse(node.annotation):
            continue
        is_meaning = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        meaning = str(after.value.value) if is_meaning else ""  # type: ignore[union-attr]  # is_meaning
        fields.append(_field(node.target.id, node, module, " ".join(meaning.split())))
    return fields


def _field(name: str, node: ast.AnnAssign, module: Module, meaning: str) -> Field:
    annotation = node.annotation
    arms = _arms(annotation)
    section = next((shape for arm in arms if (shape := _named_shape(arm, module))), None)
    type_ = section if section is not None else type_of(annotation, module)
    default, text = _default(node.value, section)
    return Field(
        name=name,
        type=type_,
        meaning=meaning,
        is_required=node.value is None,
        is_optional=any(isinstance(arm, ast.Constant) and arm.value is None for arm in arms),
        default=default,
        default_text=text,
    )


def _arms(annotation: ast.expr) -> list[ast.expr]:
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        return [*_arms(annotation.left), *_arms(annotation.right)]
    return [annotation]


def type_of(annotation: ast.expr, module: Module) -> object:
    """The annotation as a type for pydantic, `object` where it is none of the types a YAML value can be."""
    arms = _arms(annotation)
    if len(arms) > 1:
        types = [type_of(arm, module) for arm in arms]
        union = types[0]
        for type_ in types[1:]:
            union = union | type_ if object not in (union, type_) else object  # type: ignore[operator]  # types, at run time
        return union
    if isinstance(annotation, ast.Constant):
        return None if annotation.value is None else object
    if isinstance(annotation, ast.Name):
        return _PLAIN[annotation.id] if annotation.id in _PLAIN else _alias(annotation.id, module)
    if isinstance(annotation, ast.Subscript) and isinstance(annotation.value, ast.Name):
        return _generic(annotation.value.id, annotation.slice, module)
    return object


def _alias(name: str, module: Module) -> object:
    if name in module.aliases:
        return type_of(module.aliases[name], module)
    origin, original = module.imports.get(name, ("", ""))
    source = read_module(origin) if origin.split(".")[0] == module.name.split(".")[0] else None
    return _alias(original, source) if source else object


def _generic(name: str, slice_: ast.expr, module: Module) -> object:
    items = slice_.elts if isinstance(slice_, ast.Tuple) else [slice_]
    if name == "Literal":
        values = tuple(item.value for item in items if isinstance(item, ast.Constant))
        return Literal[values]
    if name == "Annotated":
        bounds = [_bound(item) for item in items[1:]]
        return Annotated[(type_of(items[0], module), *[bound for bound in bounds if bound is not None])]
    if name in _SEQUENCES:
        is_uniform = len(items) == 1 or (isinstance(items[-1], ast.Constant) and items[-1].value is Ellipsis)
        inner = type_of(items[0], module)
        return tuple[inner, ...] if is_uniform else tuple[*(type_of(item, module) for item in items)]  # type: ignore[valid-type,misc]  # types, at run time
    if name in ("dict", "Mapping") and len(items) == 2:
        return dict[str, type_of(items[1], module)]  # type: ignore[misc]  # types, at run time
    return object


def _bound(expression: ast.expr) -> object | None:
    """Ge(1), Lt(math.inf) and their kin, as annotated_types has them."""
    if not (isinstance(expression, ast.Call) and isinstance(expression.func, ast.Name)):
        return None
    if expression.func.id not in _BOUNDS or len(expression.args) != 1:
        return None
    (limit,) = expression.args
    number = math.inf if ast.unparse(limit) == "math.inf" else ast.literal_eval(limit)
    return getattr(annotated_types, expression.func.id)(number)  # type: ignore[no-any-return]


def _default(value: ast.expr | None, section: Shape | None) -> tuple[object, str]:
    """The default, UNKNOWN where it is no literal, and as text."""
    if value is None:
        return UNKNOWN, ""
    if section is not None and isinstance(value, ast.Call):
        return _section_default(value, section), ast.unparse(value)
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "Path" and value.args:
        value = value.args[0]
    try:
        literal = ast.literal_eval(value)
    except ValueError:
        return UNKNOWN, ast.unparse(value)
    try:
        return json.loads(json.dumps(literal)), ast.unparse(value)
    except TypeError:
        return UNKNOWN, ast.unparse(value)


def _section_default(call: ast.Call, section: Shape) -> object:
    """`Recompute(layers=2)` or `field(default_factory=Recompute)`, as the values it would hold."""
    values = {field.name: field.default for field in section.fields}
    for keyword in call.keywords:
        if keyword.arg in values:
            values[keyword.arg] = _default(keyword.value, None)[0]
    return values
