import pytest

from megatron_rl import rehearsal
from megatron_rl.cli import main
from megatron_rl.commands.exits import DONE, FAILED, WRONG
from megatron_rl.spec import files
from tests.test_launch import data  # noqa: F401  # a fixture
from tests.test_rehearsal import contents, here


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch):
    monkeypatch.setattr(rehearsal, "by_command", lambda config, settings, _: here(config, *settings))


def test_a_sound_run_is_proved_and_its_scratch_removed(trained, capsys):
    before = contents(trained)
    assert main(["verify-resume", str(trained)]) == DONE
    assert contents(trained) == before
    out = capsys.readouterr().out
    assert "step 3 of" in out
    assert "are the same to the bit." in out
    assert [path.name for path in trained.parent.iterdir() if path.name.startswith(".verify")] == []


def test_one_that_differs_is_named_and_kept(trained, tmp_path, capsys):
    asked = ["verify-resume", str(trained), "sampling.temperature=0.5", "--scratch", str(tmp_path)]
    assert main(asked) == FAILED
    assert "first differs step 3, column 'tokens' of stage 'generate'" in capsys.readouterr().out
    assert len(list(tmp_path.glob(".verify_run_*/resumed/run/checkpoints/step_000003"))) == 1


def test_what_is_no_run_or_no_stop_is_refused(trained, tmp_path, capsys):
    assert main(["verify-resume", str(tmp_path)]) == WRONG
    assert "holds no spec.yaml" in capsys.readouterr().err
    assert main(["verify-resume", str(trained), "--steps", "1"]) == WRONG


def test_a_run_whose_weights_come_in_flight_is_not_expected_to_repeat_itself(trained, capsys, monkeypatch):
    monkeypatch.setattr(files, "OPTIONAL", {})
    flying = "rollout={vllm: {in_flight: true}}"
    assert main(["verify-resume", str(trained), flying, "schedule.ahead=1"]) == WRONG
    assert "so no two runs write the same; add rollout.vllm.in_flight=false" in capsys.readouterr().err


def test_damage_is_told_before_anything_is_made(trained, tmp_path, capsys):
    harmed = tmp_path / "run"
    (harmed / "checkpoints/step_000001").mkdir(parents=True)
    (harmed / "spec.yaml").write_text((trained / "spec.yaml").read_text())
    assert main(["verify-resume", str(harmed)]) == FAILED
    assert "nothing was proved: checkpoint" in capsys.readouterr().err
