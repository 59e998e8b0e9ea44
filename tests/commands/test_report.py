from megatron_rl.cli import main
from megatron_rl.commands.exits import DONE, WRONG
from tests.test_launch import data  # noqa: F401  # a fixture


def test_a_run_is_drawn_into_its_folder_or_where_one_says(trained, tmp_path, capsys):
    assert main(["report", str(trained), "--out", str(tmp_path / "page.html")]) == DONE
    assert capsys.readouterr().out.strip() == str(tmp_path / "page.html")
    assert "<html" in (tmp_path / "page.html").read_text()[:500].lower()


def test_a_folder_without_metrics_is_refused(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == WRONG
    assert "no metrics.jsonl there" in capsys.readouterr().err
