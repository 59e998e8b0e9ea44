import pytest
import torch

from megatron_rl.accounting import rollouts_of
from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import ERROR, GROUP, REWARD, STATUS, TOKENS
from megatron_rl.batch.memory import read_memory, write_memory
from megatron_rl.failures import joined, leave, lived, refuse_silence, tell
from megatron_rl.spec.load import SHIPPED
from tests.fakes.faulty_engine import LosesSome
from tests.test_configs import CONFIGS, trained_though_stopped
from tests.test_launch import data, rollouts  # noqa: F401  # data is a fixture


def wave(status: str, groups: str = "0011") -> Batch:
    """One rollout a letter: o came to an end, x failed."""
    return Batch.of(
        {
            GROUP: [int(group) for group in groups],
            STATUS: ["ok" if letter == "o" else "failed" for letter in status],
            ERROR: ["" if letter == "o" else f"rollout {row} was lost" for row, letter in enumerate(status)],
        }
    )


def test_where_nobody_has_said_so_nothing_has_failed():
    batch = Batch.of({GROUP: [0, 1]})
    assert lived(batch).tolist() == [True, True]
    assert leave(batch, None) == (batch, None)


def test_the_living_go_on_as_they_are_and_cost_nothing_where_all_live():
    batch = wave("oooo")
    living, memory = leave(batch, None)
    assert living is batch
    assert memory is None


def test_rows_that_wait_to_be_told_stand_before_those_that_came_since():
    _, before = leave(wave("oxxx"), None)
    _, after = leave(wave("xxoo"), tell(before).memory)
    assert joined(None, after) == after
    assert joined(before, None) == before
    both = joined(before, after)
    assert both["rows"].strings(ERROR) == [f"rollout {row} was lost" for row in (1, 2, 3, 0, 1)]
    assert (both["groups"], both["rollouts"]) == (2, 5)
    assert joined(tell(before).memory, after) == after
    assert joined(before, tell(before).memory)["rows"] == before["rows"]


def test_a_group_lives_on_with_those_that_came_to_an_end_and_is_lost_with_the_last():
    living, memory = leave(wave("oxxx").with_metrics({"told": 1}), None)
    assert (living[GROUP].tolist(), living.metrics) == ([0], {"told": 1.0})
    assert memory["rows"][ERROR] == ["rollout 1 was lost", "rollout 2 was lost", "rollout 3 was lost"]
    assert (memory["rollouts"], memory["groups"], memory["silent"]) == (3, 1, 0)


def test_what_failed_is_told_once_and_counted_for_ever(tmp_path):
    _, memory = leave(wave("ooxx"), None)
    _, memory = leave(wave("ooox").with_columns({REWARD: [1.0] * 4}), memory)
    write_memory(memory, tmp_path)
    told = tell(read_memory(tmp_path))
    assert told.rows[GROUP].tolist() == [1, 1, 1]
    assert told.metrics == {"failed/rollouts": 3.0, "failed/groups": 1.0, "failed/total": 3.0}
    assert tell(told.memory).rows is None
    assert tell(told.memory).metrics == {"failed/rollouts": 0.0, "failed/groups": 0.0, "failed/total": 3.0}
    assert tell(None) == (None, {}, None)


def test_an_engine_of_which_nothing_comes_is_refused_with_the_reason():
    _, memory = leave(wave("xxxx"), None)
    refuse_silence(None, 1, step=3)
    refuse_silence(memory, 3, step=3)
    _, memory = leave(wave("xxxx"), memory)
    with pytest.raises(RuntimeError, match=r"step 3: none of the rollouts of 4 groups in a row .*rollout 3 was lost"):
        refuse_silence(memory, 3, step=3)


@pytest.mark.parametrize("after", ["oooo", "xxxo"])
def test_one_rollout_that_comes_to_an_end_ends_the_silence(after):
    _, memory = leave(wave("xxxx"), None)
    _, memory = leave(wave(after), memory)
    refuse_silence(memory, 2, step=0)


def test_a_wave_of_no_rows_is_no_sign_of_life():
    _, memory = leave(wave("xxxx"), None)
    assert leave(wave("oooo").where(torch.zeros(4, dtype=torch.bool)), memory)[1] == memory


def test_a_memory_that_is_none_of_its_own_is_refused():
    with pytest.raises(TypeError, match="a mapping"):
        tell([1])
    with pytest.raises(TypeError, match="whole numbers"):
        tell({"rows": None, "groups": 0.5, "rollouts": 0, "silent": 0})


def losing(monkeypatch, share: float) -> None:
    """Every engine loses this share of the rollouts, greedy ones included: the same ones whenever it is asked."""

    def some(engine, batch, sampling=None):
        return rollouts_of(LosesSome(engine, share), batch, sampling)

    for module in ("stages.generate", "stages.greedy_baseline"):
        monkeypatch.setattr(f"megatron_rl.{module}.rollouts_of", some)


def trains_though_rollouts_fail(config, data, folder):  # noqa: F811
    straight = trained_though_stopped(config, data, folder)
    failed = 0
    for step in range(1, 5):
        shown = rollouts(straight, step)
        lived_B = lived(shown)
        assert torch.equal(shown.ragged(TOKENS).length_B > 0, lived_B)
        assert all("was not given back" in error for error in shown.where(~lived_B)[ERROR])
        failed += int((~lived_B).sum())
    assert failed > 0


@pytest.mark.parametrize("name", ["speed"])
def test_a_method_trains_on_those_that_live_and_a_stop_changes_nothing(name, data, tmp_path, monkeypatch):  # noqa: F811
    losing(monkeypatch, 0.3)
    trains_though_rollouts_fail(SHIPPED / f"{name}.yaml", data, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_method_trains_on_those_that_live_and_a_stop_changes_nothing(config, data, tmp_path, monkeypatch):  # noqa: F811
    losing(monkeypatch, 0.3)
    trains_though_rollouts_fail(config, data, tmp_path)
