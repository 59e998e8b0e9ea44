import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import BUDGET, PROMPT_TOKENS, TOKEN_VERSIONS, TOKENS
from megatron_rl.data.tiny_model import write_tiny_model
from megatron_rl.ideas import read_ideas
from megatron_rl.spec import files
from megatron_rl.spec.load import load
from tools import bench_in_flight
from tools.bench_in_flight import WAYS, Sizes, ratios, reread, runs, served, spanning, wave, write_task

TINY = Sizes(rows=4, tokens=40, waves=1, steps=1, rounds=1)


def written(versions: list[list[int]]) -> Batch:
    """Prompts of three tokens, and responses of these versions."""
    return Batch.of({PROMPT_TOKENS: [[7, 8, 9]] * len(versions), TOKENS: versions, TOKEN_VERSIONS: versions})


def test_what_stands_before_a_newer_version_is_read_once_more():
    rollouts = written([[0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 1, 3]])
    assert reread(rollouts) == (3 + 2) + (3 + 1) + (3 + 3)
    assert spanning(rollouts) == pytest.approx(2 / 3)


def test_rounds_are_compared_each_with_its_own():
    assert ratios([2.0, 9.0, 8.0], [1.0, 3.0, 2.0]) == "3.00 (2.00 to 4.00)"


class Waits:
    """Plays engine and sync: writes ten tokens of each response, and ten more whenever weights came."""

    def __init__(self) -> None:
        self.version, self.told, self.progress, self.fleet = 0, 0, None, SimpleNamespace(berths=[])
        self.came: list[int] = []
        """After how many tokens."""

    def generate(self, asked: Batch) -> Batch:
        versions: list[list[int]] = [[] for _ in range(len(asked))]
        for place in range(int(asked[BUDGET][0])):
            until(lambda due=place // 10: len(self.came) == due)
            for row in versions:
                row.append(self.version)
            self.told += len(versions)
            self.progress(0, len(versions), self.told)
        return written(versions)

    def publish(self, version: int) -> None:
        self.version = version
        self.came.append(self.told)


def until(is_so):
    ends = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < ends
        time.sleep(0.001)


def test_weights_come_when_equal_parts_of_a_wave_are_written():
    waits = Waits()
    told = wave(waits, waits, Batch.of({BUDGET: [30] * 4}), 2)
    assert waits.came == [40, 80]
    assert (told.reread, told.spanning) == (4 * (3 + 10) + 4 * (3 + 20), 1)


def test_every_way_stands_beside_the_run_in_turn(tmp_path, monkeypatch):
    def train(settings, ahead, steps, folder: Path):
        flies = "in_flight: true" in settings[1]
        (folder / "run/rollouts").mkdir(parents=True)
        written([[5 - ahead] * 3 + [5 - ahead + flies]]).write_parquet(folder / "run/rollouts/step_000006.parquet")
        seconds = {"seconds/collect": 2.0 - ahead + 0.5 * flies, "seconds/update": 1.0}
        return [{"step": 6, "buffer/age_max": 0.0, **seconds}]

    monkeypatch.setattr(bench_in_flight, "train", train)
    _, _, *lines = runs(tmp_path / "task.yaml", TINY)
    assert [line[:20].strip() for line in lines] == list(WAYS)
    told = [[float(word) for word in re.findall(r"\d+\.\d+", line[20:])] for line in lines]
    assert told[0] == [3.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    assert told[1] == [2.0, 0.67, 0.67, 0.67, 1.0, 1.0, 0.0, 0.0]
    assert told[2] == [2.5, 0.83, 0.83, 0.83, 0.75, 1.0, 1.0, 0.86]


@pytest.mark.parametrize("way", WAYS)
def test_the_task_may_be_learnt_in_every_way(tmp_path, monkeypatch, way):
    monkeypatch.setattr(files, "OPTIONAL", {})
    write_tiny_model(tmp_path / "model", seed=0)
    chosen = [served(WAYS[way]["in_flight"]), f"schedule.ahead={WAYS[way]['ahead']}"]
    assert read_ideas(load(write_task(tmp_path, TINY), chosen)).objective.truncate == 2.0


@pytest.mark.vllm
@pytest.mark.slow
def test_waves_and_runs_are_measured_with_vllm(capsys):
    arguments = [word for name, value in TINY._asdict().items() for word in (f"--{name}", str(value))]
    assert bench_in_flight.main(arguments) == 0
    heading, _, *rows = capsys.readouterr().out.splitlines()
    assert heading == "a wave of 4 responses of 40 tokens, 1 of each"
    assert [row.split()[0] for row in rows[:4]] == ["0", "1", "2", "4"]
    assert rows[0].split()[-3:] == ["0", "0.00", "0.00"]
    assert [row[:20].strip() for row in rows[-4:]] == list(WAYS)
