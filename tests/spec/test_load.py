import pytest

from megatron_rl.spec.load import load
from megatron_rl.spec.schema import SpecError

WHOLE = """\
model: some/folder
data: {train: [some/prompts.parquet]}
schedule: {steps: 3}
sampler: {uniform: {prompts: 4, samples: 2}}
collect: [generate, judge]
learn: [leave_one_out_baseline, advantage]
objective: {clipped: {low: 0.1}}
reward: tests.fakes.ideas:compute_score
"""


def write(folder, name, text):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def problems_of(path, *overrides):
    with pytest.raises(SpecError) as caught:
        load(path, overrides)
    return caught.value.problems


def test_a_whole_file_is_a_run(tmp_path):
    spec = load(write(tmp_path, "run.yaml", WHOLE), ["actor.tp=2"])
    assert spec.choices["sampler"].given == {"prompts": 4, "samples": 2}
    assert spec.choices["sampler"].values["shuffle"] is True
    assert [part.name for part in spec.chains["learn"]] == ["leave_one_out_baseline", "advantage"]
    assert spec.settings["actor"].given == {"tp": 2}
    assert spec.settings["model"].values["folder"] == "some/folder"


def test_one_file_extends_another_beside_it(tmp_path):
    write(tmp_path, "base/all.yaml", WHOLE)
    spec = load(write(tmp_path, "run.yaml", "extends: base/all.yaml\nsampler: {uniform: {samples: 8}}\n"))
    assert spec.choices["sampler"].given == {"prompts": 4, "samples": 8}
    assert [name.rsplit("/", 1)[-1] for name in spec.files] == ["run.yaml", "all.yaml"]


def test_the_command_line_may_choose_what_is_extended(tmp_path):
    write(tmp_path, "a.yaml", WHOLE)
    write(tmp_path, "b.yaml", WHOLE.replace("steps: 3", "steps: 7"))
    path = write(tmp_path, "run.yaml", "extends: a.yaml\n")
    assert load(path).settings["schedule"].given == {"steps": 3}
    assert load(path, ["extends=b.yaml"]).settings["schedule"].given == {"steps": 7}


def test_ancestors_that_go_in_a_circle_are_refused(tmp_path):
    write(tmp_path, "a.yaml", "extends: b.yaml\n")
    (problem,) = problems_of(write(tmp_path, "b.yaml", "extends: a.yaml\n"))
    assert "'b.yaml' extends itself by way of" in problem


def test_a_missing_ancestor_is_told_with_its_line(tmp_path):
    (problem,) = problems_of(write(tmp_path, "a.yaml", "\nextends: nowhere.yaml\n"))
    assert f"{tmp_path}/a.yaml:2: 'extends' names 'nowhere.yaml', which is neither beside" in problem
    (problem,) = problems_of(write(tmp_path, "b.yaml", "extends: [a, b]\n"))
    assert "'extends' should be the path of one configuration" in problem


@pytest.mark.parametrize(("text", "came"), [("[a]", "a list of 1"), ("null", "empty (null)"), ("3", "3 (a number)")])
def test_an_ancestor_that_is_no_name_is_told_as_what_came(tmp_path, text, came):
    path = write(tmp_path, "a.yaml", WHOLE)
    said = f"'extends' should be the path of one configuration, but is {came}."
    assert problems_of(path, f"extends={text}") == (f"command line 'extends={text}': {said}",)
    below = write(tmp_path, "b.yaml", f"extends: {text}\n{WHOLE}")
    assert problems_of(below) == (f"{below}:1: {said}",)


def test_all_mistakes_of_files_and_command_line_come_at_once(tmp_path):
    write(tmp_path, "base.yaml", WHOLE.replace("prompts: 4", "prompts: four"))
    path = write(tmp_path, "run.yaml", "extends: base.yaml\nactor: {tpp: 2}\nlearnn: []\nlearn: [advantag, 3]\n")
    problems = problems_of(path, "schedule.steps=many", "actor.ppp=2")
    assert len(problems) == 7
    for said in ("base.yaml:4: 'sampler.prompts'", "run.yaml:2: 'actor' has no key 'tpp'", "section 'learnn'"):
        assert any(said in problem for problem in problems)
    for said in ("'schedule.steps=many'", "'ppp'", "'advantag' among the stages", "item 1 of 'learn'"):
        assert any(said in problem for problem in problems)


def test_sections_that_must_be_written_are_asked_for(tmp_path):
    problems = " ".join(problems_of(write(tmp_path, "a.yaml", "")))
    for said in ("the section 'sampler' is missing", "'model' lacks the key 'folder'", "'collect' should be a list"):
        assert said in problems
    problems = problems_of(write(tmp_path, "b.yaml", WHOLE), "sampler=[uniform, screening]")
    assert problems == (
        "command line 'sampler=[uniform, screening]': 'sampler' should be one name, with its keys if any,"
        " but is a list of 2.",
    )
