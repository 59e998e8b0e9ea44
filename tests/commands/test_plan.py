import json
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
    assert lines[-1].startswith("sbatch --nodes 4 --gpus-per-node 8 slurm/train.sbatch configs/grpo.yaml actor.tp=")


def test_the_file_itself_is_a_model_too_and_every_method_can_be_asked_for(model, capsys):
    for more in (
        ["--screen", "64:4:20"],
        ["--drafted", "0.6"],
        ["--ahead", "1"],
        ["--critic", "--reference", "device"],
    ):
        assert main(["plan", f"{model}/config.json", "--nodes", "2", *more]) == DONE
    assert "drafts" in capsys.readouterr().out


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
        (["MODEL", "--steps", "2000"], "--steps is 2000, but 1024 rollouts"),
        (["MODEL", "--screen", "64:4:-2"], "each of its numbers must be at least 1"),
        (["configs/grpo.yaml", "--sizes", "MODEL", "--prompts", "5"], "set sampler.uniform.prompts=... instead"),
        (["configs/grpo.yaml", "--sizes", "MODEL", "--critic"], "--critic stands in the run's own file; set learn="),
        (["MODEL", "actor.tp=2"], "is a setting of a run"),
        (["MODEL", "--sizes", "MODEL"], "--sizes is for a run's YAML file"),
        (["MODEL", "--gpus-per-node", "1"], "nothing fits on 1 x 1 h100"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(model, capsys, arguments, said):
    assert main(["plan", *(model if word == "MODEL" else word for word in arguments)]) == WRONG
    assert said in capsys.readouterr().err


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
