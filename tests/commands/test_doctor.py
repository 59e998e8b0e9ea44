import re
from types import SimpleNamespace

import pytest

from megatron_rl.cli import main
from megatron_rl.commands import doctor
from megatron_rl.commands.exits import DONE, WRONG


def test_the_machine_is_described_in_a_line_a_fact(capsys):
    assert main(["doctor"]) == DONE
    lines = capsys.readouterr().out.splitlines()
    for fact in ("torch", "megatron-core", "optimizer", "shared memory", "open files"):
        assert any(line.startswith(fact) for line in lines), fact


@pytest.mark.parametrize(("free", "said"), [(64 << 20, "64 MiB free; .*--shm-size"), (8 << 30, "8.0 GiB free$")])
def test_too_little_shared_memory_is_told_with_what_to_do(capsys, monkeypatch, free, said):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    lines = list(doctor.machine())
    assert [line for line in lines if re.search(f"^shared memory +{said}", line)]


def test_damaged_metrics_are_no_traceback(tmp_path, capsys):
    for line in (b"\xff", b'{"kind": "step", "step": 4, "x": }', b'{"kind": "step"}'):
        (tmp_path / "metrics.jsonl").write_bytes(b'{"kind": "step", "step": 3}\n' + line + b"\n")
        assert main(["doctor", str(tmp_path)]) == DONE
        assert "3 steps are done" in (said := capsys.readouterr().out)
        assert "metrics.jsonl is damaged: line 2 is left out here" in said
        assert main(["bundle", str(tmp_path), "--out", str(tmp_path / "x.tar.gz")]) == DONE
        assert "line 2 is left out here" in capsys.readouterr().out


def test_a_run_is_explained_in_a_sentence(tmp_path, capsys):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/rank_0001.log").write_text("Traceback (most recent call last):\n  x\nValueError: no\n")
    assert main(["doctor", str(tmp_path)]) == DONE
    assert capsys.readouterr().out.startswith("rank_0001 failed first: ValueError: no")
    for other in (tmp_path / "nowhere", tmp_path / "logs"):
        assert main(["doctor", str(other)]) == WRONG
        assert f"{other} is no folder of a run" in capsys.readouterr().err
