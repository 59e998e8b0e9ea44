import pickle
from typing import Annotated, Literal

import pytest
from annotated_types import Ge, Lt
from pydantic import ValidationError

from megatron_rl.spec.schema import Field, Shape, SpecError, adapter, nearest, words


def test_an_error_of_several_problems_survives_pickling():
    error = pickle.loads(pickle.dumps(SpecError(["one thing.", "another."])))
    assert error.problems == ("one thing.", "another.")
    assert str(error) == "one thing.\nanother."
    assert SpecError("alone.").problems == ("alone.",)


def test_the_nearest_name_is_offered_and_the_known_ones_listed():
    assert nearest("tpp", ["tp", "pp", "seed"]) == "; did you mean 'tp'? (known: pp, seed, tp)"
    assert nearest("zzz", ["tp"]) == "; known: tp"
    assert nearest("x", []) == "; known: none"


@pytest.mark.parametrize(
    ("type_", "text"),
    [
        (int, "an integer"),
        (Annotated[float, Ge(0), Lt(1)], "a number at least 0 and below 1"),
        (Literal["a", "b"], "one of 'a', 'b'"),
        (float | None, "a number or null"),
        (tuple[int, ...], "a list, each item an integer"),
        (tuple[float, float], "a list of 2 numbers"),
        (tuple[int, str], "a list of 2: an integer, then text"),
        (dict[str, float], "a mapping"),
    ],
)
def test_types_read_as_words(type_, text):
    assert words(type_) == text


@pytest.mark.parametrize(("type_", "text"), [(int, "true"), (int, '"3"'), (int, "1.0"), (bool, "1"), (str, "1")])
def test_nothing_is_coerced(type_, text):
    with pytest.raises(ValidationError):
        adapter(type_).validate_json(text)


def test_a_shape_finds_its_field():
    field = Field(name="tp", type=int)
    assert Shape(target="m:C", meaning="", fields=(field,)).field("tp") is field
    assert Shape(target="m:C", meaning="", fields=(field,)).field("pp") is None
