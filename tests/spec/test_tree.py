import pytest

from megatron_rl.spec.reading import read_text
from megatron_rl.spec.tree import in_one_form, merged, read_overrides, with_override


def node(text):
    return in_one_form(read_text(text, "x.yaml"))


def overridden(text, *overrides):
    problems = []
    root = node(text)
    for path, value in read_overrides(overrides, problems):
        root = with_override(root, path, value, problems)
    return root.plain, problems


def test_a_choice_has_one_form_however_it_is_written():
    assert node("sampler: uniform").plain == node("sampler: {uniform: {}}").plain == {"sampler": {"uniform": {}}}


def test_what_lies_over_wins_key_by_key():
    both = merged(node("actor: {tp: 2, pp: 2}\nlearn: [a, b]"), node("actor: {tp: 4}\nlearn: [c]"))
    assert both.plain == {"actor": {"tp": 4, "pp": 2}, "learn": ["c"]}


def test_another_choice_replaces_the_choice_below_and_the_same_one_refines_it():
    base = node("sampler: {uniform: {prompts: 4}}")
    assert merged(base, node("sampler: {screening: {more: 2}}")).plain == {"sampler": {"screening": {"more": 2}}}
    assert merged(base, node("sampler: {uniform: {samples: 2}}")).plain == {
        "sampler": {"uniform": {"prompts": 4, "samples": 2}}
    }
    assert merged(base, node("sampler: uniform")).plain == {"sampler": {"uniform": {"prompts": 4}}}


@pytest.mark.parametrize(
    ("text", "override", "wanted"),
    [
        ("actor: {tp: 2}", "actor.tp=4", {"actor": {"tp": 4}}),
        ("actor: {tp: 2}", "actor.recompute.layers=3", {"actor": {"tp": 2, "recompute": {"layers": 3}}}),
        ("model: {folder: a, reference: b}", "model=c", {"model": {"folder": "c", "reference": "b"}}),
        ("model: a", "model.reference=b", {"model": {"folder": "a", "reference": "b"}}),
        (
            "actor: {precision: fp8}",
            "actor.precision.recipe=mxfp8",
            {"actor": {"precision": {"compute": "fp8", "recipe": "mxfp8"}}},
        ),
        ("actor: {}", "actor.stage_layers=[1, 2]", {"actor": {"stage_layers": [1, 2]}}),
        ("sampler: uniform", "sampler.prompts=64", {"sampler": {"uniform": {"prompts": 64}}}),
        ("sampler: uniform", "sampler.uniform.prompts=64", {"sampler": {"uniform": {"prompts": 64}}}),
        ("sampler: {uniform: {prompts: 4}}", "sampler=uniform", {"sampler": {"uniform": {"prompts": 4}}}),
        ("sampler: {uniform: {prompts: 4}}", "sampler=screening", {"sampler": {"screening": {}}}),
        ("sampler: uniform", "sampler={screening: {more: 3}}", {"sampler": {"screening": {"more": 3}}}),
        ("learn: [a, {b: {k: 1}}]", "learn.b.k=2", {"learn": ["a", {"b": {"k": 2}}]}),
        ("learn: [drafts.reuse]", "learn.drafts.reuse.k=2", {"learn": [{"drafts.reuse": {"k": 2}}]}),
        ("learn: [a]", "learn=[b, c]", {"learn": ["b", "c"]}),
    ],
)
def test_an_override_sets_one_value(text, override, wanted):
    assert overridden(text, override) == (wanted, [])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("--actor.tp=2", "command line '--actor.tp=2': settings take no dashes; write actor.tp=value."),
        ("actor.tp", "command line 'actor.tp': a setting is key=value with dots between keys, as in actor.tp=2."),
        ("actor..tp=2", "a setting is key=value"),
        ("=2", "a setting is key=value"),
        ("actor.tp=", "there is no value after '='"),
        ("actor.tp=[1", "command line 'actor.tp=[1': this is not YAML"),
        ("actr.tp=2", "there is no section 'actr'; did you mean 'actor'?"),
        ("learn.c.k=2", "'learn' has no step 'c' to set a key of; known: a, b."),
        ("objective.low=2", "no objective has been chosen, so it has no 'low'; set objective=…."),
        ("actor.tp.x=2", "'x' cannot be set inside a single value; there is 2 (a number) at x.yaml:1."),
    ],
)
def test_an_override_that_sets_nothing_is_a_sentence(override, said):
    _, problems = overridden("actor: {tp: 2}\nlearn: [a, b]", override)
    assert len(problems) == 1
    assert said in problems[0]
