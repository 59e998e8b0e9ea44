import pytest

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import (
    LOSS_MASK,
    OLD_LOGPROBS,
    PROMPT_ID,
    PROMPT_TOKENS,
    SAMPLER_LOGPROBS,
    TOKEN_VERSIONS,
    TOKENS,
)
from megatron_rl.batch.ragged import Ragged
from megatron_rl.ports import Context
from megatron_rl.stages.old_logprobs import OldLogprobs


class Scores:
    def __init__(self, rows):
        self.rows = rows

    def score(self, batch, policy="current"):
        return Ragged.of(self.rows)


def scored(rows, memory=None, versions=(4, 4), stage=None):
    batch = Batch.of(
        {
            PROMPT_ID: ["easy", "hard"],
            PROMPT_TOKENS: [[1], [2]],
            TOKENS: [[5, 6], [7]],
            LOSS_MASK: [[1, 1], [1]],
            SAMPLER_LOGPROBS: [[-1.0, -2.0], [-3.0]],
            TOKEN_VERSIONS: [[versions[0], versions[0]], [versions[1]]],
        }
    )
    context = Context(step=4, version=4, seed=0, machines={"actor": Scores(rows)})
    return (stage or OldLogprobs())(batch, memory, context)


def test_the_actors_log_probabilities_are_written_and_the_gap_is_reported():
    batch, memory = scored([[-1.0, -2.03], [-3.0]])
    assert batch[OLD_LOGPROBS].values.tolist() == pytest.approx([-1.0, -2.03, -3.0])
    assert batch.metrics["parity/mean"] == pytest.approx(0.01, rel=1e-4)
    assert batch.metrics["parity/max"] == pytest.approx(0.03, rel=1e-4)
    assert memory is True


@pytest.mark.parametrize("bad", [-9.0, float("nan")])
def test_a_first_batch_on_which_they_disagree_stops_the_run_and_names_the_worst_prompt(bad):
    with pytest.raises(RuntimeError, match="worst prompt is 'hard'"):
        scored([[-1.0, -2.0], [bad]])


def test_after_the_first_batch_a_gap_is_only_reported():
    batch, _ = scored([[-1.0, -2.0], [-9.0]], memory=True)
    assert batch.metrics["parity/max"] == 6.0


def test_tokens_of_an_older_policy_say_nothing_about_the_engine():
    batch, memory = scored([[-1.0, -2.0], [-9.0]], versions=(4, 3))
    assert batch.metrics["parity/max"] == 0.0
    batch, memory = scored([[-7.0, -2.0], [-9.0]], versions=(3, 3))
    assert "parity/max" not in batch.metrics
    assert memory is None
