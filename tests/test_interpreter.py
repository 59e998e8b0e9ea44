import os
import subprocess
import sys

import pytest

from megatron_rl.interpreter import command, search_path, staying


def test_a_module_runs_here_by_what_this_process_imports_and_not_by_what_lies_where_one_happens_to_be(
    tmp_path, monkeypatch
):
    own, elsewhere = tmp_path / "own", tmp_path / "elsewhere"
    own.mkdir()
    elsewhere.mkdir()
    (own / "mine.py").write_text("import json, sys\nprint(json.loads(sys.argv[1]))")
    (elsewhere / "json.py").write_text("raise SystemExit('the wrong one')")
    monkeypatch.setattr(sys, "path", [str(own), *(path for path in sys.path if path)])
    said = subprocess.run(
        command("mine", "[1]"),
        cwd=elsewhere,
        env=os.environ | search_path(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout == "[1]\n"


def test_a_process_that_looks_where_it_is_lets_others_look_there_wherever_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", "/lib"])
    assert search_path() == {"PYTHONPATH": f"{tmp_path}{os.pathsep}/lib"}


@pytest.mark.parametrize("code", [None, 0, "good-bye"])
def test_code_that_leaves_has_failed(code):
    with pytest.raises(RuntimeError, match=rf"ended the program by sys\.exit\({code!r}\)"), staying():
        sys.exit(code)
