import math

import pytest

from megatron_rl.spec.reading import Node, read_file, read_text
from megatron_rl.spec.schema import SpecError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6),
        ("3", 3),
        ("1_000", 1000),
        ("-.5", -0.5),
        ("on", "on"),
        ("no", "no"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("'3'", "3"),
        ("true", True),
        ("null", None),
        ("~", None),
        ("-.inf", -math.inf),
        (".nan", ".nan"),
        ("1__0", "1__0"),
    ],
)
def test_a_scalar_means_what_it_looks_like(text, value):
    read = read_text(text, "here").value
    assert read == value
    assert type(read) is type(value)


def test_every_value_knows_its_line():
    root = read_text("a: 1\nb:\n  c: [2,\n    3]\n", "x.yaml")
    assert root.value["a"].place == "x.yaml:1"
    assert root.value["b"].value["c"].place == "x.yaml:3"
    assert root.value["b"].value["c"].value[1].place == "x.yaml:4"
    assert root.plain == {"a": 1, "b": {"c": [2, 3]}}


def test_all_keys_that_stand_twice_are_reported_at_once():
    with pytest.raises(SpecError) as caught:
        read_text("a: 1\nb: 2\na: 3\nb: 4\n", "x.yaml")
    assert caught.value.problems == (
        "x.yaml:3: the key 'a' stands twice (first at x.yaml:1); remove one.",
        "x.yaml:4: the key 'b' stands twice (first at x.yaml:2); remove one.",
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1, 2", r"x.yaml:1: this is not YAML"),
        ("a: b: c", r"x.yaml:1: this is not YAML: mapping values are not allowed here"),
        ("a:\n\t- 1", r"x.yaml:2: this is not YAML"),
        ("a: &x [1]\nb: *x", r"x.yaml:1: anchors and aliases are not supported"),
        ("a: &x [*x]", r"anchors and aliases"),
        ("a: !!python/object:os.system {}", r"the tag"),
        ("a: !!python/name:os.system x", r"the tag"),
        ("a: !mine 3", r"the tag"),
        ("? [1]\n: 2", r"a key must be text"),
        ("a: 1\n---\nb: 2", r"x.yaml:2: this is not YAML: but found another document"),
        ("[" * 5000, r"nested too deeply|not YAML"),
        ("a: \x00", r"not YAML"),
    ],
)
def test_what_is_no_plain_yaml_is_refused_with_its_place(text, said):
    with pytest.raises(SpecError, match=said):
        read_text(text, "x.yaml")


def test_a_missing_file_names_its_neighbours(tmp_path):
    (tmp_path / "near.yaml").write_text("a: 1")
    with pytest.raises(SpecError, match=r"there is no such file; its folder holds near.yaml"):
        read_file(tmp_path / "neer.yaml")


def test_a_file_is_a_mapping_of_text(tmp_path):
    (tmp_path / "list.yaml").write_text("- 1")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(SpecError, match="a configuration is a mapping of sections, but this file holds a list of 1"):
        read_file(tmp_path / "list.yaml")
    with pytest.raises(SpecError, match="cannot be read as text"):
        read_file(tmp_path / "bytes.yaml")
    with pytest.raises(SpecError, match="cannot be read as text"):
        read_file(tmp_path)
    assert read_file(tmp_path / "empty.yaml") == Node({}, f"{tmp_path / 'empty.yaml'}:1")
