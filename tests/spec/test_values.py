import pytest

from megatron_rl.spec.reading import read_text
from megatron_rl.spec.shape import shape_of
from megatron_rl.spec.values import complete, read_section

PRICE = shape_of("tests.fakes.ideas", "Price")
ACTOR = shape_of("megatron_rl.actor.settings", "ActorSettings")


def problems_of(shape, text):
    problems = []
    read_section(shape, read_text(text, "x.yaml"), "part", problems)
    return problems


def test_a_right_section_gives_its_plain_values():
    problems = []
    given = read_section(PRICE, read_text("low: 0.3\nsizes: [4]\npair: [1, a]\n", "x.yaml"), "part", problems)
    assert problems == []
    assert given == {"low": 0.3, "sizes": [4], "pair": [1, "a"]}


def test_every_mistake_is_told_with_its_line():
    text = "lwo: 1\nlow: much\nmode: tokens\nsizes: [1,\n  two]\n"
    assert problems_of(PRICE, text) == [
        "x.yaml:1: 'part' has no key 'lwo'; did you mean 'low'? "
        "(known: folder, low, mode, odd, pair, precision, recipe, sizes, table).",
        "x.yaml:2: 'part.low' should be a number at least 0 and at most 1 (How far down), but is 'much' (text).",
        "x.yaml:3: 'part.mode' should be one of 'token', 'row' (What is averaged), but is 'tokens' (text).",
        "x.yaml:5: 'part.sizes' should be a list, each item an integer, but its item 1 is 'two' (text).",
    ]


@pytest.mark.parametrize(
    ("text", "came"),
    [
        ("low: 2", "2 (a number)"),
        ("low: true", "true (a truth value)"),
        ("low:", "empty (null)"),
        ("low: []", "a list of 0"),
        ("low: {a: 1}", "a mapping with 'a'"),
        ("low: .nan", "'.nan' (text)"),
    ],
)
def test_what_came_is_said(text, came):
    (problem,) = problems_of(PRICE, text)
    assert problem.endswith(f"but is {came}.")


@pytest.mark.parametrize("text", ["pair: [1]", "pair: [1, a, 2]", "pair: []"])
def test_a_list_of_the_wrong_length_is_told_with_the_right_one(text):
    (problem,) = problems_of(PRICE, text)
    assert problem.startswith("x.yaml:1: 'part.pair' should be a list of 2: an integer, then text")
    assert problem.endswith(f"but is a list of {len(read_text(text, 'x').value['pair'].value)}.")
    (betas,) = problems_of(ACTOR, "optimizer: {betas: [1]}")
    assert "'part.optimizer.betas' should be a list of 2 numbers" in betas


def test_a_required_key_that_is_missing_is_named():
    (problem,) = problems_of(shape_of("tests.fakes.ideas", "Dearer"), "low: 0.1")
    assert problem == "x.yaml:1: 'part' lacks the key 'more', which should be an integer."


def test_one_bare_value_stands_for_the_first_key():
    problems = []
    given = read_section(ACTOR, read_text("precision: fp32", "x.yaml"), "actor", problems)
    assert given == {"precision": {"compute": "fp32"}}
    assert problems_of(ACTOR, "precision: fp31")[0].startswith("x.yaml:1: 'part.precision.compute' should be one of")


def test_no_bare_value_stands_for_a_whole_section():
    (problem,) = problems_of(ACTOR, "optimizer: 3")
    assert problem == "x.yaml:1: 'part.optimizer' should be a mapping of keys, but is 3 (a number)."


def test_a_section_that_is_a_list_is_refused_and_an_empty_one_is_all_defaults():
    assert problems_of(PRICE, "[1]") == ["x.yaml:1: 'part' should be a mapping of keys, but is a list of 1."]
    assert problems_of(PRICE, "") == []


def test_an_open_shape_takes_keys_it_does_not_know():
    assert problems_of(shape_of("tests.fakes.ideas", "Heir"), "anything: 1") == []


def test_completion_adds_the_defaults_that_are_known():
    values = complete(ACTOR, {"tp": 2, "precision": {"compute": "fp8"}})
    assert values["tp"] == 2
    assert values["pp"] == 1
    assert values["precision"] == {"compute": "fp8", "recipe": "blockwise", "edge_layers_bf16": 0}
    assert values["recompute"]["granularity"] == "none"
