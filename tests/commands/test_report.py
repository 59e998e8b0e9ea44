from megatron_rl.cli import main
from megatron_rl.commands.exits import DONE, FAILED, WRONG
from tests.test_launch import data  # noqa: F401  # a fixture


def test_a_run_is_drawn_into_its_folder_or_where_one_says(trained, tmp_path, capsys):
    assert main(["report", str(trained), "--out", str(tmp_path / "page.html")]) == DONE
    assert capsys.readouterr().out.strip() == str(tmp_path / "page.html")
    assert "<html" in (tmp_path / "page.html").read_text()[:500].lower()


def test_a_folder_without_metrics_is_refused(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == WRONG
    assert "no metrics.jsonl there" in capsys.readouterr().err


def test_a_run_without_a_finished_step_is_refused_in_a_sentence(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").touch()
    assert main(["report", str(tmp_path)]) == WRONG
    assert "no step is finished there yet" in capsys.readouterr().err


def test_a_damaged_run_is_told_in_a_sentence(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_text('{"kind": "step"}\n')
    assert main(["report", str(tmp_path)]) == FAILED
    assert "no report was written: " in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()
