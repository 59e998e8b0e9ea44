import os

from megatron_rl.diagnosis import first_failure

TRACE = "step 3\nTraceback (most recent call last):\n  File ...\n{}\nmore\n"


def test_the_earliest_traceback_is_the_one_that_is_told(tmp_path):
    (tmp_path / "logs").mkdir()
    for rank, when, said in ((0, 200, "torch.distributed.DistBackendError: peer gone"), (3, 100, "OSError: disk full")):
        path = tmp_path / "logs" / f"rank_{rank:04d}.log"
        path.write_text(TRACE.format(said))
        os.utime(path, (when, when))
    told = first_failure(tmp_path)
    assert told.startswith("rank_0003 failed first: OSError: disk full")
    assert "1 more followed" in told


def test_rows_that_were_skipped_over_are_told(tmp_path):
    (tmp_path / "offending").mkdir()
    (tmp_path / "offending/step_000004.parquet").touch()
    assert first_failure(tmp_path).startswith("step_000004 was skipped over numbers that are not finite")


def test_without_a_failure_one_hears_how_far_it_came(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"kind": "step", "step": 7}\n{"kind": "step", "st')
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/latest").write_text("step_000005 5eal\n")
    assert "7 steps are done, the latest checkpoint is step_000005." in first_failure(tmp_path)
    assert "0 steps are done" in first_failure(tmp_path / "checkpoints")
