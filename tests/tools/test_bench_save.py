from pathlib import Path

from tests import ranks
from tools.bench_save import compare
from tools.plain_decoder import Sizes


def table(scratch: Path) -> list[str]:
    return compare(Sizes(), rows=4, steps=1, rounds=1, scratch=scratch)


def test_the_table_holds_a_save_that_is_waited_for_and_one_beside(tmp_path):
    ((heading, names, waited, beside, verdict),) = ranks.run(table, world=1, scratch=tmp_path)
    assert heading.startswith("301,920 parameters, ")
    assert names.split() == ["seconds", "still", "save+steps", "on", "disk"]
    assert [len(line.split()) for line in (waited, beside)] == [5, 4]
    assert verdict.startswith("a save beside keeps the run ")
    assert len(list((tmp_path / "checkpoints").glob("step_*"))) == 1
