from megatron_rl.batch.batch import Batch
from megatron_rl.cli import main
from megatron_rl.commands.exits import DONE, FAILED, WRONG
from tests.test_launch import data  # noqa: F401  # a fixture


def test_a_step_gives_its_recorded_advantages_to_the_bit(trained, capsys):
    for step in (1, 3):  # the first has no past, the third's is in the checkpoint of the second
        assert main(["replay", str(trained), str(step)]) == DONE
        lines = capsys.readouterr().out.splitlines()
        for column in ("baseline", "spread", "advantage"):
            assert f"{column}: as recorded, to the bit" in lines
        assert not [line for line in lines if "=" in line], "no number is told that is as recorded"


def test_a_stage_whose_memory_was_not_kept_is_refused(trained, capsys):
    assert main(["replay", str(trained), "2"]) == FAILED
    assert "stage 'smoothed_stats' remembers what earlier steps did" in capsys.readouterr().err


def test_other_stages_show_what_they_would_have_changed(trained, tmp_path, capsys):
    target = tmp_path / "not" / "there" / "batch.parquet"
    asked = ["replay", str(trained), "2", "learn=[leave_one_out_baseline, advantage]", "--out", str(target)]
    assert main(asked) == DONE
    assert "advantage: other in" in capsys.readouterr().out
    assert len(Batch.read_parquet(target)) == 32


def test_answers_can_be_graded_again(trained, capsys):
    assert main(["replay", str(trained), "3", "--chain", "collect"]) == DONE
    out = capsys.readouterr().out
    assert "reward: as recorded, to the bit" in out
    assert "stage generate was not run" in out


def test_a_step_that_was_not_kept_is_refused(trained, capsys):
    assert main(["replay", str(trained), "7"]) == WRONG
    assert "kept step_000001 to step_000003 (3 files)" in capsys.readouterr().err
