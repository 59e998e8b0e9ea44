"""What a configuration is made of: fields with types and meanings, and the error that lists every mistake at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import ConfigDict, TypeAdapter


class SpecError(ValueError):
    """What is wrong with what a user wrote: one sentence a problem, all of them at once."""

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(self.problems)


class Unknown:
    """The value of a default that only running the code would tell."""

    def __repr__(self) -> str:
        return "computed"


UNKNOWN: Final = Unknown()


@dataclass(frozen=True, kw_only=True)
class Field:
    """One key: Field(name="tp", type=int, default=1, default_text="1", meaning="Tensor parallel: ...")."""

    name: str
    type: object
    """A type for pydantic, or the `Shape` of a nested section; `object` where only the code itself can check."""
    meaning: str = ""
    is_required: bool = False
    is_optional: bool = False
    """Whether a nested section may be null."""
    default: object = UNKNOWN
    default_text: str = ""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The keys that one dataclass takes."""

    target: str
    """`package.module:Class`."""
    meaning: str
    fields: tuple[Field, ...]
    is_open: bool = False
    """Whether a base class elsewhere may bring keys that are not listed here."""

    @property
    def bare_key(self) -> str:
        """The key that a bare value stands for, the first; empty where that is a section itself."""
        first = self.fields[0] if self.fields else None
        return first.name if first and not isinstance(first.type, Shape) else ""

    def field(self, name: str) -> Field | None:
        return next((field for field in self.fields if field.name == name), None)


def nearest(name: str, known: Iterable[str]) -> str:
    """What to append to 'there is no tpp': "; did you mean 'tp'? (known: cp, dp, tp)"."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    listed = ", ".join(names) if len(names) <= 24 else ", ".join(names[:24]) + ", …"
    return f"; did you mean '{close[0]}'? (known: {listed})" if close else f"; known: {listed or 'none'}"


@lru_cache(maxsize=1024)
def adapter(type_: object) -> TypeAdapter[Any]:
    """Strict validation: '3' is no integer and 1 is no truth value."""
    kind: Any = type_  # read from source, so no type checker can know it
    return TypeAdapter(kind, config=ConfigDict(strict=True))


_WORDS: Final = {
    "int": "an integer",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "Path": "a path",
    "NoneType": "null",
    "object": "a value",
}
_BOUNDS: Final = ((Ge, "ge", "at least"), (Gt, "gt", "above"), (Le, "le", "at most"), (Lt, "lt", "below"))


def words(type_: object) -> str:
    """A type as a user reads it: 'an integer of at least 1', "one of 'fp32', 'bf16'"."""
    origin, arguments = get_origin(type_), get_args(type_)
    if isinstance(type_, Shape):
        return "a section"
    if origin is Annotated:
        bounds = [
            f"{said} {getattr(limit, attribute)}"
            for limit in arguments[1:]
            for kind, attribute, said in _BOUNDS
            if isinstance(limit, kind)
        ]
        return words(arguments[0]) + (f" {' and '.join(bounds)}" if bounds else "")
    if origin is Literal:
        return ("one of " if len(arguments) > 1 else "") + ", ".join(repr(argument) for argument in arguments)
    if origin in (Union, UnionType):
        return " or ".join(words(argument) for argument in arguments if argument is not NoneType) + (
            " or null" if NoneType in arguments else ""
        )
    if origin is tuple and Ellipsis not in arguments:
        return _fixed_list([words(argument) for argument in arguments])
    if origin in (tuple, list, set, frozenset):
        return f"a list, each item {words(arguments[0])}"
    if origin is dict or type_ is dict:
        return "a mapping"
    return _WORDS.get(getattr(type_, "__name__", ""), str(type_))


def _fixed_list(items: Sequence[str]) -> str:
    if set(items) <= {"a number", "an integer"} and len(set(items)) == 1:
        return f"a list of {len(items)} {items[0].split()[1]}s"
    return f"a list of {len(items)}: {', then '.join(items)}"
