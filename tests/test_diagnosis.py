import os
import time
from pathlib import Path

import pytest

from megatron_rl.diagnosis import first_failure
from megatron_rl.occupancy import FILE as OCCUPIED

TRACE = "step 3\nTraceback (most recent call last):\n  File ...\n{}\nmore\n"
DIED = """Traceback (most recent call last):
  File "remote_sync.py", line 47, in publish
cluster.watch.RankFailure: the ranks' logs are in logs. rank 1 (process 16074 on gpu-17) died in 'publish'; the \
last of its log:
warnings.warn(
rank 1 (process 16074 on gpu-17) died
0 steps were done, and the driver was in 'start'.
"""
BUS_ERROR = "Fatal Python error: Bus error\n\nStack (most recent call first):\n  File x\n\nExtension modules: a, b\n"


def at(minute: int) -> str:
    return f"2026-11-22 05:{minute:02d}:00"


def began(minute: int, name: str) -> str:
    return f"--- {at(minute)} {name}: process 4711 on gpu-17\n"


def ended(minute: int, how: str) -> str:
    return f"--- {at(minute)} driver: {how}\n"


def written(folder: Path, **logs: str) -> Path:
    (folder / "logs").mkdir(exist_ok=True)
    for name, text in logs.items():
        (folder / "logs" / f"{name}.log").write_text(text)
    return folder


def metrics(folder: Path, *lines: bytes) -> None:
    (folder / "metrics.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))


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
    assert "step_000004 was skipped over numbers that are not finite" in first_failure(tmp_path)


def test_without_a_failure_one_hears_how_far_it_came(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"kind": "step", "step": 7}\n{"kind": "step", "st')
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/latest").write_text("step_000005 5eal\n")
    assert "7 steps are done, the latest checkpoint is step_000005." in first_failure(tmp_path)
    assert "0 steps are done" in first_failure(tmp_path / "checkpoints")


def test_a_run_that_finished_after_an_attempt_that_failed_has_finished(tmp_path):
    first = TRACE.format("RuntimeError: CUDA out of memory")
    rank = began(1, "rank_0000") + first + began(7, "rank_0000") + "all is well\n"
    driver = began(0, "driver") + first + ended(2, "failed") + began(6, "driver") + ended(9, "finished")
    metrics(tmp_path, b'{"kind": "step", "step": 2}')
    other = rank.replace("rank_0000", "rank_0001")
    assert first_failure(written(tmp_path, rank_0000=rank, rank_0001=other, driver=driver)) == (
        f"the run in {tmp_path} finished after 2 steps; the latest checkpoint is none; "
        "attempt 1 of 2 failed before, with RuntimeError: CUDA out of memory."
    )


def test_a_new_failure_is_not_hidden_by_an_older_one(tmp_path):
    rank = began(1, "rank_0000") + TRACE.format("RuntimeError: CUDA out of memory") + began(7, "rank_0000") + "well\n"
    driver = (
        began(0, "driver") + ended(2, "failed") + began(6, "driver") + TRACE.format("m.CheckpointError: disk full.")
    )
    told = first_failure(written(tmp_path, rank_0000=rank, driver=driver))
    assert told.startswith("driver failed first: CheckpointError: disk full (in ")


def test_logs_of_ranks_that_the_newest_attempt_did_not_have_say_nothing_of_it(tmp_path):
    rank = began(1, "rank_0003") + TRACE.format("RuntimeError: CUDA out of memory")
    engine = TRACE.format("ValueError: no such model")
    driver = began(0, "driver") + ended(2, "failed") + began(6, "driver") + TRACE.format("OSError: gone")
    told = first_failure(written(tmp_path, rank_0003=rank, vllm_0=began(7, "vllm_0") + engine, driver=driver))
    assert told.startswith("vllm_0 failed first: ValueError: no such model")
    assert "more followed" not in told


def test_without_a_word_of_the_driver_the_last_process_of_each_log_counts(tmp_path):
    rank = began(1, "rank_0000") + TRACE.format("RuntimeError: old") + began(7, "rank_0000")
    assert first_failure(written(tmp_path, rank_0000=rank)).startswith("no failure is recorded")
    rank += TRACE.format("RuntimeError: new")
    assert first_failure(written(tmp_path, rank_0000=rank)).startswith("rank_0000 failed first: RuntimeError: new")


def test_ranks_that_fail_before_their_driver_has_begun_are_heard(tmp_path):
    rank = began(1, "rank_0000") + began(12, "rank_0000") + TRACE.format("RuntimeError: no GPU")
    driver = began(0, "driver") + ended(9, "finished")
    assert first_failure(written(tmp_path, rank_0000=rank, driver=driver)).startswith("rank_0000 failed first: Run")


def test_what_a_log_holds_behind_a_gap_is_of_no_older_process_than_it_says(tmp_path):
    gap = f"--- left out here on {at(8).replace(' ', ' at ')}: the log had grown too long\n"
    trace = TRACE.format("RuntimeError: lost")
    driver = began(0, "driver") + ended(2, "failed") + began(6, "driver") + TRACE.format("OSError: gone")
    told = first_failure(written(tmp_path, rank_0000=began(1, "rank_0000") + gap + trace, driver=driver))
    assert told.startswith("rank_0000 failed first: RuntimeError: lost")
    behind = began(1, "rank_0000") + gap + trace + began(8, "rank_0000")
    assert first_failure(written(tmp_path, rank_0000=behind, driver=driver)).startswith("driver failed first: OSErr")


def test_a_headline_that_another_log_quotes_begins_nothing(tmp_path):
    driver = began(0, "driver") + DIED.replace("warnings.warn(\n", began(0, "rank_0001") + ended(0, "finished")[1:])
    told = first_failure(written(tmp_path, driver=driver + ended(1, "failed")))
    assert told.startswith("rank_0001 died in 'publish' without a word")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("stopped, out of time", "was stopped, out of time, after 3 steps; the latest checkpoint is none."),
        ("interrupted", "was interrupted, after 3 steps"),
        ("finished", "finished after 3 steps"),
    ],
)
def test_how_the_newest_attempt_ended_is_told(tmp_path, how, said):
    metrics(tmp_path, b'{"kind": "step", "step": 3}')
    driver = began(0, "driver") + TRACE.format("OSError: gone") + ended(1, "failed") + began(2, "driver")
    refused = began(4, "driver") + ended(5, "refused")
    told = first_failure(written(tmp_path, driver=driver + ended(3, how) + refused))
    assert said.rstrip(".") in told
    assert "attempt 1 of 2 failed before, with OSError: gone" in told


def test_a_driver_without_an_end_goes_on_or_was_killed(tmp_path):
    written(tmp_path, driver=began(0, "driver"))
    (tmp_path / OCCUPIED).touch()
    assert "goes on, and no failure is recorded: 0 steps are done" in first_failure(tmp_path)
    os.utime(tmp_path / OCCUPIED, (time.time() - 300, time.time() - 300))
    told = first_failure(tmp_path)
    assert "(process 4711 on gpu-17) ended without a word" in told
    assert "out-of-memory killer" in told


def test_a_rank_that_died_of_a_signal_is_told_with_its_name_and_what_to_do(tmp_path):
    driver = began(0, "driver") + DIED + ended(2, "failed")
    told = first_failure(written(tmp_path, rank_0001=began(1, "rank_0001") + BUS_ERROR, driver=driver))
    assert told.startswith("rank_0001 died in 'publish', of SIGBUS: it used shared memory that could not be given")
    assert "`df -h /dev/shm` on gpu-17" in told
    assert "--shm-size" in told
    segfault = began(1, "rank_0001") + BUS_ERROR.replace("Bus error", "Segmentation fault")
    assert "died first, of SIGSEGV: " in first_failure(written(tmp_path / "logs", rank_0001=segfault))


def test_a_rank_that_died_without_a_word_was_probably_killed(tmp_path):
    recovered = began(1, "rank_0001") + TRACE.format("TransferError: once more")
    told = first_failure(written(tmp_path, rank_0001=recovered, driver=began(0, "driver") + DIED + ended(2, "failed")))
    assert told.startswith("rank_0001 died in 'publish' without a word, as a process does that is ended by SIGKILL")
    assert "on gpu-17" in told


def test_a_rank_that_died_in_an_attempt_before_is_told_by_its_name(tmp_path):
    driver = began(0, "driver") + DIED + ended(2, "failed") + began(3, "driver") + ended(4, "finished")
    told = first_failure(written(tmp_path, driver=driver))
    assert told.endswith("; attempt 1 of 2 failed before, with rank_0001, which died in 'publish'.")


def test_the_rank_that_the_driver_blames_is_the_one_that_is_told_with_its_last_error(tmp_path):
    said = "RankFailure: the logs. rank 2 (process 5 on a) failed first, in 'update':\nTraceback\nKeyError: 'late'\n"
    early = began(1, "rank_0002") + TRACE.format("TransferError: once more")
    driver = began(0, "driver") + TRACE.format(said) + "7 steps were done.\n" + ended(2, "failed")
    told = first_failure(
        written(tmp_path, rank_0002=early, rank_0000=early.replace("rank_0002", "rank_0000"), driver=driver)
    )
    assert told.startswith("rank_0002 failed first: KeyError: 'late' (in ")


@pytest.mark.parametrize(
    "line",
    [b'{"kind": "step", "step": 4, "x": "\xff"}', b'{"kind": "step", "step": 4, "x": }', b'{"kind": "step"}'],
)
def test_what_of_damaged_metrics_can_be_read_is_read_and_the_rest_is_named(tmp_path, line):
    metrics(tmp_path, b'{"kind": "step", "step": 3}', line)
    told = first_failure(tmp_path)
    assert "3 steps are done" in told
    assert f"{tmp_path / 'metrics.jsonl'} is damaged: line 2 is left out here" in told
