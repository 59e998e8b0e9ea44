import dataclasses
import importlib
import importlib.util
import math
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import annotated_types

from megatron_rl.spec.resolve import class_name, names
from megatron_rl.spec.schema import UNKNOWN, Shape
from megatron_rl.spec.shape import find_module, read_module, shape_of

PRICE = shape_of("tests.fakes.ideas", "Price")


def test_fields_come_with_type_default_and_meaning():
    low = PRICE.field("low")
    assert (low.default, low.default_text, low.meaning) == (0.2, "0.2", "How far down. Or not; who knows.")
    assert PRICE.meaning.startswith("Prices tokens.")
    assert PRICE.field("pair").type == tuple[int, str] | None
    assert PRICE.field("sizes").default == [1, 2]
    assert PRICE.field("folder").type is Path
    assert PRICE.field("folder").default == "here"


def test_class_variables_and_plain_attributes_are_no_fields():
    assert {"slot", "reads"}.isdisjoint(field.name for field in PRICE.fields)


def test_an_alias_is_followed_to_the_module_it_comes_from():
    assert PRICE.field("mode").type == shape_of("tests.fakes.ideas", "Dearer").field("mode").type
    assert "'token'" in str(PRICE.field("mode").type)


def test_an_alias_of_another_package_is_left_to_the_class():
    assert PRICE.field("recipe").type is object


def test_a_type_that_is_not_known_is_left_to_the_class():
    assert PRICE.field("odd").type is object
    assert (PRICE.field("odd").default, PRICE.field("odd").default_text) == (UNKNOWN, "1j")
    assert PRICE.field("table").default is UNKNOWN


def test_a_nested_dataclass_is_a_shape_with_the_default_it_is_given():
    precision = shape_of("megatron_rl.actor.settings", "ActorSettings").field("precision")
    assert isinstance(precision.type, Shape)
    assert precision.default["compute"] == "bf16"


def test_a_base_class_gives_its_fields_and_one_that_cannot_be_read_leaves_the_shape_open():
    dearer = shape_of("tests.fakes.ideas", "Dearer")
    assert [field.name for field in dearer.fields] == [*(field.name for field in PRICE.fields), "more"]
    assert dearer.field("more").is_required
    assert not dearer.is_open
    assert shape_of("tests.fakes.ideas", "Heir").is_open


def test_a_package_without_an_init_file_is_read_too(tmp_path, monkeypatch):
    (tmp_path / "spacious" / "inner").mkdir(parents=True)
    (tmp_path / "spacious" / "inner" / "idea.py").write_text("class Idea:\n    size: int = 3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert shape_of("spacious.inner.idea", "Idea").field("size").default == 3
    assert "spacious" not in sys.modules


def test_a_package_that_only_a_finder_of_its_own_knows_is_read_too(tmp_path, monkeypatch):
    """As in an editable install, whose folder is not on the path."""
    (tmp_path / "away").mkdir()
    (tmp_path / "away" / "__init__.py").write_text("")
    (tmp_path / "away" / "idea.py").write_text("class Idea:\n    size: int = 3\n")

    class Finder:
        @staticmethod
        def find_spec(name, *_):
            where = tmp_path / "away" / "__init__.py"
            return importlib.util.spec_from_file_location(name, where) if name == "away" else None

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder])
    assert shape_of("away.idea", "Idea").field("size").default == 3
    assert "away" not in sys.modules


def test_what_is_not_there_has_no_shape():
    assert shape_of("tests.fakes.ideas", "Nobody") is None
    assert shape_of("tests.fakes.nowhere", "Price") is None
    assert find_module("no_such_package.module") is None
    assert read_module("sys") is None
    assert find_module("__main__.x") is None


def test_the_text_of_every_idea_tells_what_its_class_says():
    for room in ("stages", "samplers", "objectives", "rewards"):
        for name in names(room):
            found = getattr(importlib.import_module(f"megatron_rl.{room}.{name}"), class_name(name))
            shape = shape_of(f"megatron_rl.{room}.{name}", class_name(name))
            assert [field.name for field in shape.fields] == [field.name for field in dataclasses.fields(found)], name


def test_reading_a_shape_imports_nothing_heavy():
    code = (
        "import sys; from megatron_rl.spec.shape import shape_of; shape_of('megatron_rl.schedule', 'Schedule');"
        "print({'torch', 'pyarrow', 'megatron', 'vllm', 'ray', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_infinity_is_a_bound_of_what_must_be_finite():
    temperature = shape_of("megatron_rl.rollout.settings", "SamplingSettings").field("temperature")
    assert temperature.type == Annotated[float, annotated_types.Ge(0), annotated_types.Lt(math.inf)]
