import pytest

from tools import bench_batch


def test_a_small_batch_is_measured(capsys):
    bench_batch.main(["--rows", "16", "--tokens", "4"])
    first, *actions = capsys.readouterr().out.splitlines()
    assert first.startswith("16 rollouts, ")
    assert all(line.endswith(" copies") for line in actions)


@pytest.mark.parametrize("wrong", [["--rows", "-1"], ["--rows", "0"], ["--tokens", "-5"], ["--rows", "many"]])
def test_what_is_no_batch_is_refused_in_a_sentence(wrong, capsys):
    with pytest.raises(SystemExit) as ended:
        bench_batch.main(wrong)
    assert ended.value.code == 2
    assert "should be at least 1, got" in (told := capsys.readouterr().err) or "invalid int value" in told
