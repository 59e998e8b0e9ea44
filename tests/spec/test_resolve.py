import pytest

from megatron_rl.spec.resolve import build, class_name, find, names, settings
from megatron_rl.spec.run import Part, Section
from megatron_rl.spec.schema import SpecError
from tests.fakes.ideas import Price, compute_score


def part(target, **given):
    return Part(path="learn.x", name="x", target=target, given=given, values={}, place="x.yaml:3")


def test_a_file_name_is_the_registration():
    assert class_name("shrinkage_baseline") == "ShrinkageBaseline"
    assert class_name("drafts.reuse") == "Reuse"
    assert find("shrinkage_baseline", "stages").target == "megatron_rl.stages.shrinkage_baseline:ShrinkageBaseline"
    assert find("drafts.reuse", "stages").target == "megatron_rl.stages.drafts.reuse:Reuse"
    assert {"uniform", "screening"} <= set(names("samplers"))


def test_an_unknown_name_is_told_with_the_nearest():
    with pytest.raises(SpecError, match=r"there is no 'shrinkge_baseline' among the stages; did you mean 'shrinkage_b"):
        find("shrinkge_baseline", "stages")


@pytest.mark.parametrize("name", ["../loop", "__init__", "", "drafts", ".", "drafts.", "os"])
def test_a_name_that_is_no_idea_is_refused(name):
    with pytest.raises(SpecError, match="there is no"):
        find(name, "stages")


def test_a_class_of_the_users_own_is_found_by_import_path():
    assert find("tests.fakes.ideas:Price", "objectives").field("low")
    with pytest.raises(
        SpecError, match=r"names 'Prise', which 'tests.fakes.ideas' does not define; did you mean 'Price'"
    ):
        find("tests.fakes.ideas:Prise", "objectives")
    with pytest.raises(SpecError, match=r"which Python does not find; put its folder on PYTHONPATH$"):
        find("nowhere.at_all:Price", "objectives")


def test_a_module_with_a_syntax_error_is_told_with_its_line(tmp_path, monkeypatch):
    (tmp_path / "broken_idea.py").write_text("x = 1\nclass Broken\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(SpecError, match=r"cannot be read: expected ':' .*broken_idea.py:2"):
        find("broken_idea:Broken", "stages")


def test_building_gives_the_object():
    built = build(part("tests.fakes.ideas:Price", low=0.1, sizes=[3], folder="there"))
    assert isinstance(built, Price)
    assert (built.low, built.sizes, str(built.folder)) == (0.1, (3,), "there")
    assert build(part("tests.fakes.ideas:compute_score")) is compute_score


def test_every_idea_with_defaults_can_be_built():
    for room in ("stages", "samplers", "objectives", "rewards"):
        for name in names(room):
            shape = find(name, room)
            if not any(field.is_required for field in shape.fields):
                assert type(build(part(shape.target))).__name__ == class_name(name)


def test_what_only_the_class_can_check_is_a_sentence_too():
    with pytest.raises(SpecError) as caught:
        build(part("tests.fakes.ideas:Price", low=0.5))
    assert caught.value.problems == ("x.yaml:3: 'learn.x': low is 0.5, which is never right; take another.",)
    with pytest.raises(SpecError, match=r"'learn.x.recipe': Input should be 'tensorwise', 'delayed'"):
        build(part("tests.fakes.ideas:Price", recipe="none"))


def test_a_part_whose_module_cannot_be_imported_says_which_package_is_missing(tmp_path, monkeypatch):
    (tmp_path / "wanting_idea.py").write_text("import no_such_package\nclass Wanting: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(SpecError, match=r"cannot be imported: No module named 'no_such_package'"):
        build(part("wanting_idea:Wanting"))


def test_settings_that_are_not_installed_say_so():
    with pytest.raises(
        SpecError, match=r"section 'x' is described by megatron_rl.nowhere:X, which this install does not"
    ):
        settings(Section(name="x", target="megatron_rl.nowhere:X", meaning=""))
