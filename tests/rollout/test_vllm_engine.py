from concurrent.futures import wait

import pytest
import torch

from megatron_rl.batch.columns import PREFIX_LOGPROBS, SAMPLER_LOGPROBS, STATUS, TOKEN_VERSIONS, TOKENS, VERSION
from megatron_rl.beside import beside
from megatron_rl.ops.logprobs import Sampling
from megatron_rl.ports import RolloutEngine
from megatron_rl.reshard.digest import ReceiverLost, TransferError
from tests.rollout.opening import asked
from tests.rollout.scripted import open_fleet, open_scripted

PROMPTS = [[5]] * 3


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    opened = open_scripted(tmp_path_factory.mktemp("logs"))
    yield opened
    opened.close()


def test_it_is_a_rollout_engine(engine):
    assert isinstance(engine, RolloutEngine)


def test_rollouts_carry_the_version_that_wrote_them(engine):
    engine.begin(7)
    engine.finish(7)
    engine.serve(7)
    rollouts = engine.generate(asked(PROMPTS))
    assert rollouts.numbers(VERSION).tolist() == [7] * 3
    assert rollouts.ragged(TOKEN_VERSIONS).values.tolist() == [7] * 18


def test_a_prefix_is_continued_and_scored_where_its_log_probabilities_are_unknown(engine):
    batch = asked(PROMPTS, prefixes=[[], [40, 41], [40, 41, 42, 43, 44, 45]])
    rollouts = engine.generate(batch)
    assert [row.tolist()[:2] for row in rollouts.ragged(TOKENS).rows()] == [[10, 11], [40, 41], [40, 41]]
    assert rollouts.ragged(SAMPLER_LOGPROBS).values.tolist() == [-0.5] * 18
    known = batch.with_columns({PREFIX_LOGPROBS: [[], [-2.0, -3.0], [-1.0] * 6]})
    assert engine.generate(known).ragged(SAMPLER_LOGPROBS).row(1).tolist() == [-2.0, -3.0, -0.5, -0.5, -0.5, -0.5]


def test_scores_stand_in_their_own_rows(engine):
    rollouts = engine.generate(asked(PROMPTS, budgets=[1, 2, 3]))
    scores = engine.score(rollouts)
    torch.testing.assert_close(scores.offsets, torch.tensor([0, 1, 3, 6]))


def test_nothing_is_served_between_the_beginning_of_a_sync_and_its_end(tmp_path):
    engine = open_scripted(tmp_path)
    engine.begin(1)
    with pytest.raises(RuntimeError, match="no whole version of the weights"):
        engine.generate(asked(PROMPTS))
    engine.finish(1)
    with pytest.raises(RuntimeError, match=r"version 2 cannot be served: the groups hold \[1\]"):
        engine.serve(2)
    engine.close()


def test_a_group_that_is_lost_while_the_actor_learns_is_not_sent_what_the_actor_has_by_then(tmp_path):
    engine = open_scripted(tmp_path, "dies once", groups=2)
    engine.leave_behind()
    assert engine.generate(asked(PROMPTS)).strings(STATUS) == ["ok"] * 3
    assert sorted(berth.version for berth in engine.fleet.berths) == [-1, 0]
    engine.close()


def test_where_the_last_group_is_lost_while_the_actor_learns_the_wave_goes_on_with_what_is_published_next(tmp_path):
    engine = open_scripted(tmp_path, "dies once")
    engine.leave_behind()
    wave = beside(lambda: engine.generate(asked(PROMPTS)), "wave")
    while not engine.awaits_weights:
        assert not wait([wave], 0.05).done
    engine.begin(1)
    engine.finish(1)
    engine.serve(1)
    rollouts = wave.result(30)
    assert rollouts.strings(STATUS) == ["ok"] * 3
    versions = [row.tolist() for row in rollouts.ragged(TOKEN_VERSIONS).rows()]
    assert [0, 1, 1, 1, 1, 1] in versions
    assert {version for row in versions for version in row} == {0, 1}
    assert not engine.awaits_weights
    engine.close()


def test_a_wave_that_waits_for_weights_ends_with_its_run(tmp_path):
    engine = open_scripted(tmp_path, "dies once")
    engine.leave_behind()

    def progress(done, total, tokens):
        if engine.awaits_weights:
            raise KeyboardInterrupt

    engine.progress = progress
    with pytest.raises(KeyboardInterrupt):
        engine.generate(asked(PROMPTS))
    engine.progress = None
    engine.begin(1)
    engine.finish(1)
    engine.serve(1)
    assert engine.generate(asked(PROMPTS)).strings(STATUS) == ["ok"] * 3
    engine.close()


def test_a_version_that_did_not_arrive_is_not_served(tmp_path):
    engine = open_scripted(tmp_path)
    engine.fleet.close()
    engine.fleet = open_fleet(tmp_path, "receives nothing")
    engine.begin(1)
    with pytest.raises(TransferError, match="digest is 1 where 2 was due"):
        engine.finish(1)
    with pytest.raises(RuntimeError, match="no whole version"):
        engine.score(asked(PROMPTS))
    engine.close()


@pytest.mark.parametrize("temperature", [0.001, 2.5])
def test_a_temperature_that_vllm_has_not_is_refused(engine, temperature):
    with pytest.raises(ValueError, match=rf"temperature 0 or from 0.01 to 2.0, not at {temperature}\."):
        engine.generate(asked(PROMPTS), Sampling(temperature=temperature))


def test_groups_that_sleep_take_memory_for_weights_before_a_sync_and_for_their_cache_behind_it(tmp_path):
    engine = open_scripted(tmp_path, groups=2)
    engine.sleep()
    assert [berth.asleep for berth in engine.fleet.berths] == [{"weights", "kv_cache"}] * 2
    with pytest.raises(RuntimeError, match="no whole version of the weights"):
        engine.generate(asked(PROMPTS))
    engine.begin(1)
    assert [berth.asleep for berth in engine.fleet.berths] == [{"kv_cache"}] * 2
    engine.finish(1)
    engine.serve(1)
    assert engine.generate(asked(PROMPTS)).strings(STATUS) == ["ok"] * 3
    assert engine.fleet.restarts == 0
    engine.close()


def test_a_group_that_is_lost_while_it_starts_keeps_no_other_awake_and_is_replaced(tmp_path):
    engine = open_scripted(tmp_path, groups=2)
    engine.fleet.replace(0)
    engine.fleet.berths[0].group.process.kill()
    engine.sleep()
    assert [berth.asleep for berth in engine.fleet.berths] == [set(), {"weights", "kv_cache"}]
    engine.begin(1)
    engine.finish(1)
    engine.serve(1)
    assert engine.generate(asked(PROMPTS)).strings(STATUS) == ["ok"] * 3
    assert engine.fleet.restarts == 2
    engine.close()


def test_a_group_that_dies_asleep_or_waking_up_is_replaced(tmp_path):
    engine = open_scripted(tmp_path, "dies waking once", groups=2)
    engine.sleep()
    with pytest.raises(ReceiverLost, match=r"version 1 did not reach every group: vLLM group . did not wake up"):
        engine.begin(1)
    for version in (1, 2):
        engine.begin(version)
        engine.finish(version)
        engine.serve(version)
        assert engine.generate(asked(PROMPTS)).strings(STATUS) == ["ok"] * 3
        assert engine.fleet.restarts == version
        engine.sleep()
        engine.fleet.berths[1].group.kill()
    engine.close()
