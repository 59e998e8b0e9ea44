import pytest

from megatron_rl.progress import Progress, progress, step_of

STEP = b'{"kind": "step", "step": %d, "reward": NaN}\n'


def test_the_newest_step_counts_and_a_line_that_a_crash_left_unfinished_is_no_damage(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(STEP % 3 + b'{"kind": "evaluation", "step": 9}\n\n' + STEP % 4 + b'{"kind": "step", "step": \xe2')
    assert progress(path) == Progress(4, "")
    assert progress(tmp_path / "none") == Progress(0, "")


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe\n",
        b"\0\0\0\n",
        b'{"kind": "step", "step": 4, "x": }\n',
        b'{"kind": "step", "reward": 1}\n',
        b'{"kind": "step", "step": NaN}\n',
        b'{"kind": "step", "step": Infinity}\n',
        b'{"kind": "step", "step": null}\n',
        b'{"kind": "step", "step": [1]}\n',
        b'{"kind": ["step"], "step": 1}\n',
        b'[{"kind": "step"}]\n',
        b"[" * 100_000 + b"\n",
        b'{"kind": "step", "step": ' + b"9" * 5000 + b"}\n",
    ],
)
def test_a_damaged_line_is_named_and_the_others_are_read(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(STEP % 1 + line + STEP % 2)
    steps, damage = progress(path)
    assert steps == 2
    assert damage.startswith(f"{path} is damaged: line 2 is left out here")


def test_many_damaged_lines_are_counted(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"?\n" * 9 + STEP % 2)
    assert "lines 1, 2, 3, 4, 5 and 4 more are left out" in progress(path).damage


def test_a_file_that_cannot_be_read_is_told(tmp_path):
    assert progress(tmp_path) == Progress(0, f"{tmp_path} cannot be read (Is a directory).")


def test_a_line_of_text_is_read_as_one_of_bytes():
    assert (step_of('{"kind": "step", "step": 5}'), step_of('{"kind": "evaluation", "step": 5}')) == (5, 0)
