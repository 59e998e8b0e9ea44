"""The command line: what a wrong configuration is answered with, and how fast and how plainly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, get_origin

import pytest

from megatron_rl import __version__, cli
from megatron_rl.cli import main
from megatron_rl.commands.configuration import checked
from megatron_rl.commands.exits import DONE, INTERRUPTED, WRONG
from megatron_rl.spec.resolve import find, names, settings
from megatron_rl.spec.run import SECTIONS
from megatron_rl.spec.schema import Shape, SpecError

MODEL = {
    "model_type": "qwen3",
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 128,
    "vocab_size": 64,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
}
RUN = """\
model: {folder: MODEL}
run: {name: test, seed: 1}
schedule: {steps: 3, keep: 2}
actor: {tp: 2, pp: 2, precision: fp32, recompute: {granularity: full}}
sampler: {uniform: {prompts: 4, samples: 2}}
collect: [drafts.reuse, generate, judge, drafts.remember]
learn: [shrinkage_baseline, {advantage: {}}]
objective: {clipped: {low: 0.1}}
reward: tests.fakes.ideas:compute_score
data: {train: [MODEL/prompts.parquet]}
telemetry: {wandb: "off"}
"""
LAYOUTS = ("tp=3", "tp=8", "pp=3", "pp=8", "pp=1 vpp=2", "vpp=3", "ep=2", "ep=3", "cp=0", "tp=0", "pp=-1", "dp=0")
IMPOSSIBLE = {
    "run.name=''": "run.name is ''",
    "run.name=../../etc": "it names one folder inside run.folder",
    "run.name=/abs": "it names one folder inside run.folder",
    'run.name="a\\0b"': "it names one folder inside run.folder",
    'run.folder="\\0"': "which no folder can be called",
    "schedule.steps=-1": "'schedule.steps' should be an integer at least 0",
    "schedule.save_every=-1": "'schedule.save_every' should be an integer at least 0",
    "schedule.keep=0": "'schedule.keep' should be an integer at least 1",
    "sampler.prompts=0": "'sampler.prompts' should be an integer at least 1",
    "sampler.samples=-3": "'sampler.samples' should be an integer at least 1",
    "sampler.wave=0": "'sampler.wave' should be an integer at least 1 or null",
    "sampler={prioritised: {samples: 0}}": "'sampler.samples' should be an integer at least 1",
    "sampler={screening: {screened: 0}}": "'sampler.screened' should be an integer at least 1",
    "actor.stage_layers=[-1, 5]": "no chunk has fewer than 0 layers",
    "actor.optimizer.betas=[1]": "should be a list of 2 numbers",
    "extends=[a]": "should be the path of one configuration, but is a list of 1",
    "reward=nowhere.at_all:score": "put its folder on PYTHONPATH.",
}
"""Settings of the right type that no run can have, and what is said of each."""
BROKEN = ("a: [1", "a: b: c", "a:\n\t- 1", "- 1", "'", "a: &x 1\nb: *x", "a: !x 1", "\x00", "{", "? [a]\n: 1")


class Mutant(NamedTuple):
    """A configuration with one thing wrong, and words that the answer must hold."""

    text: str
    overrides: tuple[str, ...]
    said: tuple[str, ...]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps(MODEL))
    (folder / "prompts.parquet").write_bytes(b"")
    return RUN.replace("MODEL", str(folder))


def leaves(shape: Shape, path: str) -> Iterator[tuple[str, str, object]]:
    for field in shape.fields:
        if isinstance(field.type, Shape):
            yield from leaves(field.type, f"{path}.{field.name}")
        else:
            yield path, field.name, field.type


def keys() -> Iterator[tuple[str, str, object]]:
    """Every key that a run like the one above could have: section or step, name, type."""
    for section in SECTIONS:
        if section.kind == "settings":
            yield from leaves(settings(section), section.name)
    yield from leaves(find("uniform", "samplers"), "sampler")
    for chain, steps in (
        ("collect", ("drafts.reuse", "drafts.remember")),
        ("learn", ("shrinkage_baseline", "advantage")),
    ):
        for step in steps:
            yield from leaves(find(step, "stages"), f"{chain}.{step}")


def mutants(run: str, folder: Path) -> Iterator[Mutant]:
    for path, name, type_ in keys():
        yield Mutant(run, (f"{path}.{name}x=1",), (f"'{path}' has no key '{name}x'", f"did you mean '{name}'"))
        if type_ is not object and get_origin(type_) is not dict:
            yield Mutant(run, (f"{path}.{name}={{odd: 1}}",), (f"'{path}.{name}' should be", "a mapping with 'odd'"))
            yield Mutant(run, (f"{path}.{name}=[[odd]]",), (f"'{path}.{name}' should be", "list"))
    for line in run.splitlines():
        section = line.split(":")[0]
        yield Mutant(
            f"{run}{section}: {{}}\n", (), (f"the key '{section}' stands twice", f"run.yaml:{run.count(chr(10)) + 1}")
        )
        yield Mutant(run.replace(f"{section}:", f"{section}z:", 1), (), (f"no section '{section}z'", f"'{section}'"))
        yield Mutant(run, (f"{section}x.key=1",), (f"no section '{section}x'", f"did you mean '{section}'"))
    for layout in LAYOUTS:
        yield Mutant(run, tuple(f"actor.{part}" for part in layout.split()), ("actor.",))
    for text in BROKEN:
        yield Mutant(text, (), ("run.yaml",))
    for stage in names("stages"):
        yield Mutant(run, (f"learn=[{stage}, {stage[:-1]}]",), (f"there is no '{stage[:-1]}' among the stages", stage))
        yield Mutant(run, (f"learn=[{{{stage}: {{colour: 3}}}}]",), (f"'learn.{stage}' has no key 'colour'",))
    for sampler in names("samplers"):
        yield Mutant(run, (f"sampler={sampler}e",), (f"did you mean '{sampler}'",))
    yield Mutant(f"extends: nowhere.yaml\n{run}", (), ("'extends' names 'nowhere.yaml'",))
    yield Mutant(f"extends: run.yaml\n{run}", (), ("extends itself",))
    for name in ("data.train", "data.evaluate"):
        yield Mutant(run, (f"{name}=[{folder / 'nowhere.parquet'}]",), (f"'{name}' names '", "which is not there"))
        yield Mutant(run, (f"{name}=[{folder / 'no' / 'where'}]",), (f"'{name}' names '", "but there is no folder"))
    yield Mutant(run, (f"data.values={folder / 'values.parquet'}",), ("'data.values' names '", "which is not there"))
    yield Mutant(run, (f"model.reference={folder / 'nowhere'}",), ("'model.reference' names '", "which is not there"))
    yield Mutant(run, (f"model.folder={folder / 'nowhere'}",), ("is no folder here",))
    yield Mutant(run, (f"model.folder={folder}",), ("holds no config.json",))
    yield Mutant(run, ("actor.precision=fp8",), ("transformer_engine",))
    for setting, said in IMPOSSIBLE.items():
        yield Mutant(run, (setting,), (said,))
    yield Mutant(run, ("actor.tp",), ("a setting is key=value",))
    yield Mutant(run, ("--actor.tp=2",), ("no dashes",))


def is_sentence(problem: str) -> bool:
    return "\n" not in problem and problem.endswith(".") and "Traceback" not in problem and 20 < len(problem) < 1500


def test_two_hundred_mutated_configurations_are_each_refused_in_one_helpful_sentence(run, tmp_path):
    path = tmp_path / "run.yaml"
    count = 0
    for mutant in mutants(run, tmp_path):
        path.write_text(mutant.text)
        with pytest.raises(SpecError) as caught:
            checked(path, mutant.overrides)
        problems = caught.value.problems
        assert all(is_sentence(problem) for problem in problems), problems
        assert any(all(said in problem for said in mutant.said) for problem in problems), (mutant, problems)
        # What is misspelt is also missing, where it must be there: a section, or the two keys of LoRA that it needs.
        assert len(problems) <= 2, problems
        count += 1
    assert count >= 200


def refuse(path: Path, mutant: Mutant) -> None:
    """By the command itself."""
    path.write_text(mutant.text)
    command = [sys.executable, "-m", "megatron_rl.cli", "train", str(path), "--dry-run", *mutant.overrides]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == WRONG, (mutant, done)
    # Where only files are missing, the run is shown before it is refused.
    assert done.stdout == "" or done.stdout.startswith("run:\n"), (mutant, done)
    lines = done.stderr.splitlines()
    assert 1 <= len(lines) <= 2, (mutant, done)
    assert all(is_sentence(line) for line in lines), (mutant, done)
    assert any(all(said in line for said in mutant.said) for line in lines), (mutant, done)


def test_one_in_three_hundred_of_them_is_refused_by_the_command_too(run, tmp_path):
    for mutant in list(mutants(run, tmp_path))[::300]:
        refuse(tmp_path / "run.yaml", mutant)


@pytest.mark.slow
def test_every_one_of_them_is_refused_by_the_command_too(run, tmp_path):
    for mutant in mutants(run, tmp_path):
        refuse(tmp_path / "run.yaml", mutant)


def test_the_configuration_that_was_mutated_is_right(run, tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text(run)
    assert main(["train", str(path), "--dry-run", "sampler.prompts=16"]) == DONE
    assert "prompts: 16" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("actor.tpp=2",), "did you mean 'tp'?"),
        (("actor.tp=two",), "should be an integer"),
        (("actor.tp=3",), "do not divide over actor.tp = 3"),
        (("--actor.tp=3",), "no dashes"),
        (("model=/nowhere",), "is no folder here"),
    ],
)
def test_a_process_answers_in_one_line_without_importing_anything_heavy(run, tmp_path, settings, said):
    path = tmp_path / "run.yaml"
    path.write_text(run)
    code = (
        "import sys; from megatron_rl.cli import main; code = main(sys.argv[1:]);"
        "print({'torch', 'pyarrow', 'megatron', 'vllm', 'ray', 'transformers'} & set(sys.modules)); sys.exit(code)"
    )
    command = [sys.executable, "-c", code, "train", str(path), *settings]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == WRONG
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout.strip() == "set()"


def test_the_installed_command_works_from_any_folder(run, tmp_path):
    script = Path(sys.executable).with_name("megatron-rl")
    if not script.exists():
        pytest.skip("the package is not installed in this environment, only on its path")
    path = tmp_path / "run.yaml"
    path.write_text(run.replace("tests.fakes.ideas:compute_score", "my_reward:mine"))
    (tmp_path / "my_reward.py").write_text("def mine(): ...\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    for given, code, said in (((), DONE, "model:"), (("actor.tpp=2",), WRONG, "did you mean 'tp'?")):
        done = subprocess.run(
            [script, "train", path, "--dry-run", *given],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment,
            check=False,
        )
        assert done.returncode == code, done.stderr
        assert said in done.stdout + done.stderr
        assert (done.stdout + done.stderr).count("Traceback") == 0


def test_a_file_that_is_not_there_is_said_so(capsys):
    assert main(["train", "nowhere.yaml"]) == WRONG
    assert "nowhere.yaml: there is no such file" in capsys.readouterr().err


def test_an_unknown_command_is_answered_with_the_nearest(capsys):
    assert main(["trian"]) == WRONG
    assert "there is no command 'trian'; did you mean 'train'?" in capsys.readouterr().err


def test_settings_are_not_said_to_be_required(capsys):
    for command in ("train", "evaluate", "replay", "verify-resume"):
        with suppress(SystemExit):
            main([command])
        assert "key=value" not in capsys.readouterr().err.splitlines()[-1]


def test_help_and_version_are_there(capsys):
    assert main([]) == DONE
    assert "megatron-rl train" in capsys.readouterr().out
    assert main(["--version"]) == DONE
    assert capsys.readouterr().out.strip() == __version__
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--help"])
    assert stopped.value.code == DONE
    assert "Tensor parallel" in capsys.readouterr().out


def test_an_interruption_while_a_command_is_still_imported_is_one_line(monkeypatch, capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "import_module", interrupted)
    assert main(["report", "a run"]) == INTERRUPTED
    assert capsys.readouterr().err == "\ninterrupted; begin again with: megatron-rl report 'a run'\n"


def test_what_the_doctor_says_is_not_also_complained_of_by_every_process(capsys):
    with warnings.catch_warnings(record=True) as heard:
        warnings.resetwarnings()
        main(["report", "nowhere"])
        warnings.warn("Apex is not installed. Falling back to Torch Norm", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    assert [str(each.message) for each in heard] == ["something else"]
