import json
import shlex
import subprocess
import sys

import pytest

from megatron_rl.cli import main
from megatron_rl.commands.exits import DONE, WRONG
from tests.planner.configs import QWEN3_8B


@pytest.fixture
def model(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_8B))
    return str(tmp_path)


def test_a_model_is_answered_with_layouts_and_the_line_that_starts_the_first(model, capsys):
    assert main(["plan", model, "--nodes", "4", "--best", "3", "--max-tokens", "8192"]) == DONE
    lines = capsys.readouterr().out.splitlines()
    assert [line[0] for line in lines if line[:1].isdigit() and "tp=" in line] == ["1", "2", "3"]
    assert lines[-1].startswith(
        "sbatch --nodes 4 --gpus-per-node 8 slurm/train.sbatch configs/rloo.yaml "
        f"model.folder={model} sampling.max_tokens=8192 actor.tp="
    )


@pytest.mark.parametrize(
    ("asked", "config"),
    [
        (["--prompts", "64", "--samples", "4", "--steps", "2", "--precision", "fp8"], "rloo"),
        (["--max-tokens", "2048", "--sleep"], "rloo"),
        (["--reference", "device"], "grpo"),
        (["--screen", "32:4:20"], "speed"),
        (["--drafted", "0.6"], "spec_rl"),
        (["--ahead", "1"], "grpo_asynchronous"),
        (["--critic"], "ppo"),
        (["--steps", "2", "--config", "configs/jspo.yaml"], "jspo"),
    ],
)
def test_the_line_that_a_model_is_answered_with_starts_what_was_planned(model, capsys, asked, config):
    machines = ["--nodes", "2", "--gpu", "h200"]
    assert main(["plan", f"{model}/config.json", *machines, *asked]) == DONE
    planned = capsys.readouterr().out.splitlines()
    words = shlex.split(planned[-1])
    line = words[words.index("slurm/train.sbatch") + 1 :]
    assert line[0] == f"configs/{config}.yaml"
    drafted = asked if "--drafted" in asked else []
    assert main(["plan", *line, *machines, *drafted]) == DONE
    again = capsys.readouterr().out.splitlines()
    assert again[:3] == planned[:3]
    learning = [next(text for text in said if text.startswith("memory, learning")) for said in (planned, again)]
    assert learning[0] == learning[1]


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        ("configs/grpo_asynchronous.yaml", []),
        ("configs/grpo.yaml", ["rollout=embedded"]),
        ("configs/grpo.yaml", ["actor.pp=4", "actor.stage_layers=[8,10,10,8]", "actor.recompute.layers=2"]),
        ("configs/grpo.yaml", ["--sleep"]),
    ],
)
def test_a_search_starts_what_it_found_whatever_the_file_says_of_layouts(model, capsys, config, settings):
    assert main(["plan", config, f"model.folder={model}", *settings, "--search", "--nodes", "2"]) == DONE
    planned = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert main(["plan", *planned[planned.index(config) :], "--nodes", "2"]) == DONE


def test_a_model_is_planned_from_any_folder(model, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["plan", model]) == DONE
    assert " slurm/train.sbatch configs/rloo.yaml " in capsys.readouterr().out


def test_a_run_is_predicted_as_it_is_or_searched_around(model, capsys):
    settings = [f"model.folder={model}", "rollout.vllm.memory_share=0.4", "actor.recompute.granularity=full"]
    assert main(["plan", "configs/jspo.yaml", *settings]) == DONE
    own = capsys.readouterr().out.splitlines()
    assert own[-1] == f"sbatch --nodes 1 --gpus-per-node 8 slurm/train.sbatch configs/jspo.yaml {' '.join(settings)}"
    assert main(["plan", "configs/jspo.yaml", *settings, "--search"]) == DONE
    assert "rollout.vllm.memory_share=" in capsys.readouterr().out.splitlines()[-1]


def test_a_run_is_planned_before_its_model_is_downloaded(model, capsys):
    assert main(["plan", "configs/rloo.yaml", "--sizes", model]) == DONE
    assert capsys.readouterr().out.endswith("slurm/train.sbatch configs/rloo.yaml\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere does not exist"),
        (["MODEL", "--gpu", "h10"], "did you mean 'h100'"),
        (["MODEL", "--nodes", "0"], "--nodes is 0, but must be at least 1"),
        (["MODEL", "--screen", "64"], "three whole numbers"),
        (["MODEL", "--drafted", "1"], "--drafted is 1.0"),
        (["MODEL", "--mean-tokens", "9000"], "give a smaller mean"),
        (["MODEL", "--spread", "-1"], "--spread is -1, but must be a number, at least 0"),
        (["MODEL", "--spread", "nan"], "--spread is nan"),
        (["MODEL", "--judge", "inf"], "--judge is inf"),
        (["MODEL", "--network", "nan"], "--network is nan, but must be a number above 0"),
        (["MODEL", "--mean-tokens", "nan"], "--mean-tokens is nan"),
        (["MODEL", "--mean-tokens", "0"], "--mean-tokens is 0"),
        (["MODEL", "--spare", "80"], "--spare is 80, but h100 has 79.6 GiB"),
        (["MODEL", "--steps", "2000"], "2000 optimizer steps are asked for, but 1024 rollouts"),
        (["MODEL", "--spread", "1000"], "--spread is 1000, but must be at most 10"),
        (["MODEL", "--samples", "1000000000"], "are too many to plan"),
        (["MODEL", "--max-tokens", "50000"], "longer than the model's context of 40960"),
        (["MODEL", "--ahead", "1", "--sleep"], "with schedule.ahead the groups write then"),
        (["MODEL", "--ahead", "1", "--critic"], "--critic is configs/ppo.yaml's and --ahead is configs/grpo_asy"),
        (["MODEL", "--critic", "--config", "configs/rloo.yaml"], "but configs/rloo.yaml has none"),
        (["MODEL", "--config", "configs/none.yaml"], "configs/none.yaml: there is no such file"),
        (["configs/grpo.yaml", "--sizes", "MODEL", "--config", "configs/rloo.yaml"], "--config is for a model"),
        (["configs/grpo.yaml", "--sizes", "MODEL", "--sleep", "schedule.ahead=1"], "schedule.ahead"),
        (["configs/grpo_asynchronous.yaml", "model.folder=MODEL", "--sleep", "--ahead", "0"], "'split' keeps on other"),
        (["configs/grpo.yaml", "--sizes", "MODEL", "rollout=embedded", "--sleep"], "'rollout' has no key 'vllm'"),
        (["configs/grpo.yaml", "--sizes", "MODEL", "actor.update.microbatch_tokens=99"], "may have 4095 tokens"),
        (["MODEL", "--screen", "64:4:-2"], "each of its numbers must be at least 1"),
        (["configs/grpo.yaml", "--sizes", "MODEL", "--prompts", "5"], "set sampler.uniform.prompts=... instead"),
        (["configs/grpo.yaml", "--sizes", "MODEL", "--critic"], "--critic stands in the run's own file; set learn="),
        (["MODEL", "actor.tp=2"], "is a setting of a run"),
        (["MODEL", "--sizes", "MODEL"], "--sizes is for a run's YAML file"),
        (["MODEL", "--gpus-per-node", "1"], "nothing fits on 1 x 1 h100"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(model, capsys, arguments, said):
    assert main(["plan", *(word.replace("MODEL", model) for word in arguments)]) == WRONG
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("what", ["MODEL", "configs/grpo.yaml"])
def test_an_option_that_there_is_not_is_no_setting(model, capsys, what):
    with pytest.raises(SystemExit, match=str(WRONG)):
        main(["plan", what.replace("MODEL", model), "--frob"])
    assert "there is no option --frob" in capsys.readouterr().err


@pytest.mark.parametrize("text", [json.dumps({**QWEN3_8B, "hidden_size": 0}), "[" * 100_000])
def test_a_model_that_cannot_be_is_told_with_its_folder(tmp_path, capsys, text):
    (tmp_path / "config.json").write_text(text)
    assert main(["plan", str(tmp_path)]) == WRONG
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(str(tmp_path))


def test_planning_wakes_no_torch(model):
    program = (
        f"import sys; from megatron_rl.cli import main; main(['plan', {model!r}]); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
