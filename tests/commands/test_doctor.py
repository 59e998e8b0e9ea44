from megatron_rl.cli import main
from megatron_rl.commands.exits import DONE, WRONG


def test_the_machine_is_described_in_a_line_a_fact(capsys):
    assert main(["doctor"]) == DONE
    lines = capsys.readouterr().out.splitlines()
    for fact in ("torch", "megatron-core", "optimizer", "shared memory", "open files"):
        assert any(line.startswith(fact) for line in lines), fact


def test_a_run_is_explained_in_a_sentence(tmp_path, capsys):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/rank_0001.log").write_text("Traceback (most recent call last):\n  x\nValueError: no\n")
    assert main(["doctor", str(tmp_path)]) == DONE
    assert capsys.readouterr().out.startswith("rank_0001 failed first: ValueError: no")
    for other in (tmp_path / "nowhere", tmp_path / "logs"):
        assert main(["doctor", str(other)]) == WRONG
        assert f"{other} is no folder of a run" in capsys.readouterr().err
