"""Every command of the documentation runs here on tiny data, is run by a test that is named, or says what it needs.

They run in a folder that is to them what a clone is after `make quickstart`, made by what `make quickstart` runs.
"""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from examples.quickstart import prepare
from megatron_rl import rehearsal
from megatron_rl.assemble import prompts_of
from megatron_rl.cli import main
from megatron_rl.data.prompts import DataSettings
from megatron_rl.data.tokenizer import load_tokenizer
from tests.data.test_published import ROWS, VERL_ROW
from tests.documentation import HOME, RULES, Rule, commands, rule_of
from tests.test_configs import SMALL
from tests.test_rehearsal import here
from tools import tiny_recipe

COMMANDS = list(commands())
TINY = (
    *("schedule.steps=2", "schedule.save_every=2", "schedule.evaluate_every=0", "sampling.max_tokens=8"),
    *("reward=tests.fakes.lucky:score", "judge.processes=1", "actor.update.microbatch_tokens=2048"),
)
SMALLER = {"TRAIN": 12, "HELD_OUT": 4, "DEMONSTRATIONS": 40}
OURS = {
    "runs/(jspo|NAME)": "runs/quickstart",
    "RUN": "runs/quickstart",
    "FOLDER": "exported",
    "step_000200": "step_000002",
}
FIRST = (
    "make quickstart",
    "megatron-rl train configs/speed.yaml extends=base/toy.yaml",
    "megatron-rl convert runs/jspo/checkpoints/step_000200/actor exported --like models/Qwen2.5-Math-7B",
)
"""What leaves behind what other commands look at."""
SLOW = {"trains_with_vllm": (pytest.mark.vllm, pytest.mark.slow), "measures_lagging": (pytest.mark.slow,)}
"""What takes longer."""


def test_every_command_has_a_rule_and_every_rule_a_command():
    assert [(command.page.name, command.words) for command in COMMANDS if rule_of(command.words) is None] == []
    used = {rule_of(command.words) for command in COMMANDS}
    assert [rule.pattern for rule in RULES if rule not in used] == []
    assert set(FIRST) <= {command.words for command in COMMANDS}


def test_what_this_machine_may_lack_is_said_where_it_is_needed():
    unsaid = [
        (str(command.page.relative_to(HOME)), command.words)
        for command in COMMANDS
        if (rule := rule_of(command.words)) and rule.needs and not re.search(rule.needs, command.near)
    ]
    assert unsaid == []


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.test], ids=lambda rule: rule.pattern)
def test_a_test_that_is_named_is_there(rule):
    path, name = rule.test.split("::")
    tree = ast.parse((HOME / path).read_text(encoding="utf-8"))
    assert name in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.pattern)
def test_a_rule_says_how_its_commands_are_known_to_work(rule: Rule):
    assert bool(rule.here) + bool(rule.test) <= 1
    assert rule.here or rule.test or rule.needs
    assert not rule.here or rule.here in HERE


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """Configurations, recipes, scripts and descriptions of models where a clone has them, and the quickstart's run."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("configs", "examples", "slurm", "tools"):
        (folder / name).symlink_to(HOME / name)
    (folder / "models").mkdir()
    for model in (HOME / "examples" / "models").iterdir():
        (folder / "models" / model.name).symlink_to(model)
    for name in ("data", "downloads", "runs/jobs/JOB"):
        (folder / name).mkdir(parents=True)
    (folder / "runs/jobs/JOB/driver.log").write_text("begun\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for words in FIRST:
            executed(words, patch)
    return folder


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(words, marks=SLOW.get(rule.here, ()))
        for words in dict.fromkeys(command.words for command in COMMANDS)
        if (rule := rule_of(words)) and rule.here
    ],
)
def test_it_runs(words, clone, monkeypatch):
    monkeypatch.chdir(clone)
    if words not in FIRST:
        executed(words, monkeypatch)


def executed(words: str, patch: pytest.MonkeyPatch) -> None:
    rule = rule_of(words)
    assert rule is not None
    HERE[rule.here](words, patch)


def test_the_planner_is_called_from_python_as_its_page_says(clone, monkeypatch):
    page = (HOME / "docs" / "planner.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"(?m)^    from pathlib(?:.*\n(?=    |\n))+.*$", page)
    program = "\n".join(line.removeprefix("    ") for line in block.splitlines())
    process([sys.executable, "-c", program], cwd=clone)


def process(words: list[str], cwd: Path) -> str:
    done = subprocess.run(
        words, cwd=cwd, env=os.environ | {"PYTHONPATH": str(HOME)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def runs(words: str, patch: pytest.MonkeyPatch, *more: str) -> None:
    """A command of ours, on the runs that there are."""
    for said, ours in OURS.items():
        words = re.sub(rf"(?<![\w/]){said}(?!\w)|{said}(?=/)", ours, words)
    words = re.sub(
        r"--steps? 50|(?<=quickstart) 12\b", lambda told: told[0].replace("50", "2").replace("12", "2"), words
    )
    words = re.sub(r"--like \S+", "--like runs/quickstart-data/model", words)
    program, *arguments = shlex.split(words)
    assert program == "megatron-rl"
    assert main([*arguments, *more]) == 0


def helps(words: str, patch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(shlex.split(words)[1:])


def trains(words: str, patch: pytest.MonkeyPatch, *more: str) -> None:
    sampler = "screening" if "speed" in words else "uniform"
    toy = () if "quickstart" in words else ("extends=base/toy.yaml",)
    runs(words, patch, *toy, *TINY, *SMALL[sampler], *more)


def trains_with_vllm(words: str, patch: pytest.MonkeyPatch) -> None:
    trains(words, patch, "rollout.vllm.cache_gib=0.0625")


def plans(words: str, patch: pytest.MonkeyPatch) -> None:
    recipe = "examples/Qwen3-4B/jspo_dapo17k.yaml --sizes examples/models/Qwen3-4B-Base"
    words = words.replace("…", recipe).replace("plan --sleep", f"plan {recipe} --sleep")
    runs(words.replace("configs/jspo.yaml", "configs/jspo.yaml --sizes models/Qwen2.5-Math-7B"), patch)


def converts_data(words: str, patch: pytest.MonkeyPatch) -> None:
    _, _, name, *files = shlex.split(words)
    if "--count" not in files:
        write(Path(files[0]), ROWS[name][0])
    runs(re.sub(r"--count \d+", "--count 3", words), patch)


def copies(words: str, patch: pytest.MonkeyPatch) -> None:
    """A file in verl's schema, which a run reads as it is."""
    _, source, target = shlex.split(words)
    row = VERL_ROW | {"prompt": [{"role": "user", "content": "<q> a ?"}], "reward_model": {"ground_truth": "3"}}
    write(Path(source), row)
    process(shlex.split(words), cwd=Path.cwd())
    tokenizer = load_tokenizer(Path("runs/quickstart-data/model"))
    assert len(prompts_of("train", (Path(target),), tokenizer, DataSettings(train=(Path(target),), chat="never"))) == 1


def write(path: Path, row: dict) -> None:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([row]), path)
    else:
        path.write_text(json.dumps(row), encoding="utf-8")


def rehearses_a_job(words: str, patch: pytest.MonkeyPatch) -> None:
    """The script tells what it would run, which is the command of its name with the words behind it."""
    words = words.replace("CONFIG", "configs/jspo.yaml").replace(" --dry-run", "")
    given = shlex.split(words)
    script = next(place for place, word in enumerate(given) if word.startswith("slurm/"))
    command = {"estimate_values": "values"}.get(Path(given[script]).stem, Path(given[script]).stem)
    told = process(["bash", *given[script:], "--dry-run"], cwd=Path.cwd())
    assert f"megatron-rl {shlex.join([command, *given[script + 1 :]])}" in told.splitlines()[-1]


def verifies(words: str, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rehearsal, "by_command", lambda config, settings, _: here(config, *settings))
    runs(words, patch)


def runs_a_recipe_tiny(words: str, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sys, "argv", shlex.split(words)[1:])
    assert tiny_recipe.main() == 0


def measures_lagging(words: str, patch: pytest.MonkeyPatch) -> None:
    small = ("--steps", "1", "--rounds", "1", *TINY, *SMALL["uniform"])
    process([sys.executable, *shlex.split(words)[1:], *small], cwd=Path.cwd())


def makes_the_quickstart(words: str, patch: pytest.MonkeyPatch) -> None:
    """What `make` would run after the installation."""
    prepared, trained, reported = (line.split("bin/")[1] for line in would_run("quickstart")[-3:])
    assert prepared.split()[-1] == "examples/quickstart/prepare.py"
    for name, value in SMALLER.items():
        patch.setattr(prepare, name, value)
    patch.setattr(sys, "argv", ["prepare.py", "--steps", "2"])
    prepare.main()
    trains(trained, patch)
    runs(reported, patch)


def is_what_integration_runs(words: str, patch: pytest.MonkeyPatch) -> None:
    assert words in (HOME / ".ci" / "run").read_text(encoding="utf-8")
    assert would_run(words.split()[1])


@cache
def would_run(target: str) -> list[str]:
    return process(["make", "-n", "--no-print-directory", target], cwd=HOME).splitlines()


HERE = {
    each.__name__: each
    for each in (
        *(runs, helps, trains, trains_with_vllm, plans, converts_data, copies, rehearses_a_job, measures_lagging),
        *(verifies, runs_a_recipe_tiny, makes_the_quickstart, is_what_integration_runs),
    )
}
